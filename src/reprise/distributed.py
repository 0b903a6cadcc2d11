"""Several processes of one training, by Lightning's DDP: what they share, and that they end together."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import reprise.torchvision_repair  # noqa: F401

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from reprise.ema import WeightAverage
from reprise.errors import UserError
from reprise.params import TrainParams


def ddp_strategy(params: TrainParams) -> DDPStrategy:
    """Return Lightning's for several processes; one that waits for another longer than this ends with an error."""
    unused = params.strategy == "ddp_find_unused_parameters_true" or params.freeze_epochs > 0
    return DDPStrategy(find_unused_parameters=unused, timeout=timedelta(minutes=10))


@contextmanager
def together(trainer: Trainer) -> Iterator[None]:
    """End the processes that this one has started if it fails, and say in one line that another has failed."""
    try:
        yield
    except BaseException as error:
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        if isinstance(error, RuntimeError) and re.search("[Cc]onnection (closed|reset)|Broken pipe", str(error)):
            raise UserError("another process of this training has ended; nothing was published, see above") from None
        raise


class SharedBuffers(Callback):
    """Gives every process the first one's running statistics before a validation: those of the weights to publish."""

    def __init__(self, average: WeightAverage | None) -> None:
        self.average = average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep what each process counts for itself out of the copying that goes before each step."""
        own = [name for name, _ in pl_module.named_buffers() if not name.startswith("net.")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, own)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy them, the averaged ones too."""
        for module in (pl_module.net, *([self.average.average.module] if self.average else [])):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
