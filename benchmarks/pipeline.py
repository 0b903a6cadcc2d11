"""The default pipeline against the sum of its parts, and doing nothing against DVC's own nothing.

    python benchmarks/pipeline.py --turns 3

The bars: process start-up, DVC and publishing are at most a quarter of `dvc repro` on digits; a second `dvc repro`
takes at most 1.2 times as long as with an empty pipeline of equal size (the same stages, dependencies and params, whose
commands only touch their outs). The parts are the library's functions, called one after the other in one process that
has imported everything. Beside them, for comparison: DVC's own time for four stages that only touch their
outs, and the bare imports of the libraries that train and evaluate stand on. The result is in benchmarks/README.md.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from measure import ROOT, in_turns, machine, print_header, print_row, python, ratio, spread

PARTS = """
import sys, time
from pathlib import Path
from reprise.data.prepare.prepare import preprocess
from reprise.data.download.sources import download
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch, cpus
import sklearn.datasets
params, folder = load_params("params.yaml"), Path(sys.argv[1])
data = params.data
before_torch(params.train.threads, params.train.reproducible)
from reprise.evaluation.evaluate import evaluate
from reprise.training.train import train
after_torch(params.train.threads, params.train.reproducible)
started = time.perf_counter()
download(data, folder / "raw", folder / "downloads")
preprocess(folder / "raw", folder / "processed", data, cpus())
result = train(folder / "processed", params.model, params.train)
settings = params.evaluate
evaluate(result.network, result.card, folder / "processed", settings.batch_size, settings.calibration_bins)
print(time.perf_counter() - started)
"""


IMPORTS = (
    "import reprise, timm, lightning",
    "import reprise, timm",
)


def imports() -> float:
    """Return the seconds of the imports of train and evaluate, each in a process of its own, the collector at rest."""
    started = time.perf_counter()
    for line in IMPORTS:
        python("-c", f"import gc; gc.disable(); {line}; print()")
    return time.perf_counter() - started


def repro(folder: Path) -> float:
    """Return the seconds of `dvc repro`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    subprocess.run(["dvc", "repro"], cwd=folder, check=True, capture_output=True, env={**os.environ, "PATH": path})
    return time.perf_counter() - started


def clone(folder: Path) -> Path:
    """Return a clone of the commit, without its results."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / "dvc.lock").unlink()
    return folder


def emptied(folder: Path) -> Path:
    """Return a clone whose stages do no more than touch their outs."""
    clone(folder)
    pipeline = yaml.safe_load((folder / "dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        outs = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        stage["cmd"] = f"mkdir -p models && touch {' '.join(outs)}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        numbers = iter(range(1000))

        def whole() -> float:
            folder = clone(Path(temporary, f"whole{next(numbers)}"))
            seconds = repro(folder)
            shutil.rmtree(folder)
            return seconds

        def parts() -> float:
            folder = Path(temporary, f"parts{next(numbers)}")
            folder.mkdir()
            return float(python("-c", PARTS, str(folder)))

        def dvc() -> float:
            folder = emptied(Path(temporary, f"dvc{next(numbers)}"))
            return repro(folder)

        contenders = {"whole": whole, "parts": parts, "dvc": dvc, "imports": imports}
        measured = in_turns(contenders, arguments.turns)
        share = statistics.median(
            1 - own / all_ for own, all_ in zip(measured["parts"], measured["whole"], strict=True)
        )
        print_header("`dvc repro` on digits", "s")
        print_row("whole", spread(measured["whole"], 1))
        print_row("sum of its parts", spread(measured["parts"], 1))
        print_row("start-up, DVC and publishing (bar: 25 %)", f"{share:.0%}")
        print_row("DVC alone", spread(measured["dvc"], 1))
        print_row("imports of torch, timm and Lightning alone", spread(measured["imports"], 1))
        print()
        full, empty = clone(Path(temporary, "full")), emptied(Path(temporary, "empty"))
        for folder in (full, empty):
            repro(folder)
        nothing = in_turns({"full": lambda: repro(full), "empty": lambda: repro(empty)}, 2 * arguments.turns)
        print_header("`dvc repro` with nothing to do", "s")
        print_row("this pipeline", spread(nothing["full"]))
        print_row("an empty one of equal size", spread(nothing["empty"]))
        print_row("ratio (bar: 1.2)", f"{ratio(nothing['full'], nothing['empty']):.2f}")


if __name__ == "__main__":
    main()
