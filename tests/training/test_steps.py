"""The lean epoch is Lightning's: the same weights, hooks and counters."""

import copy
import threading
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils._python_dispatch import TorchDispatchMode

from reprise.loader.batches import TrainBatches
from reprise.training.module import LitClassifier
from reprise.training.steps import HOOKS, LeanEpoch, prepared_ahead
from reprise.training.train import train

STEPS, EPOCHS = 5, 3


class Batches:
    """Without a length, as the pipeline's."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            yield torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


class Witness(Callback):
    """Writes down each hook with what the trainer says at that moment."""

    def __init__(self):
        self.seen = []


def _note(name):
    def hook(self, trainer, *args):
        self.seen.append((name, trainer.current_epoch, trainer.global_step, trainer.fit_loop.batch_idx))

    return hook


EPOCH_HOOKS = ("on_train_start", "on_train_epoch_start", "on_validation_end", "on_train_epoch_end", "on_train_end")
for name in (*HOOKS, *EPOCH_HOOKS):
    setattr(Witness, name, _note(name))


class Last(Checkpoint):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.last = (float(outputs["loss"]), len(batch[0]), batch_idx)


def fitted(lean, scheduler, interval, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = partial(torch.optim.AdamW, lr=0.1, fused=True)
    module = LitClassifier(net, 3, optimizer=optimizer, scheduler=scheduler, interval=interval)
    witness = Witness()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        logger=False,
        callbacks=[Last(), witness],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    if lean:
        trainer.fit_loop.epoch_loop = LeanEpoch(trainer)
    trainer.fit(module, Batches(), Batches())
    rates = [config.scheduler.get_last_lr() for config in trainer.lr_scheduler_configs]
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    return copy.deepcopy(net.state_dict()), witness.seen, module.last, rates, metrics


@pytest.mark.parametrize(
    ("scheduler", "interval", "options"),
    [
        (partial(OneCycleLR, max_lr=0.1, total_steps=STEPS * EPOCHS), "step", {}),
        (partial(StepLR, step_size=1), "epoch", {"gradient_clip_val": 0.01}),
        (partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0), "epoch", {}),
        (None, "epoch", {"num_sanity_val_steps": 0}),
        (
            partial(OneCycleLR, max_lr=0.1, total_steps=9),
            "step",
            {"accumulate_grad_batches": 2, "gradient_clip_val": 1},
        ),
    ],
)
def test_weights_hooks_counters_rates_and_metrics_are_those_of_lightnings_own_loop(scheduler, interval, options):
    theirs, ours = (fitted(lean, scheduler, interval, **options) for lean in (False, True))
    assert all(torch.equal(theirs[0][name], ours[0][name]) for name in theirs[0])
    assert ours[1:] == theirs[1:]
    names = [name for name, *_ in ours[1]]
    steps = -(-STEPS // options.get("accumulate_grad_batches", 1)) * EPOCHS
    once_a_step = dict.fromkeys(("on_before_zero_grad", "on_before_optimizer_step"), steps)
    assert {name: names.count(name) for name in HOOKS} == dict.fromkeys(HOOKS, STEPS * EPOCHS) | once_a_step


class Syncs(TorchDispatchMode):
    """Collects what would make the host wait for a GPU: reading a value, or a result whose shape depends on one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "bincount",
            "is_nonzero",
        ):
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(digits, tiny_params, monkeypatch):
    monkeypatch.setattr("reprise.training.steps.cpus", lambda: 1)  # what another thread does could not be watched

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.syncs = Syncs()
            self.syncs.__enter__()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 11:  # the epoch's last
                self.syncs.__exit__(None, None, None)

    watch = Watch()
    params = tiny_params("train.epochs=1", "model.kwargs.drop_rate=0.2")
    train(digits, params.model, params.train, callbacks=[watch])
    assert watch.syncs.seen == []
    with Syncs() as syncs:
        torch.ones(1).item()
    assert syncs.seen == ["_local_scalar_dense"]


def test_the_next_batch_is_made_on_another_thread_and_none_beyond_it():
    made = []

    def batches():
        for number in range(4):
            made.append((number, threading.current_thread()))
            yield number

    coming = prepared_ahead(batches())
    assert next(coming) == 0
    assert list(coming) == [1, 2, 3]
    assert [number for number, _ in made] == [0, 1, 2, 3]
    (maker,) = {thread for _, thread in made}
    assert maker is not threading.current_thread()
    assert not maker.is_alive()  # nothing is left behind

    made.clear()
    coming = prepared_ahead(batches())
    next(coming)
    coming.close()
    assert len(made) <= 2
    assert not made[0][1].is_alive()


def test_what_making_a_batch_raises_comes_after_the_batches_before_it():
    def batches():
        yield from (1, 2)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for batch in prepared_ahead(batches()):
            seen.append(batch)
    assert seen == [1, 2]


def test_a_training_that_breaks_off_leaves_no_thread(digits, tiny_params, monkeypatch):
    monkeypatch.setattr("reprise.training.steps.cpus", lambda: 2)
    params, threads = tiny_params(), threading.active_count()

    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert threading.active_count() == threads + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(digits, params.model, params.train, callbacks=[Break()])
    assert threading.active_count() == threads


def test_batches_made_ahead_change_no_bit(digits, tiny_params, monkeypatch):
    augmentation = [f"train.augment.{key}" for key in ("policy=trivialaugment", "mixup=0.2", "crop=1", "cutout=0.2")]
    params = tiny_params("train.epochs=2", "train.threads=1", "model.kwargs.drop_rate=0.2", *augmentation)
    makers = set()
    original = TrainBatches.generator

    def watched(self, *key):
        makers.add(threading.current_thread() is threading.main_thread())
        return original(self, *key)

    class Begin(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            makers.clear()  # Lightning itself has made a batch before

    monkeypatch.setattr(TrainBatches, "generator", watched)
    results, threads = [], threading.active_count()
    for available in (1, 2):
        monkeypatch.setattr("reprise.training.steps.cpus", lambda available=available: available)
        results.append(train(digits, params.model, params.train, callbacks=[Begin()]))
        assert makers == {available == 1}
        assert threading.active_count() == threads
    alone, ahead = results
    assert ahead.history == alone.history
    for name, tensor in alone.network.state_dict().items():
        assert torch.equal(ahead.network.state_dict()[name], tensor), name
