"""Loggers are imported only when named, keep to their folder, and change no bit of a result."""

import os
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from reprise.runtime.errors import UserError
from reprise.training.loggers import create_loggers
from reprise.training.train import Options, train
from tests.conftest import ROOT

NAMES = ["tensorboard", "wandb", "mlflow", "dvclive"]


class Recorder(DummyLogger):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.rows, self.params = [], []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, params):
        self.params.append(params)


def test_every_epoch_is_logged_with_all_params_and_no_bit_changes(digits, tiny_params):
    params = tiny_params("train.loggers=[tensorboard]")
    recorder = Recorder()
    logged = train(digits, params.model, params.train, options=Options(loggers=[recorder]))
    plain = train(digits, *(lambda other: (other.model, other.train))(tiny_params()))
    assert logged.card == plain.card
    for one, two in zip(logged.network.parameters(), plain.network.parameters(), strict=True):
        assert torch.equal(one, two)
    for name, column in [
        ("lr", "lr"), ("train/loss", "train_loss"), ("train/acc", "train_accuracy"), ("val/acc", "val_accuracy"),
    ]:  # fmt: skip
        seen = [metrics[name] for _, metrics in recorder.rows if name in metrics]
        assert seen == [pytest.approx(getattr(row, column)) for row in logged.history], name
    steps = [step for step, _ in recorder.rows]
    assert steps == sorted(steps)
    assert recorder.params == [{"data": "digits", **params.model_dump(include={"model", "train"})}]


@pytest.mark.parametrize("name", NAMES)
def test_one_that_is_not_installed_is_one_line_with_the_command(name, tmp_path, monkeypatch):
    monkeypatch.setattr("reprise.params.resolve.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{name} is not installed; `pip install -e '\.\[{name}\]'`"):
        create_loggers([name], tmp_path, "a run")
    assert f"\n{name} = [" in (ROOT / "pyproject.toml").read_text()


def test_dvclive_is_told_to_leave_dvc_yaml_and_experiments_alone(tmp_path, monkeypatch):
    given = {}
    package, module = ModuleType("dvclive"), ModuleType("dvclive.lightning")
    module.DVCLiveLogger = lambda run, **options: given.update(options) or DummyLogger()
    monkeypatch.setitem(sys.modules, "dvclive", package)
    monkeypatch.setitem(sys.modules, "dvclive.lightning", module)
    monkeypatch.setattr("reprise.params.resolve.find_spec", lambda name: True)
    create_loggers(["dvclive"], tmp_path, "a run")
    assert given == {
        "dir": str(tmp_path / "dvclive"), "resume": True, "report": None, "save_dvc_exp": False, "dvcyaml": None,
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_real_one_writes_into_its_folder_offline(name, digits, tiny_params, tmp_path, monkeypatch):
    if find_spec(name) is None:
        pytest.skip(f"{name} is an extra that is not installed here")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    params = tiny_params("train.batch_size=90")
    loggers = create_loggers([name, name], tmp_path / "logs", "a run")
    train(digits, params.model, params.train, options=Options(loggers=loggers))
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [name]
    assert [path for path in (tmp_path / "logs" / name).rglob("*") if path.is_file()]
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "logs/tensorboard")).Reload()
        assert len(events.Scalars("val/loss")) == len(events.Scalars("lr")) == 2


def test_what_is_installed_of_them_changes_no_tracked_byte(reproduced):
    names = [name for name in NAMES if find_spec(name)]
    if not names:
        pytest.skip("none of the extras is installed here")
    command = ["python", "src/train.py", f"train.loggers=[{','.join(names)}]"]
    reproduced.run(*command, PYTHONPATH=os.pathsep.join(sys.path), WANDB_MODE="offline")
    assert reproduced.clean()
    for name in ("model.safetensors", "model.json"):
        one, two = (reproduced.path / folder / name for folder in ("models", "runs/latest"))
        assert one.read_bytes() == two.read_bytes()
    assert {path.name for path in (reproduced.path / "runs/latest").iterdir() if path.is_dir()} == set(names)
