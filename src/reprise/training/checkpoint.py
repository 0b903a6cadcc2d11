"""A training that is killed resumes from its last checkpoint and ends in the bits of an uninterrupted run.

Checkpoints live in a scratch folder under a key of everything that decides the bits (`Provenance.key`), so a run with
other params, data, code or terms never finds them. Each is a file of its own with a checksum inside, published whole;
the newest two are kept, and a damaged one gives way to the one before it. The position in the training is ours: batches
of a resumed epoch begin at the step that comes next, and of Lightning's own resuming, which carries no random state and
skips a pending validation, only the counters of finished epochs and steps are used.
"""

import hashlib
import io
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from reprise.data.formats.packed import Unaltered
from reprise.loader.batches import TrainBatches
from reprise.params.schema import CheckpointParams
from reprise.runtime.atomic import Lock, publishing, remove
from reprise.runtime.errors import say
from reprise.runtime.signals import Stopped, StopSignals
from reprise.training.callbacks.best_epoch import BestEpoch
from reprise.training.callbacks.finite_loss import FiniteLoss
from reprise.training.steps import BatchObserver

MAGIC = b"reprise checkpoint 1\n"
GENERATIONS = 2
SHARE = 0.01  # of the time, at most, for checkpoints between short epochs
UNFINISHED = 10  # trainings whose scratch is kept for a later resumption


class Position(NamedTuple):
    """What comes next: a step (counted from 0) of an epoch (from 0); global_step: optimizer steps done so far."""

    epoch: int
    step: int
    global_step: int


Saved = tuple[Position, dict[str, Any]]  # a position in a training and its state


def read_checkpoint(path: Path) -> Saved:
    """Return what a checkpoint holds, on the CPU. Raises ValueError if it is damaged, and OSError."""
    content = path.read_bytes()
    header, payload = content[: len(MAGIC) + 32], content[len(MAGIC) + 32 :]
    if header != MAGIC + hashlib.sha256(payload).digest():
        raise ValueError(f"{path}: damaged")
    state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return Position(**state.pop("position")), state


class Checkpoints:
    """The checkpoints of one key in a scratch folder, locked until `discard` or the end of the process.

    A second process with the same key waits for the first. The scratch of the least recently touched other trainings
    is removed, all but UNFINISHED of them. begun: the state where there is none yet.
    """

    begun: Saved | None = None

    def __init__(self, scratch: Path, key: str) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.folder = scratch / key
        self.lock = Lock(self.folder)
        self.lock.acquire()
        self.folder.mkdir(exist_ok=True)
        for leftover in self.folder.glob(".*"):  # of a killed process
            remove(leftover)
        with suppress(FileNotFoundError):  # another training was just through; the next one cleans up
            others = [path for path in scratch.iterdir() if path.is_dir() and path != self.folder]
            for folder in sorted(others, key=lambda path: path.stat().st_mtime_ns)[:-UNFINISHED]:
                lock = Lock(folder)
                if lock.acquire(wait=False):
                    remove(folder)
                    lock.release()

    def save(self, state: dict[str, Any], position: Position) -> None:
        """Write the state of a position durably; then remove all but the newest GENERATIONS."""
        buffer = io.BytesIO()
        torch.save({"position": position._asdict(), **state}, buffer)
        payload = buffer.getbuffer()
        name = f"{position.epoch:06d}-{position.step:09d}.ckpt"
        with publishing(self.folder / name) as (path,), path.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest())
            file.write(payload)
        for old in self._newest_first()[GENERATIONS:]:
            remove(old)

    def latest(self) -> Saved | None:
        """Return the newest intact state, on the CPU; a damaged one is named on stderr and removed."""
        for path in self._newest_first():
            try:
                return read_checkpoint(path)
            except OSError as error:
                say(f"{path}: {error.strerror}, trying the checkpoint before it", file=sys.stderr)
            except ValueError as error:
                say(f"{error}, trying the checkpoint before it", file=sys.stderr)
                remove(path)
        return self.begun

    def keep(self, path: Path) -> None:
        """Copy the newest checkpoint to a path."""
        shutil.copyfile(self._newest_first()[0], path)

    def leave(self) -> None:
        """Unlock the scratch and keep it for a later resumption."""
        self.lock.release()

    def discard(self) -> None:
        """Remove the scratch: the training's result is published."""
        remove(self.folder)
        self.lock.release()

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("*.ckpt"), reverse=True)


