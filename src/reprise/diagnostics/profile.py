"""Profile of a training step by part, and its speed beside a bare PyTorch loop over batches in memory.

The real training runs in one process, on images of full size and with no layer frozen, in rounds of a few batches.
Three kinds of round alternate, so that all meet the same machine: the training with its hooks as marks between the
parts, the training without marks, and the bare loop: a copy of the network with the same batches, optimizer and
precision, but no data path, schedule, metrics, callbacks or CUDA graphs. Where batches are made ahead on spare CPUs,
`data` is the time that the training waits for them. With `accumulate`, a step is one batch with its share of the
optimizer step.
"""

import copy
import io
import math
import statistics
import time
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from reprise.params.schema import ModelParams, TrainParams
from reprise.training.steps import BatchObserver
from reprise.training.train import Options, train

ROUND = 10  # batches
PARTS = ("data", "forward", "backward", "optimizer", "framework")
BETWEEN = {  # two marks, and the part of the training that lies between them; callbacks and counters are framework
    ("end", "batch"): "data",
    ("batch", "zero_grad"): "forward",
    ("batch", "backward"): "forward",  # with `accumulate`, gradients of earlier batches are kept
    ("zero_grad", "backward"): "framework",
    ("backward", "gradients"): "backward",
    ("gradients", "optimizer"): "framework",
    ("gradients", "end"): "framework",
    ("optimizer", "end"): "optimizer",
}
# in place of params that would make rounds unequal or end the training
STEADY: dict[str, Any] = {"epochs": 10_000, "devices": 1, "num_nodes": 1, "freeze_epochs": 0}
STEADY |= dict.fromkeys(("start_size", "early_stopping"))


@dataclass(frozen=True)
class Profile:
    """Seconds of a step: of each part, of the training as a whole and of the bare loop; medians over the rounds."""

    batch_size: int
    parts: dict[str, float]
    step: float
    bare_step: float

    @property
    def share(self) -> float:
        """Throughput of the training as a share of the bare loop's."""
        return self.bare_step / self.step

    def table(self) -> str:
        """Return the parts, one line each, and the comparison with the bare loop."""
        total = sum(self.parts.values())
        lines = [f"a step of {self.batch_size} images: {total * 1e3:.2f} ms"]
        lines += [f"  {name:<10}{part * 1e3:9.3f} ms {part / total:6.1%}" for name, part in self.parts.items()]
        rate, bare = self.batch_size / self.step, self.batch_size / self.bare_step
        lines.append(f"{rate:,.0f} images/s; a bare loop over resident tensors: {bare:,.0f}; {self.share:.3f} of that")
        return "\n".join(lines)


def profile(
    processed: Path, model: ModelParams, params: TrainParams, weights: Path | None = None, steps: int = 300
) -> Profile:
    """Train for about `steps` batches with the given params, discard the result, and return the time of each part.

    What the training says is left out, for it is of STEADY's epochs. weights: the path of
    `model.weights`. Raises what `train` raises.
    """
    clock = _Clock(max(2, steps // (3 * ROUND)), params.accumulate)
    with suppress(_EnoughError), redirect_stderr(io.StringIO()):
        train(processed, model, params.model_copy(update=STEADY), weights=weights, options=Options(callbacks=[clock]))
    parts = {name: statistics.median(clock.parts[name]) for name in PARTS}
    batch_size = len(clock.batches[0][1])  # less than that of the params where the split is
    return Profile(batch_size, parts, statistics.median(clock.steps), statistics.median(clock.bare_steps))


class _EnoughError(Exception):
    """Ends the training when all rounds are done."""


def _marks(reached: str) -> Any:
    """Return a hook of a `_Clock` that notes when the training has reached this point."""

    def hook(self: "_Clock", *_: Any) -> None:
        self.mark(reached)

    return hook


class _Clock(BatchObserver, Checkpoint):
    """Times the steps of a round, or their parts; a `Checkpoint`, so that its hooks come after all others."""

    def __init__(self, rounds: int, accumulate: int) -> None:
        self.rounds, self.accumulate = rounds, accumulate
        self.parts: dict[str, list[float]] = {name: [] for name in PARTS}
        self.steps: list[float] = []
        self.bare_steps: list[float] = []
        self.marking = False
        self.round = accumulate * math.ceil(ROUND / accumulate)
        self.done = -1  # finished rounds; the first is a warm-up
        self.module: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the module for the bare loop, once, and begin a round: none extends over a validation."""
        if self.module is None:
            self.module = copy.deepcopy(pl_module)
            self.optimizer = self.module.optimizer(self.module.parameters())
        self._begin()

    def before_batch(self, trainer: Trainer, pl_module: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Mark the end of waiting for data."""
        self.mark("batch")
        self.batches.append(batch)

    on_before_zero_grad = _marks("zero_grad")
    on_before_backward = _marks("backward")
    on_after_backward = _marks("gradients")
    on_before_optimizer_step = _marks("optimizer")

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Mark the end of the step; at the end of a round, record it and begin the next."""
        self.mark("end")
        if len(self.batches) < self.round:
            return
        _wait()
        seconds = time.perf_counter() - self.started
        if self.done >= 0 and self.marking:
            for name, spent in self.spent.items():
                self.parts[name].append(spent / self.round)
        elif self.done >= 0:
            self.steps.append(seconds / self.round)
            self.bare_steps.append(self._bare_loop() / self.round)
        self.marking = not self.marking
        self.done += 1
        if self.done == 2 * self.rounds:
            raise _EnoughError
        self._begin()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shorten the rounds to the epoch if it was too short for one."""
        if self.done < 0:
            self.round = len(self.batches)

    def _begin(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.spent = dict.fromkeys(PARTS, 0.0)
        _wait()
        self.started = time.perf_counter()
        self.last = "end", self.started

    def mark(self, reached: str) -> None:
        """In a round with marks, add the time since the last one to the part of the training that lies between."""
        if self.marking:
            _wait()
            before, begun = self.last
            self.last = reached, time.perf_counter()
            self.spent[BETWEEN[before, reached]] += self.last[1] - begun

    def _bare_loop(self) -> float:
        self.module.train()
        _wait()
        started = time.perf_counter()
        for number, batch in enumerate(self.batches, start=1):
            loss = self.module.forward_loss(batch)[0]
            if self.accumulate > 1:
                loss = loss / self.accumulate
            if number % self.accumulate == 1 % self.accumulate:
                self.optimizer.zero_grad()
            loss.backward()
            if number % self.accumulate == 0 or number == len(self.batches):
                self.optimizer.step()
        _wait()
        return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
