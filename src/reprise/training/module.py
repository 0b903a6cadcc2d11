"""The Lightning modules: `LitClassifier` for any network, `MNISTLitModule` with the defaults for MNIST.

Both work in a plain Lightning `Trainer` with an ordinary DataLoader of (images, labels), and in the pipeline.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed import all_reduce, get_rank, get_world_size, is_available, is_initialized
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MaxMetric

from reprise.loader.batches import IGNORE_INDEX, mask_outputs
from reprise.runtime.device import to_device

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]

PENDING_BATCHES = 64
PENDING_LOGITS = 1 << 22  # 16 MiB
LOSS_UNIT = 2.0**-30


class EpochMetrics(nn.Module):
    """Mean loss and accuracy over an epoch's samples, counted on the device and read once, at its end.

    Batches are kept pending and counted together, so a step costs next to nothing. counts, int64 (3, num_classes): how
    often a class was right, labeled, predicted, which is the confusion matrix's diagonal and margins: accuracy,
    recall, precision and F1 follow from them, and they stay small for thousands of classes. loss: a sum in whole
    LOSS_UNITs, so up to 2^23 it is exact and does not depend on which batches were counted together.
    """

    counts: Tensor
    loss: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.pending_logits = 0
        self.num_classes = num_classes
        # a checkpoint in the middle of an epoch carries what has been counted
        self.register_buffer("counts", torch.zeros(3, num_classes, dtype=torch.int64))
        self.register_buffer("loss", torch.zeros((), dtype=torch.float64))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the buffers with every batch counted."""
        self.count()
        return super().state_dict(*args, **kwargs)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take a batch: its mean loss (), logits (N, num_classes), labels (N,), which may be IGNORE_INDEX."""
        self.pending.append((loss.detach(), logits.detach(), labels))
        self.pending_logits += logits.numel()
        if len(self.pending) >= PENDING_BATCHES or self.pending_logits >= PENDING_LOGITS:
            self.count()

    def count(self) -> None:
        """Count the pending batches."""
        if not self.pending:
            return
        losses, logits, labels = zip(*self.pending, strict=True)
        sizes = to_device(torch.tensor([len(batch) for batch in labels]), self.loss.device)
        per_sample = torch.stack(losses).double().repeat_interleave(sizes, output_size=sum(map(len, labels)))
        predicted, label = torch.cat(logits).argmax(dim=1), torch.cat(labels)
        counted = label != IGNORE_INDEX
        self.loss += torch.where(counted, per_sample / LOSS_UNIT, 0.0).round().sum()
        dropped = self.num_classes  # a class of its own: selecting would wait for the device, and so would `bincount`
        right = torch.where(counted & (predicted == label), label, dropped)
        labeled, claimed = torch.where(counted, label, dropped), torch.where(counted, predicted, dropped)
        places = torch.cat([classes + row * (dropped + 1) for row, classes in enumerate((right, labeled, claimed))])
        # one-dimensional, for then CUDA adds deterministically
        counts = torch.zeros(3 * (dropped + 1), dtype=torch.int64, device=self.counts.device)
        self.counts += counts.scatter_add_(0, places, torch.ones_like(places)).view(3, -1)[:, :-1]
        self.pending.clear()
        self.pending_logits = 0

    def merge(self, onto_first: bool = False) -> None:
        """Sum the counts over the processes of a training; onto_first: the first has the sum, the others zeros."""
        self.count()
        if is_available() and is_initialized() and get_world_size() > 1:
            for sums in (self.counts, self.loss):
                all_reduce(sums)
                if onto_first and get_rank():
                    sums.zero_()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy over all processes, NaN before the first sample, and reset."""
        self.merge()
        right, labeled, _ = self.counts.sum(dim=1)
        loss, accuracy = self.loss * LOSS_UNIT / labeled, right / labeled
        self.reset()
        return loss.float(), accuracy

    def reset(self) -> None:
        """Set all counts to zero."""
        self.counts.zero_()
        self.loss.zero_()


