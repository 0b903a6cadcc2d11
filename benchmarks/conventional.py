"""The real training against the conventional Lightning set-up (conventional_loop.py), in alternation.

    python benchmarks/conventional.py --turns 3

The claim: at least 6 times its images/s on an MLP, twice on a small CNN (`digits_cnn`, in colour), 3.5 times on
efficientnet_b0 at 32 px. Both have the same model, batch size, number of threads, optimizer and, in colour, random
shifts by 4 px and flips; OpenMP waits passively in both, without which the conventional one would be many times slower
still on shared cores. Ours runs as it is meant to run: `train.reproducible=off`. The result is in benchmarks/README.md.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import ROOT, in_turns, machine, print_header, print_row, python, ratio, training
from synthetic import write_packed

NO_CHANGES = ["train.augment.rotate=0", "train.augment.scale=0", "train.augment.shift=0"]
CROP_FLIP = ["train.augment.rotate=0", "train.augment.scale=0", "train.augment.shift=0.125", "train.augment.flip=true"]
MODELS = {  # training images, size, channels, batch size, ours, the bar
    "mlp": (12_800, 28, 1, 128, NO_CHANGES, 6),
    "digits_cnn": (2_560, 32, 3, 128, CROP_FLIP, 2),
    "efficientnet_b0": (640, 32, 3, 64, CROP_FLIP, 3.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for ours")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="of the conventional DataLoader")
    arguments = parser.parse_args()
    print(f"{machine()}, {arguments.threads} threads, {arguments.workers} DataLoader workers\n")
    print_header("model", "conventional, images/s", "ours, images/s", "ratio", "bar")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            count, size, channels, batch_size, own, bar = MODELS[name]
            processed = write_packed(Path(folder, name), count, size, channels)
            overrides = [
                f"model.name={name}",
                f"train.batch_size={batch_size}",
                "train.epochs=3",
                "train.reproducible=off",
                f"train.threads={arguments.threads}",
                *own,
                *arguments.overrides,
            ]
            conventional = [str(ROOT / "benchmarks/conventional_loop.py"), str(processed), name, str(batch_size)]
            conventional += [str(arguments.threads), str(arguments.workers)]
            measured = in_turns(
                {
                    "conventional": lambda command=conventional: float(python(*command)),
                    "ours": lambda data=processed, wanted=overrides: training(data, Path(folder), wanted)["rate"],
                },
                arguments.turns,
            )
            rates = [f"{statistics.median(measured[which]):,.0f}" for which in ("conventional", "ours")]
            print_row(f"`{name}`", *rates, f"{ratio(measured['ours'], measured['conventional']):.2f}", bar)


if __name__ == "__main__":
    main()
