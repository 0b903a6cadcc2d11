"""Proof that a change does not alter the computation: two revisions train the same setting with the same losses.

    python benchmarks/same_loss.py REV_A REV_B [key=value ...]

Checks the revisions out into temporary worktrees and trains there with their own `src/train.py`. Compares the loss of
every step, bit by bit, then the rows of the epochs, then the weights. Names the first difference and exits with 1.
"""

import argparse
import csv
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHORT = ["train.epochs=2", "data.test_fraction=0.8"]

# Runs src/train.py; every loss that something is derived from goes into a file, in hexadecimal.
TRACED = """
import runpy, sys
from reprise.runtime import environment as process
file, settle = open(sys.argv.pop(1), "w", buffering=1), process.after_torch
def after_torch(*args, **kwargs):
    settle(*args, **kwargs)
    import torch
    derive = torch.Tensor.backward
    def backward(loss, *args, **kwargs):
        print(loss.item().hex(), file=file)
        return derive(loss, *args, **kwargs)
    torch.Tensor.backward = backward
process.after_torch = after_torch
sys.argv[0] = "src/train.py"
sys.path.insert(0, "src")
runpy.run_path("src/train.py", run_name="__main__")
"""


def trained(revision: str, folder: Path, overrides: list[str]) -> list[tuple[str, str]]:
    """Train a revision in a worktree at `folder`; return (where, value) of every step, epoch row and the weights."""
    add = ["git", "worktree", "add", "--quiet", "--detach", str(folder), revision]
    added = subprocess.run(add, cwd=ROOT, capture_output=True, text=True)
    if added.returncode:
        sys.exit(f"error: {revision}: {added.stderr.strip()}")
    losses = folder.with_suffix(".losses")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PATH": path}
    command = [sys.executable, "-c", TRACED, str(losses), *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {revision} does not train these settings:\n{done.stderr[-2000:]}")
    if not losses.read_text():
        sys.exit(f"error: {revision} trains without a loss that could be seen: nothing is shown")
    return list(trace(losses, folder / "runs/latest"))


def trace(losses: Path, run: Path) -> Iterator[tuple[str, str]]:
    """Yield what two equal trainings have in common, in the order of its coming about."""
    for step, loss in enumerate(losses.read_text().split(), start=1):
        yield f"step {step}: loss", str(float.fromhex(loss))
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                yield f"epoch {row['epoch']}: {name}", value
    yield "weights, SHA-256", hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def first_difference(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> str | None:
    """Return the first entry that is not the same, with both values; None if all are."""
    for first, second in zip_longest(one, other, fillvalue=("nothing", "-")):
        if first != second:
            where = first[0] if first[0] == second[0] else f"{first[0]} / {second[0]}"
            return f"{where}: {first[1]} / {second[1]}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REV")
    parser.add_argument("overrides", nargs="*", default=SHORT, metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, side) for side in "ab"]
        try:
            one, other = (
                trained(revision, folder, arguments.overrides)
                for revision, folder in zip(arguments.revisions, folders, strict=True)
            )
        finally:
            for folder in folders:
                remove = ["git", "worktree", "remove", "--force", str(folder)]
                subprocess.run(remove, cwd=ROOT, capture_output=True)
    between = f"{' and '.join(arguments.revisions)}, {' '.join(arguments.overrides)}"
    if difference := first_difference(one, other):
        sys.exit(f"different: {between}\n{difference}")
    steps = sum(where.startswith("step") for where, _ in one)
    print(f"identical: {between}: the losses of {steps} steps, every epoch's row, the weights")


if __name__ == "__main__":
    main()
