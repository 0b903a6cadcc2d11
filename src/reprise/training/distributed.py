"""Several processes of one training, by Lightning's DDP: what they share, and that they end together."""

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from reprise.params.resolve import check_launched
from reprise.params.schema import TrainParams
from reprise.runtime.errors import UserError
from reprise.training.callbacks.ema import WeightAverage


def ddp_strategy(params: TrainParams) -> DDPStrategy:
    """Return Lightning's for several processes: 10-minute collective timeout, buffers left to `SharedBuffers`."""
    unused = params.strategy == "ddp_find_unused_parameters_true" or params.freeze_epochs > 0
    return DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False, timeout=timedelta(minutes=10))


def slurm_environment() -> SLURMEnvironment | None:
    """Return SLURM's environment in its tasks, without Lightning's requeueing, which saves checkpoints of its own."""
    slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun may run in its tasks
    return SLURMEnvironment(auto_requeue=False) if slurm else None


def processes(params: TrainParams, device: Literal["cuda", "cpu"]) -> int:
    """Return how many processes there are on each machine; of several on GPUs, this one takes its own.

    Raises UserError where there are too few GPUs or, with `devices: auto`, torchrun or SLURM started another number.
    """
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    devices = params.devices if params.devices != "auto" else max(gpus, 1)
    check_launched(devices, params.num_nodes)
    if gpus and devices * params.num_nodes > 1:
        if devices > gpus:
            raise UserError(f"train.devices = {devices}: there are {gpus} GPUs; choose at most that")
        # as Lightning will: SLURM may deal the tasks out over the machines in turn, and torchrun may run in its tasks
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))))
    return devices


def failure(error: RuntimeError) -> str | None:
    """Return a user's words for an error because another process of the training has failed or never come."""
    if isinstance(error, torch.distributed.DistError) and not torch.distributed.is_initialized():
        way_out = "started (by srun or torchrun) and reach MASTER_ADDR, and whether MASTER_PORT is free"
        what = f"the processes of this training did not find each other: {str(error).splitlines()[0]}"
        return f"{what} See whether all of them were {way_out}"
    if re.search("[Cc]onnection (closed|reset)|Broken pipe", str(error)):
        return "another process of this training has ended; nothing was published, see above"
    return None


class EndTogether(Callback):
    """Ends the processes that Lightning has started if the first one fails."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Kill them: they may wait for this one."""
        started = getattr(trainer.strategy.launcher, "procs", [])
        for process in started:
            process.kill()
            process.wait()
        started.clear()  # Lightning kills this process, too, as soon as it finds one among them that has been killed


@dataclass(eq=False)
class SharedBuffers(Callback):
    """Gives every process the first one's running statistics before a validation: those of the weights to publish."""

    average: WeightAverage | None

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy them, the averaged ones too."""
        for module in (pl_module.net, *([self.average.average.module] if self.average else [])):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
