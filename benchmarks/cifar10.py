"""CIFAR-10 from the archive of its 60,000 JPEGs: the time to 90 % test accuracy on two cores.

    python benchmarks/cifar10.py cifar10-images.tar.gz --recipe first --epochs 12

Trains through `src/train.py`, prints each epoch with the seconds since the start, then the test accuracy. A killed run
goes on from its checkpoint when the same command is given again; its seconds are kept in runs/cifar10-KEY.log, later in
the run's folder, and add up. The aim: the recipe `improved` needs at most two thirds of the time of `first`; it
is not shown yet, see benchmarks/README.md.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from measure import ROOT, machine

DATA = ["data.name=archive", "train.checkpoint_every.epochs=1"]
RECIPES = {  # both on top of the preset cifar10-resnet, which is the improved one
    "first": [
        "train.epochs=20",
        "train.lr=0.1",
        "train.weight_decay=0.0005",
        "train.label_smoothing=0",
        "train.start_size=null",
    ],
    "improved": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--recipe", choices=list(RECIPES), default="first")
    parser.add_argument("--epochs", type=int)
    arguments = parser.parse_args()
    epochs = [f"train.epochs={arguments.epochs}"] if arguments.epochs else []
    data = f"data.path={os.path.relpath(arguments.archive, ROOT)}"
    overrides = [data, *DATA, *RECIPES[arguments.recipe], *epochs, *arguments.overrides]
    key = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:8]
    log = ROOT / f"runs/cifar10-{key}.log"
    log.parent.mkdir(exist_ok=True)
    print(f"{machine()}\n{' '.join(overrides)}\n-> {log.relative_to(ROOT)}", flush=True)
    rows = dict(line.split(" ", 1) for line in log.read_text().splitlines()) if log.exists() else {}
    started = time.monotonic()
    command = [sys.executable, "src/train.py", "--preset", "cifar10-resnet", *overrides]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if epoch := re.match(r"epoch (\d+)/", line):
                now = time.monotonic()
                rows[epoch[1]] = f"{now - started:.1f} {line.strip()}"
                started = now
                log.write_text("".join(f"{number} {row}\n" for number, row in rows.items()))
                total = sum(float(row.split()[0]) for row in rows.values())
                print(f"[{total:7.1f} s] {line.strip()}", flush=True)
            else:
                print(line.rstrip(), file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    log.replace(ROOT / "runs/latest/seconds.log")
    subprocess.run([sys.executable, "src/eval.py", "runs/latest"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
