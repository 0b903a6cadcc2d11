"""What every epoch reached, and the weights of the one that validates best, averaged or not."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.training.callbacks.ema import WeightAverage
from reprise.training.callbacks.progress import Progress


@dataclass(frozen=True)
class EpochRow:
    """One line of the history: epoch counts from 1, lr is the one at its end, accuracies are top-1 in 0..1."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_loss_ema: float | None = None
    val_accuracy_ema: float | None = None

    def averaged(self) -> "EpochRow":
        """Return the row of the averaged weights alone."""
        assert self.val_loss_ema is not None
        assert self.val_accuracy_ema is not None
        return EpochRow(
            self.epoch, self.lr, self.train_loss, self.train_accuracy, self.val_loss_ema, self.val_accuracy_ema
        )

    def rounded(self) -> dict[str, float]:
        """Return the row with six significant digits, as it is written to files."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if name == "epoch" else float(f"{value:.6g}") for name, value in facts.items()}


class BestEpoch(Checkpoint):
    """Keeps the history and a copy of the best weights so far, averaged or not, and stops a training that stalls.

    Best is the highest validation accuracy, then the lowest loss, or with `select` val_loss the lowest loss, then the
    highest accuracy. Lightning calls a `Checkpoint` after the module has logged the epoch's metrics, any other callback
    before.
    """

    def __init__(
        self,
        progress: Progress,
        select: Literal["val_accuracy", "val_loss"] = "val_accuracy",
        patience: int | None = None,
        average: WeightAverage | None = None,
        freeze_epochs: int = 0,
    ) -> None:
        self.progress = progress
        self.select = select
        self.patience = patience
        self.average = average
        self.freeze_epochs = freeze_epochs
        self.history: list[EpochRow] = []
        self.epoch = 0
        self.averaged = False
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row; copy the weights if they are the best so far; stop if they have not been for too long."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = EpochRow(
            epoch=trainer.current_epoch + 1,
            lr=max(group["lr"] for group in trainer.optimizers[0].param_groups),
            train_loss=metrics["train/loss"],
            train_accuracy=metrics["train/acc"],
            val_loss=metrics["val/loss"],
            val_accuracy=metrics["val/acc"],
            val_loss_ema=metrics.get("val/loss_ema"),
            val_accuracy_ema=metrics.get("val/acc_ema"),
        )
        if not math.isfinite(row.val_loss):
            raise UserError(f"the validation loss became {row.val_loss} in epoch {row.epoch}; lower train.lr")
        best_so_far = self._goodness(self.history[self.epoch - 1], self.averaged) if self.history else None
        averaged = self.average is not None and self._goodness(row, True) > self._goodness(row, False)
        best = best_so_far is None or self._goodness(row, averaged) > best_so_far
        self.history.append(row)
        if best:
            self.epoch, self.averaged = row.epoch, averaged
            weights = self.average.weights if self.average and averaged else pl_module.net.state_dict()  # type: ignore
            self.weights = {name: tensor.clone() for name, tensor in weights.items()}
        trainer.should_stop = self.is_over()
        reached = row.averaged() if averaged else row
        self.progress.epoch_ended(row.epoch, trainer.max_epochs or 0, row.train_loss, reached.val_accuracy, best)

    def is_over(self) -> bool:
        """Say whether the best epoch, and the thaw of a frozen backbone, are as long ago as patience lasts."""
        return self.patience is not None and len(self.history) - max(self.epoch, self.freeze_epochs) >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to carry."""
        return {
            "epoch": self.epoch,
            "averaged": self.averaged,
            "weights": self.weights,
            "history": [asdict(row) for row in self.history],
            "average": self.average.state_dict() if self.average else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint carried."""
        self.epoch, self.averaged = state_dict["epoch"], state_dict["averaged"]
        self.weights = state_dict["weights"]
        self.history = [EpochRow(**row) for row in state_dict["history"]]
        if self.average:
            self.average.load_state_dict(state_dict["average"])

    def _goodness(self, row: EpochRow, averaged: bool) -> tuple[float, float]:
        row = row.averaged() if averaged else row
        goodness = row.val_accuracy, -row.val_loss
        return goodness if self.select == "val_accuracy" else goodness[::-1]
