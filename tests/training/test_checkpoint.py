import csv
import errno
import os
import signal
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

from reprise.params.load import load_params
from reprise.runtime.errors import UserError
from reprise.runtime.signals import Stopped
from reprise.training.checkpoint import GENERATIONS, UNFINISHED, Checkpoints, Position
from reprise.training.train import Options, StatelessDropout, TrainResult, train
from tests.conftest import PARAMS, TINY

STEPS = 6  # in an epoch: 180 images in batches of 30


class CrashError(Exception):
    pass


def raise_crash(*_):
    raise CrashError


def crash(step, digits, params, scratch, happens=raise_crash, error=CrashError, **options) -> BaseException:
    """Train with a scratch folder until something happens before this step; return what the training raises."""
    untouched = StatelessDropout.before_batch

    def before_batch(self, trainer, *args):
        if trainer.global_step == step:
            happens()
        untouched(self, trainer, *args)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(error) as caught:
        patched.setattr(StatelessDropout, "before_batch", before_batch)
        train(digits, params.model, params.train, scratch, **options)
    return caught.value


def bits(result: TrainResult, folder: Path) -> dict[str, bytes]:
    """Return the files of a result, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("model.safetensors", "model.json", "train.json", "history.csv")]
    result.save(*paths)
    return {path.name: path.read_bytes() for path in paths}


def check_resumption(step, digits, params, folder) -> None:
    """Crash before a step, resume, and find the bits of an uninterrupted training."""
    whole = bits(train(digits, params.model, params.train), folder / "whole")
    crash(step, digits, params, folder / "scratch")
    assert checkpoints_of(folder / "scratch")
    assert bits(train(digits, params.model, params.train, folder / "scratch"), folder / "resumed") == whole


def checkpoints_of(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("*/*.ckpt"))


def few_steps(*overrides):
    """Return the tiny setting with STEPS in an epoch."""
    return load_params(PARAMS, [*TINY, "train.batch_size=30", *overrides])


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """Call it with changed params: the bits of an uninterrupted training."""

    @cache
    def whole(*overrides):
        params = few_steps(*overrides)
        return bits(train(digits, params.model, params.train), tmp_path_factory.mktemp("whole"))

    return whole


DROPOUT = ["model.kwargs.drop_rate=0.3"]
PLATEAU = ["train.schedule=plateau", "train.schedule_kwargs.patience=0", "train.optimizer=sgd", "train.lr=0.3"]


@pytest.mark.parametrize(
    ("setting", "step", "minutes"),
    [
        (DROPOUT, STEPS + 4, 0),
        (DROPOUT, 2 * STEPS, 1000),
        (DROPOUT, STEPS - 1, 0),
        (DROPOUT, 1, 0),
        (PLATEAU, STEPS + 4, 0),
        (PLATEAU, 2 * STEPS, 1000),
        (["train.schedule=none"], STEPS + 4, 0),
    ],
)
def test_a_crashed_training_taken_up_again_ends_in_the_bits_of_an_uninterrupted_one(
    setting, step, minutes, digits, whole, tmp_path, monkeypatch
):
    params = few_steps("train.epochs=3", f"train.checkpoint_every.minutes={minutes}", *setting)
    crash(step, digits, params, tmp_path / "scratch")
    assert checkpoints_of(tmp_path / "scratch")
    steps: list[int] = []
    untouched = StatelessDropout.before_batch
    monkeypatch.setattr(
        StatelessDropout,
        "before_batch",
        lambda self, trainer, *args: (steps.append(trainer.global_step), untouched(self, trainer, *args)),
    )
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    first = step if minutes == 0 else STEPS  # the second epoch is too short to be worth a checkpoint
    assert steps == list(range(first, params.train.epochs * STEPS)), "it made exactly the steps that were missing"
    assert bits(resumed, tmp_path / "resumed") == whole("train.epochs=3", *setting)
    resumed.discard_checkpoints()
    assert list((tmp_path / "scratch").iterdir()) == []


EVERYTHING = [
    *("model.kwargs.drop_rate=0.3", "model.kwargs.drop_path_rate=0.1", "train.ema=0.99", "train.accumulate=2"),
    *("train.clip_grad=1", "train.early_stopping=2", "train.layer_decay=0.8", "train.freeze_epochs=1"),
    *("train.balance=sampling", "train.augment.mixup=0.2", "train.augment.cutmix=1", "train.schedule=plateau"),
    *("train.augment.policy=randaugment", "train.reproducible=machine", "train.precision=bf16", "train.start_size=16"),
]


def test_a_crash_with_everything_at_once_ends_in_the_same_bits(digits, tmp_path):
    params = few_steps("train.epochs=3", "train.checkpoint_every.minutes=0", *EVERYTHING)
    check_resumption(4, digits, params, tmp_path)  # in the second epoch


class Numbers(Callback):
    """Sees single batches; notes what epoch and step the trainer says it is."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append((trainer.current_epoch, trainer.global_step))


