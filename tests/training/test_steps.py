"""Steps in chunks are those of Lightning's automatic optimization: the same weights, hooks and counters."""

import copy
import threading
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils._python_dispatch import TorchDispatchMode

from reprise.loader.batches import TrainBatches
from reprise.training import steps
from reprise.training.module import LitClassifier
from reprise.training.steps import HOOKS, BatchObserver, ChunkedClassifier, PlateauSchedule, chunks, prepared_ahead
from reprise.training.train import Options, train

STEPS, EPOCHS = 5, 3
EPOCH_HOOKS = ("on_train_start", "on_train_epoch_start", "on_validation_end", "on_train_epoch_end", "on_train_end")


class Batches:
    """Without a length, as the pipeline's."""

    own = ()

    steps, epoch = STEPS, 0

    def first_step(self, epoch):
        return 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            yield torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)


class Witness(Callback):
    """Writes down each hook with what the trainer says at that moment, and the last loss."""

    def __init__(self):
        self.seen = []


class Observer(BatchObserver):
    """Writes down of the batches of a chunk what a Witness does of Lightning's."""

    def __init__(self):
        self.seen = []

    def before_batch(self, trainer, pl_module, batch, batch_idx):
        assert len(batch[0]) == 8
        self.seen.append(("on_train_batch_start", trainer.current_epoch, trainer.global_step))

    def after_batch(self, trainer, pl_module, loss, batch_idx):
        self.seen.append(("on_train_batch_end", trainer.current_epoch, trainer.global_step))
        pl_module.last = (float(loss), batch_idx)


def _note(name):
    def hook(self, trainer, *args):
        self.seen.append((name, trainer.current_epoch, trainer.global_step))

    return hook


for name in (*HOOKS, *EPOCH_HOOKS):
    setattr(Witness, name, _note(name))
for name in (*HOOKS[1:5], *EPOCH_HOOKS):
    setattr(Observer, name, _note(name))


class Last(Checkpoint):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert len(batch[0]) == 8
        assert trainer.fit_loop.batch_idx == batch_idx
        pl_module.last = (float(outputs["loss"]), batch_idx)


def fitted(how, scheduler, interval, accumulate, clip):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    given = {"optimizer": partial(torch.optim.AdamW, lr=0.1, fused=True), "scheduler": scheduler, "interval": interval}
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    witness = Observer() if how == "chunks" else Witness()
    callbacks = [witness] if how == "chunks" else [Last(), witness]
    if how == "automatic":
        module, loader = LitClassifier(net, 3, **given), Batches()
        options |= {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
        trainer = Trainer(max_epochs=EPOCHS, callbacks=callbacks, **options)
    else:
        module = ChunkedClassifier(net, 3, steps=STEPS, accumulate=accumulate, clip_grad=clip, **given)
        trainer = Trainer(max_epochs=EPOCHS, callbacks=[*callbacks, PlateauSchedule()], **options)
        loader = chunks(trainer, Batches())
        assert loader.single == (how == "single")
    trainer.fit(module, loader, Batches())
    rates = [config.scheduler.get_last_lr() for config in trainer.lr_scheduler_configs]
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items() if key not in ("step", "epoch")}
    return copy.deepcopy(net.state_dict()), witness.seen, module.last, rates, metrics


@pytest.mark.parametrize("how", ["single", "chunks"])
@pytest.mark.parametrize(
    ("scheduler", "interval", "accumulate", "clip"),
    [
        (partial(OneCycleLR, max_lr=0.1, total_steps=STEPS * EPOCHS), "step", 1, None),
        (partial(ReduceLROnPlateau, patience=0), "epoch", 1, 0.01),
        (None, "epoch", 1, None),
        (partial(OneCycleLR, max_lr=0.1, total_steps=9), "step", 2, 1.0),
    ],
)
def test_weights_hooks_counters_rates_and_metrics_are_those_of_automatic_optimization(
    how, scheduler, interval, accumulate, clip, monkeypatch
):
    monkeypatch.setattr(steps, "CHUNK", 3)  # the second has two
    theirs, ours = (fitted(which, scheduler, interval, accumulate, clip) for which in ("automatic", how))
    assert all(torch.equal(theirs[0][name], ours[0][name]) for name in theirs[0])
    assert ours[1:4] == theirs[1:4]
    assert ours[4] == pytest.approx(theirs[4], rel=1e-6)  # torchmetrics adds in float32
    names = [name for name, *_ in ours[1]]
    updates = -(-STEPS // accumulate) * EPOCHS
    once_a_step = dict.fromkeys(("on_before_zero_grad", "on_before_optimizer_step"), updates)
    assert {name: names.count(name) for name in HOOKS} == dict.fromkeys(HOOKS, STEPS * EPOCHS) | once_a_step


class Syncs(TorchDispatchMode):
    """Collects what would make the host wait for a GPU: reading a value, or a result whose shape depends on one."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "is_nonzero"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(digits, tiny_params, monkeypatch):
    monkeypatch.setattr("reprise.training.steps.cpus", lambda: 1)  # what another thread does could not be watched

    class Watch(BatchObserver):
        def on_train_epoch_start(self, trainer, pl_module):
            self.syncs = Syncs()
            self.syncs.__enter__()

        def after_batch(self, trainer, pl_module, loss, batch_idx):
            if trainer.global_step == 11:  # the epoch's last
                self.syncs.__exit__(None, None, None)

    watch = Watch()
    params = tiny_params("train.epochs=1", "model.kwargs.drop_rate=0.2")
    train(digits, params.model, params.train, options=Options(callbacks=[watch]))
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


class Foreign(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.happens()


class Own(BatchObserver):
    def after_batch(self, trainer, pl_module, loss, batch_idx):
        self.happens()


@pytest.mark.parametrize("kind", [Foreign, Own])
def test_a_training_that_breaks_off_leaves_no_thread(kind, digits, tiny_params, monkeypatch):
    monkeypatch.setattr("reprise.training.steps.cpus", lambda: 2)
    params, threads = tiny_params(), set(threading.enumerate())

    class Break(kind):
        def happens(self):
            assert len(set(threading.enumerate()) - threads) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(digits, params.model, params.train, options=Options(callbacks=[Break()]))
    assert set(threading.enumerate()) <= threads


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
    results, threads = [], set(threading.enumerate())
    for available in (1, 2):
        monkeypatch.setattr("reprise.training.steps.cpus", lambda available=available: available)
        results.append(train(digits, params.model, params.train, options=Options(callbacks=[Begin()])))
        assert makers == {available == 1}
        assert set(threading.enumerate()) <= threads
    alone, ahead = results
    assert ahead.history == alone.history
    for name, tensor in alone.network.state_dict().items():
        assert torch.equal(ahead.network.state_dict()[name], tensor), name
