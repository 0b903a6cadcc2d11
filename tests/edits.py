"""Edits at random moments while a command runs: what it records is what its params, code and data made.

    python tests/edits.py --edits 40

Each trial starts a command in a fresh clone and, at a random moment of one stage, edits params.yaml, a library file or
an input. A command that ends with exit code 0 and whose result `verify` calls sound must have the bytes of a run from
scratch with what there is at its end. A refused one must end in the bytes of an undisturbed run once the edit is undone
and the command repeated, without training again; and an edit that cannot matter must not stop a command.
"""

import argparse
import collections
import io
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import Workspace, tiny_clone
from tests.torture import outs

COMMANDS = {
    "dvc repro": ("dvc", "repro"),
    "dvc exp run": ("dvc", "exp", "run"),
    "src/train.py": ("python", "src/train.py", "train.seed=1"),
}
STAGES = ("download", "preprocess", "train", "evaluate")
OWN = {  # a value of a stage's own: before, after
    "download": ("mirror:", "mirror: http://mirror.example  # was:"),
    "preprocess": ("val_fraction: 0.1", "val_fraction: 0.2"),
    "train": ("label_smoothing: 0.05", "label_smoothing: 0.1"),
    "evaluate": ("calibration_bins: 15", "calibration_bins: 10"),
}
OTHER = {stage: OWN["evaluate" if stage in ("download", "train") else "download"] for stage in STAGES}
CODE = {
    "download": "data/download/sources.py",
    "preprocess": "data/prepare/splits.py",
    "train": "training/optim.py",
    "evaluate": "evaluation/evaluate.py",
}
INPUTS = {
    "download": "data/own/3/5.png",
    "preprocess": "data/raw/images.zip",
    "train": "data/processed/train_images.npy",
    "evaluate": "models/model.safetensors",
}
HARMLESS = ("another stage's value", "a comment in params.yaml", "a comment in the code")
KINDS = ("a value", *HARMLESS, "code", "an input", "an input, its time kept")


def edit(root: Path, kind: str, stage: str) -> Callable[[], None]:
    """Edit a file, as an editor that replaces it does; return what undoes it."""
    match kind:
        case "a value" | "another stage's value":
            path, (old, new) = root / "params.yaml", (OWN if kind == "a value" else OTHER)[stage]
            content = path.read_text().replace(old, new, 1).encode()
        case "a comment in params.yaml":
            path = root / "params.yaml"
            content = path.read_bytes() + b"# a comment\n"
        case "a comment in the code" | "code":
            path = root / "src/reprise" / CODE[stage]
            content = path.read_bytes() + (b"\nEDITED = 1\n" if kind == "code" else b"\n# a comment\n")
        case _:
            path = root / INPUTS[stage]
            content = path.read_bytes()
            if path.suffix == ".png":  # another picture
                with Image.open(path) as image, io.BytesIO() as encoded:
                    image.point(lambda pixel: 255 - pixel).save(encoded, "png")
                    content = encoded.getvalue()
            else:
                content = content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
    before, status = path.read_bytes(), path.stat()

    def write(new: bytes) -> None:
        if "kept" in kind:  # in place, as a failing disk does
            path.chmod(0o644)
            with path.open("r+b") as file:
                file.truncate(file.write(new))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        else:
            partial = path.with_name(".edited.partial")
            partial.write_bytes(new)
            partial.replace(path)

    write(content)
    return lambda: write(before)


def base(path: Path) -> Workspace:
    """Return a clone whose own images are 300 digits."""
    clone = tiny_clone(path)
    clone.set("data.name=folder", "data.test_fraction=0.3", "train.epochs=3")
    digits = load_digits(n_class=6)
    for number, (pixels, label) in enumerate(zip(digits.images[:300], digits.target, strict=False)):
        file = path / f"data/own/{label}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(file)
    file = path / INPUTS["download"]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((digits.images[301] * 15).astype("uint8")).resize((64, 64)).save(file)
    clone.commit()
    return clone


def result(workspace: Workspace, command: str) -> dict[str, bytes]:
    """Return every out of a command by path, without dvc.lock, which also holds comments."""
    if command == "src/train.py":
        folder = workspace.path / "runs/latest"
        return {name: (folder / name).read_bytes() for name in ("model.safetensors", "model.json", "history.csv")}
    found = outs(workspace) | {
        str(path.relative_to(workspace.path)): path.read_bytes() for path in workspace.path.glob("data/records/*.json")
    }
    return {path: content for path, content in found.items() if path != "dvc.lock"}


