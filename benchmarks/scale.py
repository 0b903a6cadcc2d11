"""Images per second and memory of the real training against the size of the data set.

    python benchmarks/scale.py [1000 10000 100000 1000000]

The claim: the time of an image does not depend on how many there are, and memory stays bounded: the packed
32 x 32 arrays are memory-mapped, and a batch is copied when it is gathered. A small network, so that the data path
shows. A million images take 3 GB of disk. The result is in benchmarks/README.md.
"""

import argparse
import tempfile
from pathlib import Path

from measure import machine, print_header, print_row, training
from synthetic import write_packed

PLAIN = ["train.augment.rotate=0", "train.augment.scale=0", "train.augment.shift=0"]
SETTINGS = ["model.name=mlp", "train.batch_size=256", *PLAIN]
LEAST = 100_000  # images to train on, so that a rate can be told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--overrides", nargs="+", default=[], metavar="key=value")
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    print_header("training images", "images/s", "memory of its own, MB", "`train` in all, s")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            processed = write_packed(Path(folder, "processed"), size, 32, 3)
            epochs = f"train.epochs={max(1, LEAST // size)}"
            facts = training(processed, Path(folder), [*SETTINGS, epochs, *arguments.overrides])
        print_row(f"{size:,}", f"{facts['rate']:,.0f}", f"{facts['memory'] / 1e6:,.0f}", f"{facts['seconds']:.1f}")


if __name__ == "__main__":
    main()
