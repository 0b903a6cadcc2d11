"""The Lightning modules: `LitClassifier` for any network, `MNISTLitModule` with the defaults for MNIST.

Both work in a plain Lightning `Trainer` with an ordinary DataLoader of (images, labels), and in the pipeline.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import reprise.torchvision_repair  # noqa: F401

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from reprise.batches import IGNORE_INDEX, mask_outputs

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]


class LitClassifier(LightningModule):
    """Train, validate and test a network that maps images (N, C, H, W) to logits (N, num_classes).

    optimizer: from parameters to an optimizer. scheduler: from that optimizer to a learning rate schedule, or None;
    it steps every `interval` and, if it watches a metric, watches `monitor` (its mode must fit: min for a loss). Loss
    and accuracy of an epoch are averages over its samples; `val_acc_best` is the best validation accuracy so far.
    Targets equal to IGNORE_INDEX count nowhere. Labels are smoothed in training only, so validation and test losses
    mean the same for every setting.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=1e-3),
        scheduler: Callable[[Optimizer], Any] | None = partial(ReduceLROnPlateau, factor=0.1, patience=10),
        monitor: str = "val/loss",
        interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"], logger=False)
        self.net = net
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=IGNORE_INDEX)
        self.plain_criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
        # a loss that is not a number shall show in the mean, not be dropped from it
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        self.train_acc, self.val_acc, self.test_acc = (
            MulticlassAccuracy(num_classes, average="micro") for _ in range(3)
        )
        self.val_acc_best = MaxMetric()
        for metric in (self.train_loss, self.train_acc, self.val_acc_best):
            metric.persistent(True)  # a checkpoint in the middle of an epoch carries what it has counted

    mask_outputs = staticmethod(mask_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch loss and, padding dropped, predicted classes and targets.

        Soft targets (N, classes), of mixed images, enter the loss as they are; they count as the class with most of it.
        """
        images, targets = batch
        logits, targets = self.mask_outputs(self.forward(images), targets)
        loss = (self.criterion if self.training else self.plain_criterion)(logits, targets)
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return loss, logits.detach().argmax(dim=1), labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a training batch."""
        return self._counted_step(batch, self.train_loss, self.train_acc)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a validation batch."""
        return self._counted_step(batch, self.val_loss, self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a test batch."""
        return self._counted_step(batch, self.test_loss, self.test_acc)

    def _counted_step(
        self, batch: tuple[Tensor, Tensor], mean_loss: MeanMetric, accuracy: MulticlassAccuracy
    ) -> dict[str, Tensor]:
        loss, preds, targets = self.step(batch)
        if len(targets):
            # once per sample: with nan_strategy="disable", torchmetrics 1.9 overwrites a weight that is passed
            mean_loss.update(loss.detach().expand(len(targets)))
            accuracy.update(preds, targets)
        return {"loss": loss, "preds": preds, "targets": targets}

    def on_train_start(self) -> None:
        """Forget what the sanity check left in `val_acc_best`; the other metrics are reset at each epoch's end."""
        self.val_acc_best.reset()

    def on_train_epoch_end(self) -> None:
        """Log train/loss and train/acc of the epoch."""
        self._log_epoch("train", self.train_loss, self.train_acc)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, val/acc and val/acc_best."""
        self.val_acc_best.update(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), prog_bar=True)
        self._log_epoch("val", self.val_loss, self.val_acc)

    def on_test_epoch_end(self) -> None:
        """Log test/loss and test/acc."""
        self._log_epoch("test", self.test_loss, self.test_acc)

    def _log_epoch(self, split: str, mean_loss: MeanMetric, accuracy: MulticlassAccuracy) -> None:
        # computed values, not the metric objects: one log call an epoch instead of one a step
        self.log(f"{split}/loss", mean_loss.compute(), prog_bar=True)
        self.log(f"{split}/acc", accuracy.compute(), prog_bar=True)
        mean_loss.reset()
        accuracy.reset()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, the schedule with what it monitors."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return {"optimizer": optimizer}
        schedule = {
            "scheduler": self.scheduler(optimizer),
            "monitor": self.hparams["monitor"],
            "interval": self.hparams["interval"],
            "frequency": 1,
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class MNISTLitModule(LitClassifier):
    """`LitClassifier` for ten digits, e.g. `net=TIMMBackbone("resnet18", False, num_classes=10, in_chans=1)`."""

    def __init__(self, net: nn.Module, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(net, num_classes, **kwargs)