class LitClassifier(LightningModule):
    """Train, validate and test a network that maps images (N, C, H, W) to logits (N, num_classes).

    optimizer: from parameters to an optimizer. scheduler: from that optimizer to a learning rate schedule, or None;
    it steps every `interval` and, if it watches a metric, watches `monitor` (its mode must fit: min for a loss). Loss
    and accuracy of an epoch are averages over its samples; `val_acc_best` is the best validation accuracy so far.
    Targets equal to IGNORE_INDEX count nowhere. Labels are smoothed, and bf16 is mixed in, in training only, so
    validation and test metrics mean the same for every setting.
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
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "optimizer", "scheduler"], logger=False)
        self.net = net
        self.precision = precision
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing, ignore_index=IGNORE_INDEX)
        self.plain_criterion = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX)
        self.train_metrics, self.val_metrics, self.test_metrics = (EpochMetrics(num_classes) for _ in range(3))
        self.val_acc_best = MaxMetric()
        self.val_acc_best.persistent(True)

    mask_outputs = staticmethod(mask_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    def step(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch loss (), predicted classes and labels (M,), without padding; of soft labels the largest."""
        loss, logits, labels = self.forward_loss(batch)
        return loss, *self.mask_outputs(logits.argmax(dim=1), labels)

    def learn(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a training batch and count it: a `training_step` that never waits for the device."""
        loss, logits, labels = self.forward_loss(batch)
        self.train_metrics.add(loss, logits, labels)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a training batch."""
        return self._counted_step(batch, self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a validation batch."""
        return self._counted_step(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a test batch."""
        return self._counted_step(batch, self.test_metrics)

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
        if targets.ndim == 1:
            return criterion(logits, targets), logits, targets
        counted = targets.any(dim=1)
        weight, smoothing = criterion.weight, criterion.label_smoothing
        losses = cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="none")
        # with class weights a mean over those of the labels, as for labels that are not mixed
        weights = counted.sum() if weight is None else (targets @ weight).sum()
        loss = torch.where(counted, losses, 0).sum() / weights
        return loss, logits, torch.where(counted, targets.argmax(dim=1), IGNORE_INDEX)

    def _counted_step(self, batch: tuple[Tensor, Tensor], metrics: EpochMetrics) -> dict[str, Tensor]:
        loss, logits, labels = self.forward_loss(batch)
        metrics.add(loss, logits, labels)
        preds, targets = self.mask_outputs(logits.detach().argmax(dim=1), labels)
        return {"loss": loss, "preds": preds, "targets": targets}

    def on_train_start(self) -> None:
        """Forget what the sanity check left in `val_acc_best`; the other metrics are reset at each epoch's end."""
        self.val_acc_best.reset()

    def on_train_epoch_end(self) -> None:
        """Log train/loss and train/acc of the epoch."""
        self._log_epoch("train", self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss, val/acc and val/acc_best."""
        self.val_acc_best.update(self._log_epoch("val", self.val_metrics))
        self.log("val/acc_best", self.val_acc_best.compute(), prog_bar=True)

    def on_test_epoch_end(self) -> None:
        """Log test/loss and test/acc."""
        self._log_epoch("test", self.test_metrics)

    def _log_epoch(self, split: str, metrics: EpochMetrics) -> Tensor:
        """Log mean loss and accuracy of an epoch; return the accuracy, ()."""
        loss, accuracy = metrics.compute()
        self.log(f"{split}/loss", loss, prog_bar=True)
        self.log(f"{split}/acc", accuracy, prog_bar=True)
        return accuracy

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if there is one, the schedule with what it monitors."""
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return {"optimizer": optimizer}
        watched = {name: self.hparams[name] for name in ("monitor", "interval")}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), **watched}}


class MNISTLitModule(LitClassifier):
    """`LitClassifier` for ten digits, e.g. `net=TIMMBackbone("resnet18", False, num_classes=10, in_chans=1)`."""

    def __init__(self, net: nn.Module, num_classes: int = 10, **kwargs: Any) -> None:
        super().__init__(net, num_classes, **kwargs)
