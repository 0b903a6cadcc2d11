"""What several models reach on digits and what they cost, through `src/train.py` and `src/eval.py` as a user runs them.

    python benchmarks/models.py --seeds 3 "model.name=resnet10t train.epochs=8"

Prints a Markdown table: test accuracy as median (lowest - highest) over the seeds, seconds of training alone (from the
epoch lines' images/s) as the median. The result is in benchmarks/README.md.
"""

import argparse
import re
import statistics
import subprocess
import sys
from pathlib import Path

from measure import machine

ROOT = Path(__file__).resolve().parent.parent
MODELS = [
    "model.name=test_resnet",
    "model.name=resnet10t train.epochs=8",
    "model.name=resnet18 train.epochs=8",
    "model.name=mobilenetv3_small_100",
    "model.name=efficientnet_b0",
    "model.name=efficientnet_b1",
    "model.name=vit_tiny_patch16_224",
]


def run(*command: str) -> tuple[str, str]:
    """Run one of the scripts in src/; return stdout and stderr."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout, done.stderr


def trial(overrides: list[str], seed: int) -> tuple[float, float, int]:
    """Return test accuracy, seconds of training and parameters of one run."""
    _, log = run("src/train.py", *overrides, f"train.seed={seed}")
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) images/s", log)]
    table, _ = run("src/eval.py", "runs/latest")
    images = 1268 // 32 * 32  # digits: whole batches of the training split
    accuracy = float(re.search(r"accuracy +([\d.]+)", table)[1])
    parameters = int(re.search(r"parameters +([\d,]+)", table)[1].replace(",", ""))
    return accuracy, sum(images / rate for rate in rates), parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=MODELS)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    print("| settings | parameters | test accuracy | training, s |\n| --- | ---: | ---: | ---: |", flush=True)
    for settings in arguments.settings:
        accuracies, seconds, parameters = zip(
            *(trial(settings.split(), seed) for seed in range(arguments.seeds)), strict=True
        )
        spread = f" ({min(accuracies):.4f} - {max(accuracies):.4f})" if len(accuracies) > 1 else ""
        accuracy = f"{statistics.median(accuracies):.4f}{spread}"
        print(f"| `{settings}` | {parameters[0]:,} | {accuracy} | {statistics.median(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
