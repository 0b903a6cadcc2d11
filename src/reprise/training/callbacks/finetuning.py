"""Fine-tuning: the classifier of a network and its backbone, which is everything else, and a frozen backbone."""

from dataclasses import dataclass

from lightning import Callback, LightningModule, Trainer
from torch import nn

from reprise.model.pretrained import classifier_prefixes
from reprise.runtime.errors import UserError


def classifier_parameters(network: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a timm model's classifier; none for another module."""
    prefixes = classifier_prefixes(network)
    return {weight for name, weight in network.named_parameters() if name.startswith(prefixes)}


class FixedNorms(Callback):
    """Leaves batch norms the statistics that they came with: those of small batches of few images are worse."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put all norms into evaluation mode, which Lightning leaves alone until the next epoch."""
        for module in pl_module.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                module.eval()


@dataclass(eq=False)
class FrozenBackbone(Callback):
    """Trains the classifier alone for the first epochs; norms of the backbone keep their statistics meanwhile.

    What is frozen follows from the epoch, so a checkpoint carries nothing of it.
    """

    network: nn.Module
    epochs: int

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze the backbone, or release it once the epochs are over."""
        frozen = trainer.current_epoch < self.epochs
        head = classifier_parameters(self.network)
        if not head:
            raise UserError("train.freeze_epochs: timm does not say what this model's classifier is; set it to 0")
        for weight in self.network.parameters():
            weight.requires_grad_(not frozen or weight in head)
        self.network.train(not frozen)
