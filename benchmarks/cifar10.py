"""CIFAR-10 from the archive of its 60,000 JPEGs: the time to 90 % test accuracy on two cores, of two recipes.

    python benchmarks/cifar10.py cifar10-images.tar.gz --recipe first

Trains the network of the preset cifar10-resnet by that preset's recipe (`improved`), or by a plain one (`first`), and
tests after each epoch of the second half (the averaged weights, with `train.ema`), by each image alone and with its
mirror image; the seconds are those of training and validation, the tests apart. The claim: `improved`, for 11 epochs
(`train.epochs=11`), passes what `first` ends at, 0.873, in two thirds of its time (0.52 and 0.54 with other work
allowed for, one run each). 90 % takes a wider network: on cores that multiply matrices in bf16, 26 minutes at most by
the images alone, 11 with their mirror images, which takes `first` 19; in fp32 with AVX2, 133 (one run each).
"""

import argparse
import tempfile
import time
from pathlib import Path

from measure import ROOT, machine
from reprise.data.download.sources import download
from reprise.data.prepare.prepare import preprocess
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch, cpus
from reprise.runtime.errors import one_line_errors

RECIPES = {
    "first": [
        "train.epochs=15",
        "train.batch_size=128",
        "train.optimizer=sgd",
        "train.optimizer_kwargs={}",
        "train.lr=0.1",
        "train.weight_decay=0.0005",
        "train.label_smoothing=0",
        "train.schedule_kwargs={}",
        "train.start_size=null",
        "train.augment.crop=4",
    ],
    "improved": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--recipe", choices=list(RECIPES), default="improved")
    arguments = parser.parse_intermixed_args()  # overrides may follow --recipe
    overrides = [*RECIPES[arguments.recipe], *arguments.overrides]
    params = load_params(ROOT / "params.yaml", overrides, ROOT / "presets/cifar10-resnet.yaml")
    before_torch(params.train.threads, params.train.reproducible)

    import torch
    from lightning import Callback, LightningModule, Trainer
    from torchvision.transforms.v2 import RandomHorizontalFlip

    from reprise.data.formats.packed import load_metadata, load_split
    from reprise.evaluation.evaluate import predict
    from reprise.loader.batches import EvalBatches
    from reprise.model.backbone import create_network
    from reprise.training.callbacks.ema import WeightAverage
    from reprise.training.train import Options, train

    after_torch(params.train.threads, params.train.reproducible)
    print(f"{machine()}\n{' '.join(overrides)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        raw, processed = Path(folder, "raw"), Path(folder, "processed")
        own = {"name": "archive", "path": str(arguments.archive.resolve())}
        download(params.data.model_copy(update=own), raw, Path(folder, "downloads"))
        preprocess(raw, processed, params.data, cpus())
        metadata = load_metadata(processed)
        tested, _ = create_network(params.model, metadata, params.train.seed)
        test = EvalBatches(load_split(processed, "test"), metadata, params.evaluate.batch_size)

        mirrored = torch.nn.Sequential(RandomHorizontalFlip(p=1), tested)

        def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
            return (scores.argmax(1) == labels).double().mean().item()

        class Clock(Callback):
            """Tests after each epoch of the second half, and says after how many seconds, those of the tests apart."""

            def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                self.begun = time.perf_counter()

            def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
                if trainer.current_epoch < params.train.epochs // 2:
                    return
                now = time.perf_counter()
                average = next((each for each in trainer.callbacks if isinstance(each, WeightAverage)), None)
                tested.load_state_dict(average.weights if average else pl_module.net.state_dict())
                logits, labels = predict(tested, test, "cpu")
                both = logits.softmax(1) + predict(mirrored, test, "cpu")[0].softmax(1)
                scores = f"{accuracy(logits, labels):.4f}, mirrored as well {accuracy(both, labels):.4f}"
                print(f"{now - self.begun:.0f} s: test accuracy {scores}", flush=True)
                self.begun += time.perf_counter() - now

        result = train(processed, params.model, params.train, options=Options(callbacks=[Clock()]))
    print(result.summary())


if __name__ == "__main__":
    with one_line_errors():
        main()