def test_callbacks_of_single_batches_and_loggers_are_told_the_same_after_a_resumption(digits, tmp_path):
    params = few_steps("train.epochs=3", "train.checkpoint_every.minutes=0", "train.accumulate=2")
    results, seen, logged = {}, {}, {}
    for name in ("undisturbed", "resumed"):
        if name == "resumed":  # from the second epoch
            crash(4, digits, params, tmp_path / "scratch", options=Options(callbacks=[Numbers()]))
        numbers, logger = Numbers(), CSVLogger(tmp_path / name, name=None, version="")
        watched = Options(callbacks=[numbers], loggers=[logger])
        result = train(digits, params.model, params.train, tmp_path / "scratch", options=watched)
        results[name], seen[name] = bits(result, tmp_path / name / "bits"), numbers.seen
        result.discard_checkpoints()
        rows = csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())
        logged[name] = [(row["epoch"], row["step"], row["val/loss"], row["lr"]) for row in rows]
    assert results["resumed"] == results["undisturbed"]
    assert seen["resumed"] == seen["undisturbed"][seen["undisturbed"].index((1, 4)) :]
    assert len(seen["undisturbed"]) == 3 * (STEPS + 1)
    assert len(logged["undisturbed"]) >= 4, "losses and learning rates of three epochs"
    assert logged["resumed"] == logged["undisturbed"][-len(logged["resumed"]) :]
    assert len(logged["resumed"]) == len(logged["undisturbed"]) * 2 // 3


def test_other_params_do_not_pick_up_the_state(digits, tmp_path, capsys):
    every_step = "train.checkpoint_every.minutes=0"  # which other params are another key: see test_provenance
    for overrides in ([every_step], [every_step, "train.lr=0.001"], ["train.checkpoint_every.minutes=1000"]):
        capsys.readouterr()
        crash(STEPS + 3, digits, few_steps(*overrides), tmp_path)
        assert ("continuing" in capsys.readouterr().err) == ("minutes=1000" in overrides[0])
    assert len(list(tmp_path.glob("*/"))) == 2


def saved(scratch, *steps):
    """Return checkpoints of these steps, with the step in the weights."""
    checkpoints = Checkpoints(scratch, "key")
    for step in steps:
        checkpoints.save({"weights": torch.full((3,), step)}, Position(0, step, step))
    return checkpoints


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "pickle"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(damage, tmp_path, capsys):
    checkpoints = saved(tmp_path, 1, 2)
    _, newest = checkpoints_of(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": content, "truncate": content[:-100], "empty": b"", "pickle": b"cos\nsystem\n(S'false'\ntR."}
    newest.write_bytes(damaged[damage])
    position, state = checkpoints.latest()
    assert (position, state["weights"].tolist()) == (Position(0, 1, 1), [1, 1, 1])
    assert f"{newest}: damaged" in capsys.readouterr().err
    assert not newest.exists()


@pytest.mark.parametrize(("damaged", "said"), [(1, "continuing in epoch 2, step 5"), (2, None)])
def test_a_training_continues_from_the_newest_intact_checkpoint_or_starts_anew(
    damaged, said, digits, tmp_path, whole, capsys
):
    params = few_steps("train.checkpoint_every.minutes=0")
    crash(STEPS + 5, digits, params, tmp_path / "scratch")
    names = [path.name for path in checkpoints_of(tmp_path / "scratch")]
    assert names == ["000001-000000004.ckpt", "000001-000000005.ckpt"]
    for path in checkpoints_of(tmp_path / "scratch")[-damaged:]:
        path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    shown = capsys.readouterr().err
    assert said in shown if said else "continuing" not in shown
    assert bits(resumed, tmp_path / "resumed") == whole()


SELDOM = ("train.checkpoint_every.minutes=1000", "train.checkpoint_every.epochs=1000")


@pytest.mark.parametrize(
    ("signum", "steps"),
    [
        (signal.SIGTERM, [4]),
        (signal.SIGINT, [STEPS + 2]),
        (signal.SIGHUP, [STEPS]),
        (signal.SIGTERM, [STEPS - 1, 2 * STEPS - 1]),  # after the validation; then there is no step left to stop at
    ],
)
def test_a_signal_stops_at_the_next_step_with_a_checkpoint_of_it(signum, steps, digits, tmp_path, whole):
    params = few_steps(*SELDOM)
    for step in steps:
        stopped = crash(step, digits, params, tmp_path / "scratch", lambda: os.kill(os.getpid(), signum), Stopped)
        assert stopped.code == 128 + signum
        name = checkpoints_of(tmp_path / "scratch")[-1].name
        assert name == f"{(step + 1) // STEPS:06d}-{(step + 1) % STEPS:09d}.ckpt"
    assert bits(train(digits, params.model, params.train, tmp_path / "scratch"), tmp_path / "resumed") == whole()


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(digits, tmp_path, monkeypatch):
    params = few_steps("train.checkpoint_every.minutes=0")
    broken: list[torch.nn.Module] = []
    untouched = StatelessDropout.before_batch

    def break_weights(self, trainer, pl_module, *args):
        untouched(self, trainer, pl_module, *args)
        if trainer.global_step == 3:
            broken.append(pl_module)
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))

    monkeypatch.setattr(StatelessDropout, "before_batch", break_weights)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1, step 4.*the last good checkpoint is kept"):
        train(digits, params.model, params.train, tmp_path)
    position, state = Checkpoints(tmp_path, checkpoints_of(tmp_path)[0].parent.name).latest()
    assert position.global_step == 3
    assert all(bool(tensor.isfinite().all()) for name, tensor in state["module"].items() if name.startswith("net."))


