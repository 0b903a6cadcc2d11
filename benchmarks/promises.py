"""What the promises cost: the default training on each term of reproducibility, and with and without checkpoints.

    python benchmarks/promises.py --trials 5

Each trial is a process of its own that prepares once and times `train` alone; the settings of a table take turns. The
claim: checkpoints and locks cost at most 2 % of the default training. The result is in benchmarks/README.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Publishes what it trained, under the locks, if it is given a scratch folder; otherwise it trains and no more.
TRIAL = """
import sys, time
from pathlib import Path
from reprise.params import load_params
from reprise.process import after_torch, before_torch
from reprise.publish import publishing
folder, kept, *overrides = sys.argv[1:]
params = load_params("params.yaml", overrides)
before_torch(params.train.threads, params.train.reproducible)
from reprise.training import train
after_torch(params.train.threads, params.train.reproducible)
started = time.perf_counter()
if kept == "kept":
    names = ("model.safetensors", "model.json", "train.json", "history.csv")
    with publishing(*(Path(folder, name) for name in names)) as outs:
        result = train(Path("data/processed"), params.model, params.train, Path(folder, "scratch"))
        result.save(*outs)
    result.discard_checkpoints()
else:
    result = train(Path("data/processed"), params.model, params.train)
    result.save(*(Path(folder, name) for name in ("m.safetensors", "m.json", "t.json", "h.csv")))
print(time.perf_counter() - started)
"""


def seconds(kept: str, overrides: list[str]) -> float:
    """Return the seconds of one training."""
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        command = [sys.executable, "-c", TRIAL, folder, kept, *overrides]
        environment = {**os.environ, "PYTHONPATH": "src"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def compare(settings: dict[str, tuple[str, list[str]]], trials: int) -> None:
    """Print a table of settings: median, spread, and the median of the ratios to the first one of the same turn."""
    turns = [{name: seconds(*setting) for name, setting in settings.items()} for _ in range(trials)]
    first = next(iter(settings))
    print("| setting | training, s | ratio |\n| --- | ---: | ---: |")
    for name in settings:
        times = [turn[name] for turn in turns]
        ratio = statistics.median(turn[name] / turn[first] for turn in turns)
        spread = f"{statistics.median(times):.2f} ({min(times):.2f} - {max(times):.2f})"
        print(f"| {name} | {spread} | {ratio:.3f} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="for all settings")
    parser.add_argument("--trials", type=int, default=5)
    arguments = parser.parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    modes = ("off", "machine", "portable")
    compare(
        {f"`{mode}`": ("none", [*arguments.overrides, f"train.reproducible={mode}"]) for mode in modes},
        arguments.trials,
    )
    compare(
        {
            "no checkpoints, no locks": ("none", arguments.overrides),
            "checkpoints as in params.yaml": ("kept", arguments.overrides),
        },
        arguments.trials,
    )


if __name__ == "__main__":
    main()
