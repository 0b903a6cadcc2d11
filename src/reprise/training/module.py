"""The Lightning modules: `LitClassifier` for any network, `MNISTLitModule` with the defaults for MNIST.

Both work in any Lightning `Trainer`, with an ordinary DataLoader of (images, labels) or `PackedDataModule`. Methods,
metrics and arguments are called as in lightning-hydra-template.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MaxMetric, MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from reprise.augment.functional import one_hot
from reprise.loader.batches import IGNORE_INDEX, mask_outputs
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.errors import UserError

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], Any]
ADAMW = partial(torch.optim.AdamW, lr=1e-3)
PLATEAU = partial(ReduceLROnPlateau, factor=0.1, patience=10)


class LitClassifier(LightningModule):
    """Train, validate and test a network that maps images (N, C, H, W) to logits (N, num_classes).

    optimizer: from parameters to an optimizer. scheduler: from that optimizer to a learning rate schedule, or None;
    it steps every `interval` and, if it watches a metric, watches `monitor` (its mode must fit: min for a loss). Loss
    and accuracy of an epoch are averages over its samples; `val_acc_best` is the best validation accuracy so far.
    Targets equal to IGNORE_INDEX count nowhere. Labels are smoothed, and bf16 is mixed in, in training only, so
    validation and test metrics mean the same for every setting. compile: `torch.compile` the network when a fit begins.

    A checkpoint of a `TIMMBackbone` loads by its path alone; net may be the arguments that it keeps. Of an optimizer or
    schedule that was given it keeps a description: give them again to train on.
    """

    def __init__(
        self,
        net: nn.Module | dict[str, Any],
        num_classes: int,
        optimizer: OptimizerFactory | str = ADAMW,
        scheduler: ScheduleFactory | str | None = PLATEAU,
        monitor: str = "val/loss",
        interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"], logger=False)
        self.net = net if isinstance(net, nn.Module) else TIMMBackbone(pretrained=False, **net)
        if isinstance(self.net, TIMMBackbone):
            self.hparams["net"] = self.net.arguments
        for name, factory, default in (("optimizer", optimizer, ADAMW), ("scheduler", scheduler, PLATEAU)):
            if factory is not default:
                self.hparams[name] = None if factory is None else str(factory)
        self.precision = precision
        self.optimizer: Any = optimizer
        self.scheduler: Any = scheduler
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=IGNORE_INDEX)
        self.own_loss: Any = None  # of training, in place of cross-entropy
        self.plain_criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
        # NaN shows in the mean; "disable", which should do that, takes no weights in torchmetrics 1.9
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy=math.nan) for _ in range(3))
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro", validate_args=False)
        self.train_acc, self.val_acc, self.test_acc = (accuracy() for _ in range(3))
        self.val_acc_best = MaxMetric()
        self.val_acc_best.persistent(True)

    mask_outputs = staticmethod(mask_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.net(x)

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch loss (), predicted classes and labels (M,), without padding; of soft labels the largest."""
        loss, logits, labels = self.forward_loss(batch)
        return loss, *self.mask_outputs(logits.argmax(dim=1), labels)

    def model_step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `step` returns; every training, validation and test step goes through it."""
        return self.step(batch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a training batch."""
        return self._counted_step(batch, self.train_loss, self.train_acc)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a validation batch."""
        return self._counted_step(batch, self.val_loss, self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a test batch."""
        return self._counted_step(batch, self.test_loss, self.test_acc)

    def predict_step(self, batch: Tensor | Sequence[Tensor], batch_idx: int) -> Tensor:
        """Return logits (M, num_classes) of images (N, C, H, W), or of a batch of images and labels without padding."""
        if isinstance(batch, Tensor):
            return self.forward(batch)
        images, labels = batch
        logits = self.forward(images)
        return self.mask_outputs(logits, labels)[0] if labels.ndim == 1 else logits

    def forward_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss (), logits (N, num_classes) and labels (N,).

        Soft targets (N, num_classes), of mixed images, count as the class with most of it; all zero, they are padding.
        """
        images, targets = batch
        mixed = self.training and self.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16) if mixed else nullcontext():
            logits = self.forward(images)
        logits = logits.float()
        criterion = self.criterion if self.training else self.plain_criterion
        own_loss = self.own_loss if self.training else None
        if targets.ndim == 1 and own_loss is None:
            return criterion(logits, targets), logits, targets
        targets = targets if targets.ndim == 2 else one_hot(targets, logits.shape[1])
        counted = targets.any(dim=1)
        weight, smoothing = criterion.weight, criterion.label_smoothing
        if own_loss is None:
            losses = cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="none")
        else:
            losses = own_loss(logits, (1 - smoothing) * targets + smoothing / logits.shape[1])
            losses = losses if weight is None else losses * (targets @ weight)
        # with class weights a mean over those of the labels, as for labels that are not mixed
        weights = counted.sum() if weight is None else (targets @ weight).sum()
        loss = torch.where(counted, losses, 0).sum() / weights
        return loss, logits, torch.where(counted, targets.argmax(dim=1), IGNORE_INDEX)

    def _counted_step(self, batch: tuple[Tensor, Tensor], mean_loss: Metric, accuracy: Metric) -> dict[str, Tensor]:
        loss, preds, targets = self.model_step(batch)
        if len(targets):
            mean_loss.update(loss.detach(), len(targets))
            accuracy.update(preds, targets)
        return {"loss": loss, "preds": preds, "targets": targets}

    def setup(self, stage: str) -> None:
        """Compile the network before a fit, if asked for, under its own names; begin with empty means.

        torchmetrics' means that a `Trainer.validate` has left cannot be updated in a fit: they are inference tensors.
        """
        for means in (self.train_loss, self.train_acc, self.val_loss, self.val_acc, self.test_loss, self.test_acc):
            means.reset()
        if self.hparams["compile"] and stage == "fit":
            self.net.compile()

    def on_train_start(self) -> None:
        """Forget what the sanity check has left in `val_acc_best`; before a fit that goes on, there is none."""
        if not self.trainer.global_step:
            self.val_acc_best.reset()

    def on_train_epoch_end(self) -> None:
        """Log train/loss and train/acc of the epoch."""
        self._log_epoch("train", self.train_loss, self.train_acc)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, val/acc and val/acc_best."""
        self.val_acc_best.update(self._log_epoch("val", self.val_loss, self.val_acc))
        self.log("val/acc_best", self.val_acc_best.compute(), prog_bar=True)

    def on_test_epoch_end(self) -> None:
        """Log test/loss and test/acc."""
        self._log_epoch("test", self.test_loss, self.test_acc)

    def _log_epoch(self, split: str, mean_loss: Metric, accuracy: Metric) -> Tensor:
        """Log mean loss and accuracy of an epoch, which Lightning then resets; return the accuracy, ()."""
        self.log(f"{split}/loss", mean_loss, prog_bar=True)
        self.log(f"{split}/acc", accuracy, prog_bar=True)
        return accuracy.compute()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, the schedule with what it monitors."""
        if isinstance(self.optimizer, str) or isinstance(self.scheduler, str):
            wanted = f"load_from_checkpoint(path, optimizer={self.optimizer}, scheduler={self.scheduler})"
            raise UserError(f"a checkpoint does not hold these; to train on, give them: {wanted}")
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return {"optimizer": optimizer}
        watched = {name: self.hparams[name] for name in ("monitor", "interval")}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), **watched}}


class MNISTLitModule(LitClassifier):
    """`LitClassifier` for ten digits, e.g. `net=TIMMBackbone("resnet18", False, num_classes=10, in_chans=1)`."""

    def __init__(
        self,
        net: nn.Module | dict[str, Any],
        optimizer: OptimizerFactory | str = ADAMW,
        scheduler: ScheduleFactory | str | None = PLATEAU,
        compile: bool = False,
        num_classes: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(net, num_classes, optimizer, scheduler, compile=compile, **kwargs)
