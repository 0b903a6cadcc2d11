"""The real training against a bare PyTorch loop with the same settings, in alternation in one process.

    python benchmarks/limit.py --turns 3

The bar: at least 0.97 of the bare loop's images/s. The claim: a small CNN (`digits_cnn`, in colour), resnet18 and
efficientnet_b0 reach it at 28 to 32 px, an MLP 0.92 to 0.98. Both train on the same images in the same order; the last
column says whether they end in equal weights, bit for bit. CPUs beyond the threads make the coming batches, which the
bare loop has ready; `taskset` with as many CPUs as threads takes them away. The result is in benchmarks/README.md.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

from measure import ROOT, in_turns, machine, print_header, print_row, ratio
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import one_line_errors
from synthetic import write_packed

PLAIN = [
    "train.augment.rotate=0",
    "train.augment.scale=0",
    "train.augment.shift=0",
    "train.augment.flip=false",
    "train.epochs=3",
    "train.reproducible=machine",
]
MODELS = {  # training images, size, channels, further overrides
    "mlp": (25_600, 28, 1, ["train.batch_size=128"]),
    "digits_cnn": (3_840, 32, 3, ["train.batch_size=128"]),
    "resnet18": (1_280, 32, 3, ["train.batch_size=64"]),
    "efficientnet_b0": (1_280, 32, 3, ["train.batch_size=64"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    common = load_params(ROOT / "params.yaml", [*PLAIN, *arguments.overrides]).train
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gpu.py does this on a GPU
    before_torch(common.threads, common.reproducible)
    import torch

    from bare import bare_training, real_training

    after_torch(common.threads, common.reproducible)
    print(f"{machine()}, {common.threads} threads\n")
    print_header("model", "bare loop, images/s", "real training, images/s", "ratio", "equal weights")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            count, size, channels, own = MODELS[name]
            processed = write_packed(Path(folder, name), count, size, channels)
            params = load_params(
                ROOT / "params.yaml",
                [*PLAIN, f"model.name={name}", "model.pretrained=false", *own, *arguments.overrides],
            )
            weights: dict[str, list[torch.Tensor]] = {}

            def bare() -> float:
                rate, network = bare_training(processed, params)  # noqa: B023
                weights["bare"] = list(network.parameters())  # noqa: B023
                return rate

            def real() -> float:
                rate, result = real_training(processed, params)  # noqa: B023
                if result.card.training.epoch == params.train.epochs:  # noqa: B023
                    weights["real"] = list(result.network.parameters())  # noqa: B023
                return rate

            measured = in_turns({"bare": bare, "real": real}, arguments.turns)
            same = all(map(torch.equal, weights["bare"], weights["real"])) if "real" in weights else "not kept"
            rates = [f"{statistics.median(measured[which]):,.0f}" for which in ("bare", "real")]
            print_row(f"`{name}`", *rates, f"{ratio(measured['real'], measured['bare']):.3f}", same)


if __name__ == "__main__":
    with one_line_errors():
        main()
