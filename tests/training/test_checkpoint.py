import csv
import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.loggers import CSVLogger

from reprise.runtime.signals import Stopped
from reprise.training.checkpoint import GENERATIONS, UNFINISHED, Checkpoints, Position
from reprise.training.train import Options, StatelessDropout, TrainResult, train

STEPS = 11  # in an epoch of the tiny setting: 180 images in batches of 16


class CrashError(Exception):
    pass


def at_step(monkeypatch, global_step: int, happens) -> None:
    """Let something happen when the training is about to make this step."""
    untouched = StatelessDropout.before_batch

    def crash(self, trainer, *args):
        if trainer.global_step == global_step:
            happens()
        untouched(self, trainer, *args)

    monkeypatch.setattr(StatelessDropout, "before_batch", crash)


def raise_crash():
    raise CrashError


def bits(result: TrainResult, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    paths = [folder / name for name in ("model.safetensors", "model.json", "train.json", "history.csv")]
    result.save(*paths)
    return {path.name: path.read_bytes() for path in paths}


def checkpoints_of(scratch: Path) -> list[Path]:
    return sorted(scratch.glob("*/*.ckpt"))


SETTINGS = {
    "onecycle, with dropout": ["model.kwargs.drop_rate=0.3"],
    "plateau": ["train.schedule=plateau", "train.epochs=7", "train.optimizer=sgd", "train.lr=0.3"],
    "no schedule": ["train.schedule=none"],
}


@pytest.fixture(scope="module")
def undisturbed():
    """The bits that a training ends in if nothing happens, by its setting."""
    return {}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("crash_at", "minutes"), [(STEPS + 4, 0), (2 * STEPS, 1000), (STEPS - 1, 0), (1, 0)])
def test_a_crashed_training_taken_up_again_ends_in_the_bits_of_an_uninterrupted_one(
    setting, crash_at, minutes, digits, tiny_params, undisturbed, tmp_path, monkeypatch
):
    params = tiny_params("train.epochs=3", f"train.checkpoint_every.minutes={minutes}", *SETTINGS[setting])
    if setting not in undisturbed:
        undisturbed[setting] = bits(train(digits, params.model, params.train), tmp_path / "whole")
    with monkeypatch.context() as patched:
        at_step(patched, crash_at, raise_crash)
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path / "scratch")
    assert checkpoints_of(tmp_path / "scratch")
    steps: list[int] = []
    untouched = StatelessDropout.before_batch
    monkeypatch.setattr(
        StatelessDropout,
        "before_batch",
        lambda self, trainer, *args: (steps.append(trainer.global_step), untouched(self, trainer, *args)),
    )
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    first = crash_at if minutes == 0 else STEPS  # the second epoch is too short to be worth a checkpoint
    assert steps == list(range(first, params.train.epochs * STEPS)), "it made exactly the steps that were missing"
    assert bits(resumed, tmp_path / "resumed") == undisturbed[setting]
    resumed.discard_checkpoints()
    assert list((tmp_path / "scratch").iterdir()) == []


EVERYTHING = [
    *("model.kwargs.drop_rate=0.3", "model.kwargs.drop_path_rate=0.1", "train.ema=0.99", "train.accumulate=2"),
    *("train.clip_grad=1", "train.early_stopping=2", "train.layer_decay=0.8", "train.freeze_epochs=1"),
    *("train.balance=sampling", "train.augment.mixup=0.2", "train.augment.cutmix=1", "train.schedule=plateau"),
    *("train.augment.policy=randaugment", "train.reproducible=machine", "train.precision=bf16", "train.start_size=16"),
]


def test_a_crash_with_everything_at_once_ends_in_the_same_bits(digits, tiny_params, tmp_path, monkeypatch):
    params = tiny_params("train.epochs=3", "train.checkpoint_every.minutes=0", *EVERYTHING)
    whole = train(digits, params.model, params.train)
    with monkeypatch.context() as patched:
        at_step(patched, 9, raise_crash)  # in the second epoch
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path / "scratch")
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    assert bits(resumed, tmp_path / "resumed") == bits(whole, tmp_path / "whole")


