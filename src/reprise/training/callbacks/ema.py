"""A moving average of the weights, measured on the validation split beside the weights themselves."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from reprise.training.module import LOSS_UNIT
from reprise.training.steps import BatchObserver


class WeightAverage(BatchObserver):
    """Exponential moving average of a network's weights and buffers, one update a step of the optimizer.

    The decay grows with the steps, up to the one given, so that short trainings gain too (timm's ModelEmaV3). Logs
    val/loss_ema and val/acc_ema: the same module, on the same validation batches, with the averaged network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.average = ModelEmaV3(network, decay, use_warmup=True)
        self.updates = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged state, under the network's own names."""
        return self.average.module.state_dict()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the network to its device."""
        self.average.to(pl_module.device)

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Update the average if the optimizer has stepped."""
        if trainer.global_step > self.updates:
            self.updates = trainer.global_step
            self.average.update(pl_module.net, step=self.updates)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count anew."""
        # whole LOSS_UNITs, right, images: exact, in whatever order and over however many processes
        self.sums = torch.zeros(3, dtype=torch.float64, device=pl_module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let the module make its step with the averaged network too."""
        own, pl_module.net = pl_module.net, self.average.module
        try:
            with trainer.precision_plugin.val_step_context():
                loss, preds, targets = pl_module.step(batch)
        finally:
            pl_module.net = own
        if images := len(targets):
            units = (loss.double() / LOSS_UNIT).round() * images
            self.sums += torch.stack([units, (preds == targets).sum(), loss.new_tensor(images)])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the split."""
        sums = trainer.strategy.reduce(self.sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        loss, right, images = sums
        pl_module.log("val/loss_ema", (loss * LOSS_UNIT / images).float())
        pl_module.log("val/acc_ema", (right / images).float())

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to carry."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint carried."""
        self.updates = state_dict["updates"]
        self.average.module.load_state_dict(state_dict["weights"])
