"""What the promises cost: the default training on each term of reproducibility, and with and without checkpoints.

    python benchmarks/promises.py --trials 5

Each trial is a process of its own that prepares once and times `train` alone; the settings of a table take turns. The
claim: checkpoints and locks cost at most 2 % of the default training. The result is in benchmarks/README.md.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from measure import ROOT, in_turns, machine, print_header, print_row, ratio, spread, training


def seconds(kept: bool, overrides: list[str]) -> float:
    """Return the seconds of one training; `kept`: published under the locks, with checkpoints."""
    with tempfile.TemporaryDirectory(dir=ROOT / "runs") as folder:
        return training(ROOT / "data/processed", Path(folder), overrides, kept)["seconds"]


def compare(settings: dict[str, tuple[bool, list[str]]], trials: int) -> None:
    """Print a table of settings: median, spread, and the median of the ratios to the first one of the same turn."""
    measured = in_turns({name: lambda own=own: seconds(*own) for name, own in settings.items()}, trials)
    first = next(iter(measured.values()))
    print_header("setting", "training, s", "ratio")
    for name, times in measured.items():
        print_row(name, spread(times), f"{ratio(times, first):.3f}")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="for all settings")
    parser.add_argument("--trials", type=int, default=5)
    arguments = parser.parse_args()
    (ROOT / "runs").mkdir(exist_ok=True)
    subprocess.run(["dvc", "repro", "preprocess"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f"{machine()}\n")
    modes = ("off", "machine", "portable")
    compare(
        {f"`{mode}`": (False, [*arguments.overrides, f"train.reproducible={mode}"]) for mode in modes},
        arguments.trials,
    )
    compare(
        {
            "no checkpoints, no locks": (False, arguments.overrides),
            "checkpoints as in params.yaml": (True, arguments.overrides),
        },
        arguments.trials,
    )


if __name__ == "__main__":
    main()
