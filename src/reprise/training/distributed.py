"""Several processes of one training, by Lightning's DDP: what they share, and that they end together."""

import os
import re
import socket
from contextlib import suppress
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
from reprise.runtime.provenance import Provenance
from reprise.training.callbacks.ema import WeightAverage


def ddp_strategy(params: TrainParams) -> DDPStrategy:
    """Return Lightning's for several processes: 10-minute collective timeout, buffers left to `Peers`."""
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
    if re.search("[Cc]onnection (closed|reset|timed out)|Broken pipe|No route to host|unreachable", str(error)):
        return "another process of this training has ended, or its machine is lost; nothing was published, see above"
    return None


@dataclass(eq=False)
class Peers(Callback):
    """Makes sure that the processes train and validate the same, notice when a machine is lost, and end together.

    average: of the weights, if there is one.
    """

    provenance: Provenance
    average: WeightAverage | None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise UserError in every process if one has other params, data, code or packages."""
        machine = {"device", "cpu_capability"} if self.provenance.reproducible == "off" else None
        records: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(records, self.provenance.model_dump(exclude=machine))
        if unequal := [key for key, value in records[0].items() if any(other[key] != value for other in records)]:
            what = f"the processes of this training differ in their {', '.join(unequal).replace('_sha256', '')}"
            raise UserError(f"{what}; bring params.yaml, code, data and packages of all machines to one state")
        if trainer.num_nodes > 1:
            _probe_connections()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Give every process the first one's running statistics: those of the weights to publish, averaged ones too."""
        for module in (pl_module.net, *([self.average.average.module] if self.average else [])):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Kill the processes that Lightning has started: they may wait for this one, which fails."""
        started = getattr(trainer.strategy.launcher, "procs", [])
        for process in started:
            process.kill()
            process.wait()
        started.clear()  # Lightning kills this process, too, as soon as it finds one among them that has been killed


def _probe_connections() -> None:
    """Have the kernel end the connections of this process, gloo's among them, 30 s after the other side falls silent.

    A pulled cable or a machine without power closes no connection, so a collective would wait for its timeout. That
    cannot be as short: one process may write a large checkpoint while the others wait. Kernels answer at any time.
    """
    probes = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_USER_TIMEOUT": 30_000}  # seconds, seconds, milliseconds
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.fromfd(int(descriptor), socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # OSError: it is something else
            for name, value in probes.items():
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
