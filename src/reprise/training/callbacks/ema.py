"""A moving average of the weights, measured on the validation split beside the weights themselves."""

import copy
from typing import Any

from lightning import LightningModule, Trainer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from reprise.training.steps import BatchObserver


class WeightAverage(BatchObserver):
    """Exponential moving average of a network's weights and buffers, one update for each optimizer step.

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

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Move the average to the network's device."""
        self.average.to(pl_module.device)
        self.metrics = copy.deepcopy(pl_module.val_metrics)

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Update the average if the optimizer has stepped."""
        if trainer.global_step > self.updates:
            self.updates = trainer.global_step
            self.average.update(pl_module.net, step=self.updates)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Measure the averaged network on the batch, too."""
        own, pl_module.net = pl_module.net, self.average.module
        try:
            self.metrics.add(*pl_module.forward_loss(batch))
        finally:
            pl_module.net = own

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the means over the split."""
        loss, accuracy = self.metrics.compute()
        pl_module.log("val/loss_ema", loss)
        pl_module.log("val/acc_ema", accuracy)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to carry."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint carried."""
        self.updates = state_dict["updates"]
        self.average.module.load_state_dict(state_dict["weights"])
