"""What a person sees of a training: one plain line an epoch and, in a terminal, a live bar below them."""

import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from reprise.training.steps import BatchObserver


@dataclass(eq=False)
class Progress(BatchObserver):
    """Epoch, loss, validation accuracy and images/s, on the screen only: the rate is written nowhere.

    batch_size: images of a step, of all processes; steps: of an epoch. The loss is read from the device when the bar is
    redrawn, five times a second, not at every step.
    """

    batch_size: int
    steps: int
    stream: TextIO = field(default_factory=lambda: sys.stderr)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Open the bar, over all images of all epochs; a resumed training begins where it was."""
        self.bar = tqdm(
            total=self.steps * self.batch_size * int(trainer.max_epochs or 1),
            initial=trainer.global_step * pl_module.accumulate * self.batch_size,
            unit=" images",
            unit_scale=True,
            file=self.stream,
            mininterval=0.2,
            dynamic_ncols=True,
            leave=False,
            bar_format="{desc}|{bar}| {percentage:3.0f}%, {rate_fmt}, {remaining} left",
            disable=not self.stream.isatty(),
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.monotonic()
        self.images = 0

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Advance the bar by one batch."""
        self.images += self.batch_size
        if self.bar.update(self.batch_size):
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.bar.set_description_str(f"{epoch}  loss {float(loss) * pl_module.accumulate:.4f} ")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the epoch's clock: the rate counts training alone."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # it may be some steps behind
        self.seconds = time.monotonic() - self.started

    def epoch_ended(self, epoch: int, epochs: int, train_loss: float, val_accuracy: float, best: bool) -> None:
        """Print the epoch's line, above the bar where there is one."""
        line = f"epoch {epoch}/{epochs}  loss {train_loss:.4f}  val acc {val_accuracy:.4f}"
        rate = self.images / max(self.seconds, 1e-9)
        tqdm.write(f"{line}  {rate:,.0f} images/s{'  best so far' if best else ''}", file=self.stream)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the bar."""
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the bar before an error is printed."""
        if hasattr(self, "bar"):
            self.bar.close()
