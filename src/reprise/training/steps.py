"""Lightning's training epoch as one plain loop: the same hooks, counters and bits, without the cost of a step.

Around a step, Lightning 2.6 spends about 0.75 ms on progress records, closures, profilers and prefetching, more than a
small network spends on computing. Here a step costs what its tensors cost. Callbacks hear the same hooks with the same
`global_step`, in the same order; what the loop leaves out is what the Trainer of `training` does not use: precision
plugins, loggers of single steps, and a hook's request to skip an epoch. Of several processes, each goes through the
strategy's wrapper, which averages the gradients. Where CPUs are left over, they make the coming batches meanwhile; a
GPU replays its steps (`graphs`).
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

from reprise.runtime.environment import cpus
from reprise.training.cuda_graphs import GraphedSteps, recordable

HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class LeanEpoch(_TrainingEpochLoop):
    """Takes the place of `trainer.fit_loop.epoch_loop`; the module is a LitClassifier, the loader yields its batches.

    Nothing in it waits for the device; of the callbacks, `FiniteLoss` does, every 32 batches. Outputs
    that `on_train_batch_end` gets hold the loss alone.
    """

    graphed: GraphedSteps | None = None  # holds memory of the GPU

    @property
    def global_step(self) -> int:
        """Optimiser steps so far; callbacks ask for it at every step."""
        return self.automatic_optimization.optim_progress.optimizer.step.total.completed

    def on_run_start(self, data_fetcher: Any) -> None:
        """Leave Lightning's prefetching aside: the loader is iterated over as it is."""
        data_fetcher.batches.clear()  # it has one already

    def advance(self, data_fetcher: Any) -> None:
        """Run all steps of the epoch; the base class goes on with the validation."""
        trainer = self.trainer
        module: Any = trainer.lightning_module
        device = module.device
        strategy: Any = trainer.strategy
        accumulate = trainer.accumulate_grad_batches
        wrapped = strategy.model is not module  # in DistributedDataParallel
        learn: Callable[[Any], Tensor] = module.learn
        backward: Callable[[Tensor], None] = Tensor.backward
        if wrapped:
            learn = partial(strategy._forward_redirection, strategy.model, module, "learn")
        elif recordable(module):
            self.graphed = self.graphed or GraphedSteps(module, accumulate)
            self.graphed.begin()
            learn, backward = self.graphed.learn, self.graphed.backward
        optimizer = trainer.optimizers[0]
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "step"]
        starting, zeroing, differentiating, differentiated, stepping, ended = (_overridden(trainer, x) for x in HOOKS)
        clip: dict[str, Any] = {"gradient_clip_val": trainer.gradient_clip_val}
        clip["gradient_clip_algorithm"] = trainer.gradient_clip_algorithm
        batches, steps = self.batch_progress, self.automatic_optimization.optim_progress.optimizer.step
        spare = device.type == "cpu" and 2 * torch.get_num_threads() * trainer.num_devices <= cpus()
        loader: Any = trainer.train_dataloader
        done = 0
        for (images, targets), last in _with_last(prepared_ahead(loader) if spare else loader):
            batch = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            batches.current.ready += 1
            for hook in starting:
                hook(trainer, module, batch, done)
            stepping_now = last or (done + 1) % accumulate == 0
            if wrapped:
                strategy.model.require_backward_grad_sync = stepping_now
            loss = learn(batch)
            if accumulate > 1:
                loss = loss / accumulate
            if done % accumulate == 0:
                for hook in zeroing:
                    hook(trainer, module, optimizer)
                optimizer.zero_grad()
            for hook in differentiating:
                hook(trainer, module, loss)
            backward(loss)
            for hook in differentiated:
                hook(trainer, module)
            if stepping_now:
                for hook in stepping:
                    hook(trainer, module, optimizer)
                if trainer.gradient_clip_val:
                    module.configure_gradient_clipping(optimizer, **clip)
                optimizer.step()
                steps.total.completed += 1  # `trainer.global_step`
                for schedule in schedules:
                    module.lr_scheduler_step(schedule, None)
            outputs = {"loss": loss.detach()}
            for hook in ended:
                hook(trainer, module, outputs, batch, done)
            done += 1
        batches.total.ready += done
        batches.is_last_batch = True
        self._batches_that_stepped += done - 1  # the base class counts one
        self.update_lr_schedulers("epoch", update_plateau_schedulers=False)


def prepared_ahead(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; another thread, which must not draw from torch's own stream, is one ahead with making them.

    It computes with as many threads as this one. Raises here what making a batch raises, once those before are through.
    """
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    threads = torch.get_num_threads()

    def make() -> None:
        torch.set_num_threads(threads)
        try:
            coming = iter(batches)
            while wanted.get():
                made.put((next(coming, None), None))
        except BaseException as error:
            made.put((None, error))

    thread = Thread(target=make, daemon=True)
    thread.start()
    try:
        wanted.put(True)
        batch, error = made.get()
        while batch is not None:
            wanted.put(True)
            yield batch
            batch, error = made.get()
        if error is not None:
            raise error
    finally:
        wanted.put(False)
        thread.join()


def _with_last(batches: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Yield each batch with whether it is the last one."""
    coming = iter(batches)
    batch = next(coming, None)
    while batch is not None:
        following = next(coming, None)
        yield batch, following is None
        batch = following


def _overridden(trainer: Trainer, name: str) -> list[Callable[..., None]]:
    """Return a hook of those callbacks that do something in it."""
    return [
        getattr(callback, name)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if getattr(type(callback), name) is not getattr(Callback, name)
    ]
