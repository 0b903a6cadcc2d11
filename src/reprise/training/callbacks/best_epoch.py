"""What every epoch reached, and the weights of the one that validates best, averaged or not."""

import csv
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from reprise.params.schema import TrainParams
from reprise.runtime.errors import UserError
from reprise.training.callbacks.ema import WeightAverage
from reprise.training.callbacks.progress import Progress


@dataclass(frozen=True)
class EpochRow:
    """One line of the history: epoch counts from 1, lr is the one at its end, accuracies are top-1 in 0..1.

    With a frozen backbone a line is one head of a path, lr is 0, and strength is the head's.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_loss_ema: float | None = None
    val_accuracy_ema: float | None = None
    strength: float | None = None

    def of_weights(self, averaged: bool) -> "EpochRow":
        """Return the row with the validation of the averaged weights, or of the weights themselves, alone."""
        row = replace(self, val_loss_ema=None, val_accuracy_ema=None)
        if not averaged:
            return row
        assert self.val_loss_ema is not None and self.val_accuracy_ema is not None
        return replace(row, val_loss=self.val_loss_ema, val_accuracy=self.val_accuracy_ema)

    def rounded(self) -> dict[str, float]:
        """Return the row with six significant digits, as it is written to files."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if name == "epoch" else float(f"{value:.6g}") for name, value in given.items()}


def write_history(history: list[EpochRow], path: Path) -> None:
    """Write the rows as CSV, a line for each epoch."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = [row.rounded() for row in history]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@dataclass(eq=False)
class BestEpoch(Checkpoint):
    """Keeps the history and a copy of the best weights so far, averaged or not, and stops a training that stalls.

    Best is the highest validation accuracy, then the lowest loss, or with `train.select: val_loss` the lowest loss,
    then the highest accuracy. course: where the history so far is written after each epoch.

    Lightning calls a `Checkpoint` after the module has logged the epoch's metrics, any other callback before.
    """

    progress: Progress
    params: TrainParams
    average: WeightAverage | None = None
    course: Path | None = None
    history: list[EpochRow] = field(default_factory=list, init=False)
    epoch: int = field(default=0, init=False)
    averaged: bool = field(default=False, init=False)
    weights: dict[str, Tensor] = field(default_factory=dict, init=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row; copy the weights if they are the best so far; stop if they have not been for too long."""
        names = ("train/loss", "train/acc", "val/loss", "val/acc", "val/loss_ema", "val/acc_ema")
        metrics = [float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics]
        rate = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        row = EpochRow(trainer.current_epoch + 1, rate, *metrics)
        if not math.isfinite(row.val_loss):
            raise UserError(f"the validation loss became {row.val_loss} in epoch {row.epoch}; lower train.lr")
        averaged = self.average is not None and self._rank(row, True) > self._rank(row, False)
        weights = self.average.weights if self.average and averaged else pl_module.net.state_dict()  # type: ignore
        best = self.add(row, weights, averaged)
        trainer.should_stop = self.is_over()
        accuracy = row.of_weights(averaged).val_accuracy
        self.progress.epoch_ended(row.epoch, trainer.max_epochs or 0, row.train_loss, accuracy, best)

    def add(self, row: EpochRow, weights: dict[str, Tensor], averaged: bool = False) -> bool:
        """Add a row; copy the weights, averaged or not, if they are the best so far, and say whether they are."""
        best = not self.history or self._rank(row, averaged) > self._rank(self.history[self.epoch - 1], self.averaged)
        self.history.append(row)
        if self.course:
            write_history(self.history, self.course)
        if best:
            self.epoch, self.averaged = row.epoch, averaged
            self.weights = {name: tensor.clone() for name, tensor in weights.items()}
        return best

    def is_over(self) -> bool:
        """Say whether the best epoch, and the last with a frozen backbone, are `train.early_stopping` epochs ago."""
        patience, since = self.params.early_stopping, max(self.epoch, self.params.freeze_epochs)
        return patience is not None and len(self.history) - since >= patience

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
        """Restore what a checkpoint carried."""
        self.epoch, self.averaged = state_dict["epoch"], state_dict["averaged"]
        self.weights = state_dict["weights"]
        self.history = [EpochRow(**row) for row in state_dict["history"]]
        if self.average:
            self.average.load_state_dict(state_dict["average"])

    def _rank(self, row: EpochRow, averaged: bool) -> tuple[float, float]:
        """Return what epochs are compared by: the larger is the better."""
        row = row.of_weights(averaged)
        rank = row.val_accuracy, -row.val_loss
        return rank if self.params.select == "val_accuracy" else rank[::-1]
