"""The default training on a busy machine against an idle one, in alternation: the thread and wait-policy trap.

    python benchmarks/busy.py --trials 3

Prints, for one and for two spinning processes beside the run, the wall time of `python src/train.py` as a ratio to the
idle runs around it. The claim is at most 2x with every core busy; the result is in benchmarks/README.md.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import machine

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Keep `count` processes spinning meanwhile."""
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def seconds(overrides: list[str]) -> float:
    """Return the wall time of one training."""
    start = time.monotonic()
    subprocess.run([sys.executable, "src/train.py", *overrides], cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    print("| spinning processes | idle, s | busy, s | ratio |\n| ---: | ---: | ---: | ---: |")
    for count in (1, os.cpu_count() or 2):
        idle, busy = [], []
        for _ in range(arguments.trials):
            idle.append(seconds(arguments.overrides))
            with spinning(count):
                busy.append(seconds(arguments.overrides))
        ratio = statistics.median(b / i for b, i in zip(busy, idle, strict=True))
        print(f"| {count} | {statistics.median(idle):.1f} | {statistics.median(busy):.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