def from_scratch(workspace: Workspace, command: str, folder: Path) -> dict[str, bytes]:
    """Return what the command gives in a copy without any earlier result."""
    copy = workspace.copy(folder)
    for name in ("data/raw", "data/processed", "data/report", "data/records", "runs", ".dvc/cache", "dvc.lock"):
        subprocess.run(["rm", "-rf", copy.path / name], check=True)
    copy.run("git", "checkout", "--quiet", "--force", "main")
    for name in ("params.yaml", "src", "data/own"):
        subprocess.run(["cp", "-rT", workspace.path / name, copy.path / name], check=True)
    if command == "src/train.py":  # it keeps the params that it began with
        subprocess.run(["cp", workspace.path / "runs/latest/params.yaml", copy.path / "params.yaml"], check=True)
    copy.run(*(COMMANDS[command] if command == "src/train.py" else ("dvc", "repro", "--force")))
    return result(copy, command)


def trial(
    workspace: Workspace, command: str, stage: str, kind: str, share: float, seconds: float, scratch: Path
) -> str:
    """Edit during a command; return how it ended. AssertionError says what is wrong."""
    what = f"{command}: {kind} of {stage}, after {share:.2f} of it"
    log = (scratch / "log").open("w+")
    process = subprocess.Popen(
        COMMANDS[command], cwd=workspace.path, env=workspace.environment(), stdout=log, stderr=subprocess.STDOUT
    )
    begin = "schedule" if command == "src/train.py" and stage == "train" else f"Running stage '{stage}'"
    while begin not in Path(log.name).read_text() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(share * seconds / (4 if command == "src/train.py" and stage == "train" else 1))
    begun = [line for line in Path(log.name).read_text().splitlines() if line.startswith("Running stage")]
    over = process.poll() is not None or (command != "src/train.py" and begun[-1:] != [f"Running stage '{stage}':"])
    undo = edit(workspace.path, kind, stage)
    if over:
        process.wait(timeout=300)
        return "too late"
    code = process.wait(timeout=300)
    said = Path(log.name).read_text()
    if code == 0:
        if kind.startswith("an input") and stage != "download":
            undo()  # after the stage: the out of an earlier one is altered, which `verify` names by itself
        own = ("download", "preprocess") if command == "src/train.py" else STAGES  # of which it says something
        found = workspace.run("python", "-m", "reprise", "verify", check=False).stdout
        if any(f"stage {name}: " in found for name in own):
            return "found by verify"
        now, honest = result(workspace, command), from_scratch(workspace, command, scratch / "honest")
        different = sorted(path for path in now.keys() | honest.keys() if now.get(path) != honest.get(path))
        assert not different, f"{what}: recorded as what it is not: {', '.join(different)}\n{said[-2000:]}"
        return "as it is"
    assert kind not in HARMLESS, f"{what}: stopped\n{said[-2000:]}"
    assert "Traceback" not in said, f"{what}\n{said[-3000:]}"
    undo()
    again = workspace.run(*COMMANDS[command], check=False)
    assert again.returncode == 0, (
        f"{what}: not repeatable\n{said[-1500:]}\n{again.stdout[-1500:]}{again.stderr[-1500:]}"
    )
    if "what is trained is kept" in said:
        assert "epoch 1/" not in again.stderr + again.stdout, f"{what}: trained again\n{again.stderr[-2000:]}"
    honest = from_scratch(workspace, command, scratch / "honest")
    now = result(workspace, command)
    different = sorted(path for path in now.keys() | honest.keys() if now.get(path) != honest.get(path))
    assert not different, f"{what}: other bytes after the repetition: {', '.join(different)}"
    return "refused"


def main() -> int:
    """Edit many times; print what was done and what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    ended: collections.Counter[str] = collections.Counter()
    seconds = {"download": 0.9, "preprocess": 1.2, "train": 4.5, "evaluate": 3.5}
    with tempfile.TemporaryDirectory() as folder:
        clone = base(Path(folder) / "base")
        for number in range(arguments.edits):
            command = list(COMMANDS)[number % len(COMMANDS)]
            stage = rng.choice(STAGES[:3] if command == "src/train.py" else STAGES)
            kind = KINDS[number % len(KINDS)]
            share = rng.random()
            scratch = Path(folder) / f"trial-{number}"
            scratch.mkdir()
            workspace = clone.copy(scratch / "clone")
            try:
                how = trial(workspace, command, stage, kind, share, seconds[stage], scratch)
            except AssertionError as error:
                how = "WRONG"
                print(error, flush=True)
            print(f"{number + 1}: {command}, {kind} of {stage}, after {share:.2f} of it: {how}", flush=True)
            ended[how] += 1
            subprocess.run(["rm", "-rf", scratch], check=True)
    print(", ".join(f"{count} {how}" for how, count in sorted(ended.items())))
    return int(bool(ended["WRONG"]))


if __name__ == "__main__":
    sys.exit(main())
