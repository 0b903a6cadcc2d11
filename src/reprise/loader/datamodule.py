"""Prepared data for any Lightning Trainer: `PackedDataModule("data/processed", batch_size=64)`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from torch import Tensor

from reprise.data.formats.packed import Split, load_metadata, load_split
from reprise.loader.batches import ALONE, EvalBatches, Process, TrainBatches, mask_outputs
from reprise.params.schema import AugmentParams, TrainParams


class PackedDataModule(LightningDataModule):
    """The splits of prepared data in normalized batches: images, float32 (N, C, H, W), and labels, int64 (N,).

    folder: what `preprocess` has written, with `metadata`; batch_size: of each process. augment: of training,
    such as `load_params("params.yaml").train.augment`; None: no augmentation; mixup and cutmix soften labels.
    Of several processes each has its part, in evaluation filled up with labels IGNORE_INDEX; one alone has no padding.
    Raises UserError as `load_split` and `TrainBatches` do.
    """

    def __init__(
        self, folder: Path | str, batch_size: int = 64, augment: AugmentParams | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        still: dict[str, Any] = dict.fromkeys(AugmentParams.model_fields, 0)
        still |= {"flip": False, "policy": "none", "own": []}
        given: dict[str, Any] = {"batch_size": batch_size, "augment": augment or AugmentParams(**still), "seed": seed}
        self.folder, self.params = Path(folder), TrainParams.model_construct(**given, balance="none")
        self.metadata = load_metadata(self.folder)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.metadata.classes)

    def train_dataloader(self) -> "WholeEpochs":
        """Return the training split: shuffled, augmented, without an incomplete last batch."""
        return WholeEpochs(load_split(self.folder, "train"), self.metadata, self.params, self.process())

    def val_dataloader(self) -> EvalBatches:
        """Return the validation split, in its own order."""
        return self._evaluation("val")

    def test_dataloader(self) -> EvalBatches:
        """Return the test split, in its own order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def process(self) -> Process:
        """Return this process's place in the trainer's processes; alone without a trainer."""
        if (trainer := self.trainer) is None:
            return ALONE
        on_gpu = trainer.strategy.root_device.type == "cuda"
        return Process("cuda" if on_gpu else "cpu", trainer.global_rank, trainer.world_size)

    def _evaluation(self, split: Split) -> EvalBatches:
        process = self.process()
        kind = EvalBatches if process.world > 1 else Unpadded
        return kind(load_split(self.folder, split), self.metadata, self.params.batch_size, process)


class WholeEpochs(TrainBatches):
    """`TrainBatches` whose number a Trainer may ask for: it resumes no epoch in its middle."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.steps


class Unpadded(EvalBatches):
    """`EvalBatches` whose last batch is as small as it comes."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, without padding."""
        for images, labels in super().__iter__():
            yield mask_outputs(images, labels)
