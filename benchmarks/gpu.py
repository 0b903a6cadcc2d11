"""CIFAR-10 on a GPU: images/s beside the same network in a bare loop, and what two trainings reach in what time.

    python benchmarks/gpu.py cifar10-images.tar.gz [key=value ...]

Prints the chip. The claim: at least 0.97 of the bare loop with resnet8 at the widths of airbench94 (1.57 on an H200,
median of 3 turns). 94 % was not reached, on JPEG copies: see benchmarks/README.md. Without a GPU it says so and ends.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, in_turns, machine, print_header, print_row, ratio
from reprise.data.download.sources import download
from reprise.data.prepare.prepare import preprocess
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch, cpus
from reprise.runtime.errors import one_line_errors

PRESET = ROOT / "presets/cifar10-resnet.yaml"
RECIPE = ["train.batch_size=512", "train.lr=0.8", "train.reproducible=off"]
RECIPE += ["train.optimizer=sgd", "train.optimizer_kwargs={}", "train.weight_decay=0.001", "train.start_size=null"]
RECIPE += ["train.schedule_kwargs={anneal_strategy: linear, pct_start: 0.2}", "train.label_smoothing=0.1"]
RECIPE += ["train.precision=bf16"]  # named, for the bare loop takes it as it stands
NARROW, WIDE = ["model.kwargs.widths=[64,256,256]"], ["model.kwargs.widths=[128,384,512]"]
ALIKE = [*RECIPE, *NARROW, "train.epochs=4", "train.augment.crop=0", "train.augment.flip=false"]
SHORT = [*RECIPE, *NARROW, "train.epochs=10"]
LONG = [*RECIPE, *WIDE, "train.epochs=40", "train.weight_decay=0.0005"]
LONG += ["train.augment.crop=4", "train.augment.cutout=0.375"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_intermixed_args()  # overrides may follow --turns
    alike, short, long = (
        load_params(ROOT / "params.yaml", [*given, *arguments.overrides], PRESET) for given in (ALIKE, SHORT, LONG)
    )
    before_torch(alike.train.threads, alike.train.reproducible)
    import torch

    if not torch.cuda.is_available():
        sys.exit("no GPU here: nothing measured")
    from bare import bare_training, real_training
    from reprise.evaluation.evaluate import evaluate
    from reprise.training.train import train

    after_torch(alike.train.threads, alike.train.reproducible)
    print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        raw, processed = Path(temporary, "raw"), Path(temporary, "processed")
        own = ["data.name=archive", f"data.path={arguments.archive.resolve()}"]
        data = load_params(ROOT / "params.yaml", own, PRESET).data
        download(data, raw, Path(temporary, "downloads"))
        preprocess(raw, processed, data, cpus())

        contenders = {
            "bare": lambda: bare_training(processed, alike, "cuda")[0],
            "real": lambda: real_training(processed, alike)[0],
        }
        measured = in_turns(contenders, arguments.turns)
        print_header("`resnet8` on CIFAR-10", "")
        for name, rates in measured.items():
            print_row(f"{name}, images/s", f"{statistics.median(rates):,.0f}")
        print_row("ratio (bar: 0.97)", f"{ratio(measured['real'], measured['bare']):.3f}")
        for params in (short, long):
            started = time.perf_counter()
            result = train(processed, params.model, params.train)
            seconds = time.perf_counter() - started
            reached = evaluate(result.network, result.card, processed, 1000, 15).metrics["accuracy"]
            row = f"{params.train.epochs} epochs, widths {params.model.kwargs['widths']}: seconds, test accuracy"
            print_row(row, f"{seconds:.1f}, {reached}")


if __name__ == "__main__":
    with one_line_errors():
        main()
