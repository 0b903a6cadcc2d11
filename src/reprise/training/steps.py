"""The pipeline's training steps: a `training_step` of Lightning's Trainer takes a chunk of consecutive batches.

Around one `training_step`, Lightning 2.6 spends about 0.75 ms on progress records, hooks and closures, more than a
small network spends on computing. Under manual optimization it may take many batches, so each costs what its tensors
cost. What must see every batch is a `BatchObserver`. Where a user's callback overrides a hook of batches, a chunk is
one batch and Lightning calls the hook; so it is with several processes, for DDP prepares for one backward pass a step.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reprise.loader.batches import TrainBatches, stateless_seed
from reprise.runtime.environment import cpus
from reprise.training.cuda_graphs import GraphedSteps, recordable
from reprise.training.epoch_metrics import EpochMetrics
from reprise.training.module import LitClassifier

CHUNK = 100  # batches
HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class BatchObserver(Callback):
    """A callback that sees every batch of a chunk; Lightning's hooks between those two, HOOKS[1:5], are called, too."""

    def before_batch(self, trainer: Trainer, pl_module: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Called before the forward pass; batch_idx: counted from where the epoch began or was resumed."""

    def after_batch(self, trainer: Trainer, pl_module: Any, loss: Tensor, batch_idx: int) -> None:
        """Called after the backward pass and the optimizer's step, if one was due; loss: divided by `accumulate`."""


class StatelessDropout(BatchObserver):
    """Reseeds before every batch, so that dropout is a function of (seed, step) and not of what was drawn before."""

    def __init__(self, seed: int) -> None:
        self.key = stateless_seed(seed, "dropout")

    def before_batch(self, trainer: Trainer, pl_module: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Seed torch's generators from the global step and the batch within it."""
        step = trainer.global_step * pl_module.accumulate + batch_idx % pl_module.accumulate
        step = step * trainer.world_size + trainer.global_rank
        # multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4): SHA-256 would be half the cost
        seed = (self.key + 2_654_435_761 * step) % 2**32
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` looks for devices each time: 0.1 ms
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)


class ChunkedClassifier(LitClassifier):
    """`LitClassifier` under manual optimization, for the loader `Chunks`; `trainer.global_step` counts optimizer steps.

    accumulate: batches to an optimizer step, of which an epoch's last may have fewer. clip_grad: largest norm of the
    gradients. steps: batches of a whole epoch, by which loggers number what they are given. Losses and accuracies are
    counted by `EpochMetrics`, in place of torchmetrics' objects.
    """

    def __init__(
        self, *args: Any, steps: int, accumulate: int = 1, clip_grad: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.steps, self.accumulate, self.clip_grad = steps, accumulate, clip_grad
        self.train_metrics, self.val_metrics = (EpochMetrics(self.hparams["num_classes"]) for _ in range(2))
        self.graphed: GraphedSteps | None = None  # holds memory of the GPU

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule, which is stepped here and by `PlateauSchedule`."""
        configured = super().configure_optimizers()
        configured.get("lr_scheduler", {}).pop("monitor", None)
        return configured

    def on_train_epoch_start(self) -> None:
        """Collect the callbacks that watch batches, and decide whether to record CUDA graphs."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        self.observers = [callback for callback in callbacks if isinstance(callback, BatchObserver)]
        self.zeroing, self.differentiating, self.differentiated = (_overridden(callbacks, name) for name in HOOKS[1:4])
        self.schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs if config.interval == "step"]
        if self.trainer.world_size > 1:
            self.differentiating = self.differentiated = []  # `manual_backward` calls them
        elif recordable(self):
            self.graphed = self.graphed or GraphedSteps(self, self.accumulate)
            self.graphed.begin()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Learn from a batch, or from each of a chunk; return the last one's loss."""
        chunk = batch if isinstance(batch, Chunk) else Chunk(iter((batch,)), batch_idx, 1)
        trainer, optimizer = self.trainer, self.optimizers()
        last = chunk.begin + chunk.length - 1 if trainer.is_last_batch else -1
        for number, one in enumerate(chunk.batches, start=chunk.begin):
            for observer in self.observers:
                observer.before_batch(trainer, self, one, number)
            loss = self.learn_and_step(one, optimizer, number, number == last)
            for observer in self.observers:
                observer.after_batch(trainer, self, loss, number)
        return {"loss": loss}

    def learn_and_step(self, batch: tuple[Tensor, Tensor], optimizer: Any, number: int, last: bool) -> Tensor:
        """Make the backward pass and, once enough batches have accumulated, the optimizer's step; return the loss."""
        trainer = self.trainer
        stepping = last or (number + 1) % self.accumulate == 0
        passes: Any = self.graphed or self
        loss = passes.learn(batch)
        if self.accumulate > 1:
            loss = loss / self.accumulate
        if number % self.accumulate == 0:
            for hook in self.zeroing:
                hook(trainer, self, optimizer.optimizer)
            optimizer.optimizer.zero_grad()
        for hook in self.differentiating:
            hook(trainer, self, loss)
        if trainer.world_size == 1:
            passes.backward(loss)
        else:  # as DDP wants it: gradients are averaged when the optimizer is about to step
            strategy: Any = trainer.strategy
            with nullcontext() if stepping else strategy.block_backward_sync():
                self.manual_backward(loss)
        for hook in self.differentiated:
            hook(trainer, self)
        if stepping:
            optimizer.step()
            for schedule in self.schedules:
                self.lr_scheduler_step(schedule, None)
        return loss.detach()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradients, after the callbacks have seen them."""
        if self.clip_grad:
            self.clip_gradients(optimizer, self.clip_grad, "norm")

    def learn(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the loss of a training batch and count it: a `training_step` that never waits for the device."""
        loss, logits, labels = self.forward_loss(batch)
        self.train_metrics.add(loss, logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return loss, preds and targets of a validation batch."""
        loss, logits, labels = self.forward_loss(batch)
        self.val_metrics.add(loss, logits, labels)
        preds, targets = self.mask_outputs(logits.argmax(dim=1), labels)
        return {"loss": loss, "preds": preds, "targets": targets}

    def _log_epoch(self, split: str, *_: Any) -> Tensor:
        """Let loggers number the epoch by its last batch, whatever the chunks and however often it was resumed."""
        self.log("step", float((self.trainer.current_epoch + 1) * self.steps - 1))
        self.log("epoch", float(self.trainer.current_epoch))
        loss, accuracy = (self.train_metrics if split == "train" else self.val_metrics).compute()
        self.log(f"{split}/loss", loss)
        self.log(f"{split}/acc", accuracy)
        return accuracy


class PlateauSchedule(Checkpoint):
    """Steps a schedule that watches a metric, after the callbacks before it have seen the epoch and its lr."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step the schedule with the metric that it monitors."""
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                monitored = trainer.callback_metrics[pl_module.hparams["monitor"]]
                pl_module.lr_scheduler_step(config.scheduler, monitored)


@dataclass
class Chunk:
    """Consecutive batches of an epoch, made one after another; begin: the number of the first."""

    batches: Iterator[tuple[Tensor, Tensor]]
    begin: int
    length: int


class Chunks:
    """The Trainer's loader: an epoch's batches in chunks or, if `single`, as they are.

    ahead: CPUs are left over, on which another thread makes the coming batches. Lightning looks one chunk ahead to find
    the last; that makes no batch.
    """

    def __init__(self, batches: TrainBatches, single: bool, ahead: bool) -> None:
        self.batches = self.sampler = batches
        self.single, self.ahead = single, ahead
        self.coming: Any = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the chunks of the current epoch, or the rest of a resumed one."""
        self.close()
        self.coming = prepared_ahead(self.batches) if self.ahead else iter(self.batches)
        if self.single:
            yield from self.coming
            return
        count = self.batches.steps - self.batches.first_step(self.batches.epoch)
        for begin in range(0, count, CHUNK):
            length = min(CHUNK, count - begin)
            yield Chunk(islice(self.coming, length), begin, length)

    def close(self) -> None:
        """End the thread of an epoch that was interrupted."""
        if self.coming is not None:
            self.coming.close()


def chunks(trainer: Trainer, batches: TrainBatches) -> Chunks:
    """Return the loader for a trainer: single batches for several processes, and if a callback hooks into batches."""
    foreign = [each for each in trainer.callbacks if not isinstance(each, BatchObserver)]  # type: ignore[attr-defined]
    single = trainer.world_size > 1 or any(_overridden(foreign, name) for name in HOOKS)
    # own augmentations draw from torch's own stream, which `StatelessDropout` seeds for the step
    ahead = trainer.strategy.root_device.type == "cpu" and not batches.own
    return Chunks(batches, single, ahead and 2 * torch.get_num_threads() * trainer.num_devices <= cpus())


def prepared_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; another thread, which must not draw from torch's own stream, is one ahead with making them.

    It computes with as many threads as this one. Raises here what making a batch raises, once those before are through.
    """
    # torch counts threads for each thread that asks
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as maker:
        coming = iter(batches)
        made = maker.submit(next, coming, None)
        while (batch := made.result()) is not None:
            made = maker.submit(next, coming, None)
            yield batch


def _overridden(callbacks: Iterable[Callback], name: str) -> list[Callable[..., None]]:
    """Return the hook of this name of each callback that overrides it."""
    hooks = [getattr(callback, name) for callback in callbacks]
    return [hook for hook in hooks if getattr(hook, "__func__", None) is not getattr(Callback, name)]
