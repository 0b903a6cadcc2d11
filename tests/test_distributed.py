"""Several processes of one training: gloo on the CPU, started by Lightning or by torchrun."""

import json
import os
import subprocess
import sys

import pytest

from reprise.errors import UserError
from reprise.process import rank
from tests.conftest import ROOT, TINY

SCRIPT = """
import os, sys
from pathlib import Path
from reprise.errors import one_line_errors
from reprise.params import load_params
from reprise.process import after_torch, before_torch, rank
from reprise.publish import publishing

with one_line_errors():
    root, data, out, dies, *overrides = sys.argv[1:]
    params = load_params(Path(root) / "params.yaml", overrides)
    number = rank(params.train)
    before_torch(params.train.threads, params.train.reproducible)
    from reprise.training import train
    from lightning import Callback
    after_torch(params.train.threads, params.train.reproducible)

    class Dies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if dies == f"{number}@{trainer.global_step}":
                os._exit(3)

    out = Path(out)
    result = train(Path(data), params.model, params.train, out / "scratch", callbacks=[Dies()], rank=number)
    if number == 0:
        names = ("model.safetensors", "model.json", "train.json", "history.csv")
        with publishing(*(out / name for name in names)) as files:
            result.save(*files)
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
# no layer here knows its batch, so two processes and two accumulated batches differ by rounding alone
PLAIN = [
    *TINY,
    "model.name=mlp",
    "model.kwargs.drop_rate=0.2",
    "train.ema=0.9",
    "train.schedule=constant",
    "train.optimizer=sgd",
    "train.lr=0.01",
    "train.batch_size=8",
]
TWO = ("train.devices=2",)


@pytest.fixture
def run(digits, tmp_path):
    """Run a training in processes of its own; return what it ended with and the folder of its result."""
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)

    def start(name, *overrides, dies="never", launcher=(sys.executable,)):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        command = [*launcher, str(script), str(ROOT), str(digits), str(out), dies, *PLAIN, *overrides]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        return done, out

    return start


def test_two_processes_train_as_one_with_two_accumulated_batches(run):
    two, out = run("two", *TWO)
    assert two.returncode == 0, two.stderr
    one, alone = run("one", "train.accumulate=2")
    assert one.returncode == 0, one.stderr
    # of the validation's 23 batches one process has 12 and the other 11 and padding: no metric sees it
    assert (out / "history.csv").read_bytes() == (alone / "history.csv").read_bytes()
    assert (out / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert two.stderr.count("epoch 1/2") == 1  # the first process alone prints
    assert "Warning" not in two.stderr


def test_a_process_that_dies_ends_the_training_which_goes_on_under_torchrun_to_the_same_bits(run):
    given = (*TWO, "model.name=test_resnet", "train.optimizer=adamw", "train.batch_size=4", "train.freeze_epochs=1")
    whole, out = run("whole", *given)
    assert whole.returncode == 0, whole.stderr
    often = (*given, "train.checkpoint_every.minutes=0")
    killed, again = run("again", *often, dies="1@20")
    assert killed.returncode != 0
    assert not (again / "model.safetensors").exists()
    assert len(list(again.glob("scratch/*/000000-000000016.ckpt"))) == 1
    resumed, again = run("again", *often, launcher=TORCHRUN)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("continuing in epoch 1, step 17") == 1
    for name in ("history.csv", "model.safetensors", "model.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_pipeline_starts_the_processes_and_the_first_publishes(reproduced):
    reproduced.set("train.devices=2")
    done = reproduced.run("dvc", "repro", "train")
    assert done.stdout.count("train: test_resnet, best epoch") == 1
    assert not list(reproduced.path.glob("models/.*.partial"))
    assert json.loads((reproduced.path / "metrics/train.json").read_text())["epoch"] in (1, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.accelerator=gpu"], "accelerator = gpu: reproducible = portable promises the bits of CPUs"),
        (["train.num_nodes=2", "train.devices=auto"], "devices = auto: expected a number with num_nodes = 2"),
        (["train.devices=2", "train.threads=auto"], "threads = auto: expected a number with several processes"),
        (["train.devices=0"], "train.devices"),
        (["train.strategy=fsdp"], "train.strategy"),
    ],
)
def test_contradictions_are_one_line(tiny_params, overrides, message):
    with pytest.raises(UserError) as error:
        tiny_params(*overrides)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "environment", "expected"),
    [
        ([], {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "LOCAL_RANK": "1"}, 0),  # a training of its own
        (["train.devices=2"], {"LOCAL_RANK": "1"}, 1),
        (["train.devices=2", "train.num_nodes=2"], {"NODE_RANK": "1", "LOCAL_RANK": "1"}, 3),
        (["train.devices=2", "train.num_nodes=2"], {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, 2),
        (["train.devices=2"], {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}, 1),
    ],
)
def test_the_rank_is_what_the_launcher_says(tiny_params, monkeypatch, overrides, environment, expected):
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank(tiny_params(*overrides).train) == expected


def test_torchrun_and_the_params_agree_on_the_number_of_processes(tiny_params, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"started 2 processes, but train\.devices \* train\.num_nodes = 1"):
        rank(tiny_params().train)