class Numbers(Callback):
    """Sees single batches; notes what epoch and step the trainer says it is."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.current_epoch, trainer.global_step))

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append((trainer.current_epoch, trainer.global_step))


def test_a_callback_that_sees_single_batches_is_told_the_same_after_a_resumption(
    digits, tiny_params, tmp_path, monkeypatch
):
    params = tiny_params("train.epochs=3", "train.checkpoint_every.minutes=0", "train.accumulate=2")
    before, after = Numbers(), Numbers()
    whole = train(digits, params.model, params.train, options=Options(callbacks=[before]))
    with monkeypatch.context() as patched:
        at_step(patched, 9, raise_crash)  # in the second epoch
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path / "scratch", options=Options(callbacks=[Numbers()]))
    resumed = train(digits, params.model, params.train, tmp_path / "scratch", options=Options(callbacks=[after]))
    assert after.seen == before.seen[before.seen.index((1, 9)) :]
    assert len(before.seen) == 3 * (STEPS + 1)
    assert bits(resumed, tmp_path / "resumed") == bits(whole, tmp_path / "whole")


@pytest.mark.parametrize(
    "other",
    ["train.lr=0.001", "train.seed=1", "model.kwargs.drop_rate=0.1", "train.threads=2", "train.reproducible=machine"],
)
def test_other_params_do_not_pick_up_the_state(other, digits, tiny_params, tmp_path, monkeypatch, capsys):
    every_step = "train.checkpoint_every.minutes=0"
    at_step(monkeypatch, STEPS + 3, raise_crash)
    for overrides in ([every_step], [every_step, other], ["train.checkpoint_every.minutes=1000"]):
        params = tiny_params(*overrides)
        capsys.readouterr()
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path)
        assert ("continuing" in capsys.readouterr().err) == ("minutes=1000" in overrides[0])
    assert len(list(tmp_path.glob("*/"))) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "pickle"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(
    damage, digits, tiny_params, tmp_path, monkeypatch, capsys
):
    params = tiny_params("train.checkpoint_every.minutes=0")
    whole = train(digits, params.model, params.train)
    with monkeypatch.context() as patched:
        at_step(patched, STEPS + 5, raise_crash)
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path / "scratch")
    older, newest = checkpoints_of(tmp_path / "scratch")
    assert [older.name, newest.name] == ["000001-000000004.ckpt", "000001-000000005.ckpt"]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": content, "truncate": content[:-100], "empty": b"", "pickle": b"cos\nsystem\n(S'false'\ntR."}
    newest.write_bytes(damaged[damage])
    capsys.readouterr()
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    shown = capsys.readouterr().err
    assert f"{newest}: damaged" in shown
    assert "continuing in epoch 2, step 5" in shown
    assert bits(resumed, tmp_path / "resumed") == bits(whole, tmp_path / "whole")


def test_when_both_generations_are_damaged_it_starts_anew(digits, tiny_params, tmp_path, monkeypatch, capsys):
    params = tiny_params("train.checkpoint_every.minutes=0")
    with monkeypatch.context() as patched:
        at_step(patched, 5, raise_crash)
        with pytest.raises(CrashError):
            train(digits, params.model, params.train, tmp_path / "scratch")
    for path in checkpoints_of(tmp_path / "scratch"):
        path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    assert "continuing" not in capsys.readouterr().err
    assert bits(resumed, tmp_path / "r") == bits(train(digits, params.model, params.train), tmp_path / "w")


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, STEPS + 2), (signal.SIGHUP, STEPS)])
def test_a_signal_stops_at_the_next_step_with_a_checkpoint_of_it(
    signum, step, digits, tiny_params, tmp_path, monkeypatch
):
    params = tiny_params("train.checkpoint_every.minutes=1000", "train.checkpoint_every.epochs=1000")
    with monkeypatch.context() as patched:
        at_step(patched, step, lambda: os.kill(os.getpid(), signum))
        with pytest.raises(Stopped) as stopped:
            train(digits, params.model, params.train, tmp_path / "scratch")
    assert stopped.value.code == 128 + signum
    (path,) = checkpoints_of(tmp_path / "scratch")
    assert path.name == f"{(step + 1) // STEPS:06d}-{(step + 1) % STEPS:09d}.ckpt"
    whole = train(digits, params.model, params.train)
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    assert bits(resumed, tmp_path / "resumed") == bits(whole, tmp_path / "whole")


def test_a_signal_on_the_last_step_of_an_epoch_waits_for_the_validation(digits, tiny_params, tmp_path, monkeypatch):
    params = tiny_params("train.checkpoint_every.minutes=1000", "train.checkpoint_every.epochs=1000")
    whole = train(digits, params.model, params.train)
    for epoch in (1, 2):  # the second time there is no step left to stop at
        with monkeypatch.context() as patched:
            at_step(patched, epoch * STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Stopped):
                train(digits, params.model, params.train, tmp_path / "scratch")
        assert checkpoints_of(tmp_path / "scratch")[-1].name == f"{epoch:06d}-000000000.ckpt"
    resumed = train(digits, params.model, params.train, tmp_path / "scratch")
    assert bits(resumed, tmp_path / "resumed") == bits(whole, tmp_path / "whole")


def test_weights_that_are_not_finite_do_not_replace_a_good_checkpoint(digits, tiny_params, tmp_path, monkeypatch):
    from reprise.runtime.errors import UserError

    params = tiny_params("train.checkpoint_every.minutes=0")
    broken: list[torch.nn.Module] = []
    untouched = StatelessDropout.before_batch

    def break_weights(self, trainer, pl_module, *args):
        untouched(self, trainer, pl_module, *args)
        if trainer.global_step == 7:
            broken.append(pl_module)
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))

    monkeypatch.setattr(StatelessDropout, "before_batch", break_weights)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1, step 8.*the last good checkpoint is kept"):
        train(digits, params.model, params.train, tmp_path)
    position, state = Checkpoints(tmp_path, checkpoints_of(tmp_path)[0].parent.name).latest()
    assert position.global_step == 7
    assert all(bool(tensor.isfinite().all()) for name, tensor in state["module"].items() if name.startswith("net."))


def test_two_generations_are_kept_and_a_leftover_of_a_killed_write_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path, "key")
    for step in range(5):
        checkpoints.save({"weights": torch.full((3,), step)}, Position(0, step, step))
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
    checkpoints = Checkpoints(tmp_path, "key")
    for step in (1, 2):
        checkpoints.save({}, Position(0, step, step))
    untouched = Path.read_bytes

    def fail(path):
        if path.name == "000000-000000002.ckpt":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return untouched(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert checkpoints.latest()[0] == Position(0, 1, 1)
    assert "000000-000000002.ckpt: Input/output error, trying the checkpoint before it" in capsys.readouterr().err


def test_the_disk_filling_up_during_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save({"weights": torch.zeros(3)}, Position(0, 1, 1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save({"weights": torch.ones(3)}, Position(0, 2, 2))
    assert sorted(path.name for path in (tmp_path / "key").iterdir()) == ["000000-000000001.ckpt"]
    assert checkpoints.latest()[0] == Position(0, 1, 1)


def test_loggers_count_on_after_a_resumption_as_in_an_undisturbed_run(digits, tiny_params, tmp_path, monkeypatch):
    params = tiny_params("train.epochs=3", "train.checkpoint_every.minutes=0", "train.accumulate=2")
    logged = {}
    for name in ("undisturbed", "resumed"):
        logger = CSVLogger(tmp_path / name, name=None, version="")
        with monkeypatch.context() as patched:
            if name == "resumed":
                at_step(patched, 9, raise_crash)  # in the second epoch
                with pytest.raises(CrashError):
                    train(digits, params.model, params.train, tmp_path / "scratch")
        watched = Options(loggers=[logger])
        train(digits, params.model, params.train, tmp_path / "scratch", options=watched).discard_checkpoints()
        rows = list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))
        logged[name] = [(row["epoch"], row["step"], row["val/loss"], row["lr"]) for row in rows]
    assert len(logged["undisturbed"]) >= 4, "losses and learning rates of three epochs"
    assert logged["resumed"] == logged["undisturbed"][-len(logged["resumed"]) :]
    assert len(logged["resumed"]) == len(logged["undisturbed"]) * 2 // 3


def test_a_training_that_was_not_published_is_there_without_another_step(digits, tiny_params, tmp_path, monkeypatch):
    params = tiny_params("train.epochs=2", "train.checkpoint_every.epochs=100", "train.checkpoint_every.minutes=1000")
    first = train(digits, params.model, params.train, tmp_path / "scratch")
    first.checkpoints.leave()  # as the end of a process does
    monkeypatch.setattr(StatelessDropout, "before_batch", raise_crash)
    again = train(digits, params.model, params.train, tmp_path / "scratch")
    assert bits(again, tmp_path / "again") == bits(first, tmp_path / "first")