def test_two_generations_are_kept_and_a_leftover_of_a_killed_write_is_removed(tmp_path):
    checkpoints = saved(tmp_path, *range(5))
    assert len(checkpoints_of(tmp_path)) == GENERATIONS == 2
    (tmp_path / "key/.000000-000000009.ckpt.partial").write_bytes(b"torn")
    checkpoints.leave()
    position, state = Checkpoints(tmp_path, "key").latest()
    assert (position, state["weights"].tolist()) == (Position(0, 4, 4), [4, 4, 4])
    assert [path.name for path in (tmp_path / "key").glob(".*")] == []


def test_the_scratch_of_long_forgotten_trainings_is_removed_but_not_one_in_use(tmp_path):
    living = Checkpoints(tmp_path, "living")  # the oldest of all
    for number in range(UNFINISHED + 3):
        Checkpoints(tmp_path, f"{number:02d}").leave()
        os.utime(tmp_path / f"{number:02d}", (1000 + number, 1000 + number))
    os.utime(tmp_path / "living", (10, 10))
    Checkpoints(tmp_path, "new")
    kept = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert kept == {"living", "new", *(f"{number:02d}" for number in range(3, UNFINISHED + 3))}
    living.discard()


def test_a_checkpoint_on_a_failing_disk_gives_way_to_the_one_before_it(tmp_path, monkeypatch, capsys):
    checkpoints = saved(tmp_path, 1, 2)
    untouched = Path.read_bytes

    def fail(path):
        if path.name == "000000-000000002.ckpt":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return untouched(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert checkpoints.latest()[0] == Position(0, 1, 1)
    assert "000000-000000002.ckpt: Input/output error, trying the checkpoint before it" in capsys.readouterr().err


def test_the_disk_filling_up_during_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save({"weights": torch.ones(3)}, Position(0, 2, 2))
    assert sorted(path.name for path in (tmp_path / "key").iterdir()) == ["000000-000000001.ckpt"]
    assert checkpoints.latest()[0] == Position(0, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["train.checkpoint_every.epochs=100", "train.checkpoint_every.minutes=1000"], 2),
        (["train.epochs=9", "train.early_stopping=1", "train.lr=1", "train.schedule=none"], None),
    ],
)
def test_a_training_that_was_not_published_is_there_without_another_step(
    overrides, epochs, digits, tmp_path, monkeypatch
):
    params = few_steps(*overrides)
    first = train(digits, params.model, params.train, tmp_path / "scratch")
    assert len(first.history) == epochs if epochs else len(first.history) < 9
    first.checkpoints.leave()  # as the end of a process does
    monkeypatch.setattr(StatelessDropout, "before_batch", raise_crash)
    again = train(digits, params.model, params.train, tmp_path / "scratch")
    assert bits(again, tmp_path / "again") == bits(first, tmp_path / "first")