@dataclass(eq=False)
class Resumption(BatchObserver, Checkpoint):
    """Resumes a training from a saved state, saves it as often as `every` says, stops it after a signal.

    A `Checkpoint` comes last, after every other callback has seen the batch. Nothing is saved after a loss that is not
    finite, or once the data have changed: both raise UserError. Raises Stopped, with the state saved, at the first step
    boundary after a signal; one that comes during validation waits for its end.

    Of several processes the first alone reads and saves; a signal to any of them stops all. They agree on it between
    epochs and, within one, where what all have counted belongs to the state, every so many STEPS.
    """

    STEPS: ClassVar[int] = 16
    checkpoints: Checkpoints | None
    every: CheckpointParams
    batches: TrainBatches
    best: BestEpoch
    signals: StopSignals
    losses: FiniteLoss
    data: Unaltered
    resumed: Saved | None = field(default=None, init=False)
    saved_epoch: int = field(default=0, init=False)
    saved_at: float = field(default_factory=time.monotonic, init=False)
    cost: float = field(default=0.0, init=False)  # of the last save, in seconds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give all processes the state of the first, as soon as they are connected, and set the trainer's counters."""
        self.signals.listen()
        self.resumed = trainer.strategy.broadcast(self.checkpoints.latest() if self.checkpoints else None)
        if self.resumed is None:
            return
        position, state = self.resumed
        print(f"continuing in epoch {position.epoch + 1}, step {position.step + 1}", file=sys.stderr)
        self.best.load_state_dict(state["best"])
        self.saved_epoch = position.epoch
        self.batches.start(position.epoch, position.step)
        trainer.should_stop = self.best.is_over()
        # the part of a Lightning checkpoint that `trainer.current_epoch` and `trainer.global_step` are read from
        epochs = dict.fromkeys(("ready", "started", "processed", "completed"), position.epoch)
        steps = dict.fromkeys(("ready", "completed"), position.global_step)
        optimized = "epoch_loop.manual_optimization.optim_step_progress"
        progress = {"epoch_progress": epochs, optimized: steps}
        trainer.fit_loop.load_state_dict({key: {"total": n, "current": n} for key, n in progress.items()})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals back from Lightning, whose handler of SIGTERM would end in exit code 0."""
        self.signals.listen()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Load the state before the first step; save it between two epochs, where the schedule has moved too."""
        if self.resumed is not None:
            _, state = self.resumed
            self.resumed = None
            # metrics keep a tensor as it is given to them, on whatever device that is
            pl_module.load_state_dict({name: value.to(pl_module.device) for name, value in state["module"].items()})
            if not trainer.is_global_zero:  # the first has what all of them had counted
                pl_module.train_metrics.reset()
            trainer.optimizers[0].load_state_dict(state["optimizer"])
            for config, scheduler in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
                config.scheduler.load_state_dict(scheduler)
        elif trainer.current_epoch > 0:
            self._between_epochs(trainer, pl_module, self.every.epochs)

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Save in the middle of an epoch if it is time or a signal came."""
        several = trainer.world_size > 1
        if not several and self.signals.received is None and not self._minutes_are_over():
            return
        step = self.batches.first_step(trainer.current_epoch) + batch_idx + 1
        if step % pl_module.accumulate or step >= self.batches.steps:  # gradients are no part of the state
            return
        if several and step // pl_module.accumulate % self.STEPS:
            return
        self._save_if(self._minutes_are_over(), trainer, pl_module, step)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what is trained, for it is not published yet and may be refused."""
        self._between_epochs(trainer, pl_module, 1, at_once=True)

    def _between_epochs(self, trainer: Trainer, pl_module: Any, every: int, at_once: bool = False) -> None:
        at_once = at_once or time.monotonic() - self.saved_at >= self.cost / SHARE
        due = trainer.current_epoch - self.saved_epoch >= every and at_once
        self._save_if(due or self._minutes_are_over(), trainer, pl_module, 0)

    def _minutes_are_over(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.every.minutes

    def _save_if(self, due: bool, trainer: Trainer, pl_module: Any, step: int) -> None:
        """Save if the first process finds it due, or if a signal has come to any; then stop at the signal."""
        signum = self.signals.received or 0
        if trainer.world_size > 1:
            wanted = torch.tensor([due and trainer.is_global_zero, signum], device=trainer.strategy.root_device)
            due, signum = trainer.strategy.reduce(wanted, reduce_op="max").tolist()
        if not due and not signum:
            return
        if step:
            pl_module.train_metrics.merge(onto_first=True)
        started = time.monotonic()
        if trainer.is_global_zero:
            self.losses.check(trainer)
            self.data.check()
        # weights that are not finite are about to end the training: they shall not replace the last good checkpoint
        if self.checkpoints and all(bool(weight.isfinite().all()) for weight in pl_module.parameters()):
            state = {
                "module": pl_module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
                "best": self.best.state_dict(),
            }
            self.checkpoints.save(state, Position(trainer.current_epoch, step, trainer.global_step))
        self.saved_epoch, self.saved_at = trainer.current_epoch, time.monotonic()
        self.cost = self.saved_at - started
        if signum:
            trainer.strategy.barrier()  # who starts the processes ends them all as soon as one has ended
            raise Stopped(signum)
