"""A loss that is not a finite number stops the training with one clear line; no step waits for the device over it."""

import math
from dataclasses import dataclass, field

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.training.steps import BatchObserver


@dataclass(eq=False)
class FiniteLoss(BatchObserver):
    """Stops at a loss that is not a finite number, before it reaches a checkpoint or the best epoch's weights.

    Reading a loss makes the host wait for the device, so losses are checked together: every so many steps, at an
    epoch's end and, by `check`, before a checkpoint.
    """

    lr: float
    every: int = 32
    pending: list[tuple[int, Tensor]] = field(default_factory=list, init=False)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Put the loss aside, with the number of the optimizer step that it is part of, from 1."""
        self.pending.append((trainer.global_step + 1, loss.detach()))
        if len(self.pending) >= self.every:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the epoch's remaining losses."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise UserError, naming epoch and step, if a loss since the last check was not finite."""
        pending, self.pending = self.pending, []
        losses = torch.stack([loss for _, loss in pending]).tolist() if pending else []
        for (step, _), loss in zip(pending, losses, strict=True):
            if not math.isfinite(loss):
                where = f"the loss became {loss} in epoch {trainer.current_epoch + 1}, step {step}"
                way_out = f"Lower train.lr (now {self.lr:g}), or look for broken images or labels"
                raise UserError(f"{where}; nothing was published, the last good checkpoint is kept. {way_out}")
