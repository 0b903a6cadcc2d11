"""A loss that is not a finite number stops the training with one clear line; no step waits for the device over it."""

import math

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from reprise.runtime.errors import UserError
from reprise.training.steps import BatchObserver


class FiniteLoss(BatchObserver):
    """Stops at a loss that is not a finite number, before it reaches a checkpoint or the best epoch's weights.

    Reading a loss makes the host wait for the device, so losses are looked at together: every so many steps, at an
    epoch's end and, by `check`, before a checkpoint.
    """

    def __init__(self, lr: float, every: int = 32) -> None:
        self.lr = lr
        self.every = every
        self.losses: list[Tensor] = []
        self.steps: list[int] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Put the loss aside, with the optimizer step that it is part of."""
        self.losses.append(loss.detach())
        self.steps.append(trainer.global_step + 1)
        if len(self.losses) >= self.every:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is left of the epoch."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise UserError, naming epoch and step, if a loss since the last check was not finite."""
        losses, steps = torch.stack(self.losses).tolist() if self.losses else [], self.steps
        self.losses, self.steps = [], []
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} in epoch {trainer.current_epoch + 1}, step {step}; "
                    "nothing was published, the last good checkpoint is kept. "
                    f"Lower train.lr (now {self.lr:g}), or look for broken images or labels"
                )
