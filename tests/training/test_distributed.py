"""Several processes of one training: gloo on the CPU, started by Lightning, by torchrun or as SLURM does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from reprise.params.resolve import rank
from reprise.runtime.errors import UserError
from reprise.training.distributed import slurm_environment
from tests.training.processes import PLAIN, SCRIPT, TWO, environment, free_port, read

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
SLURM = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "training"}


def srun():
    """Return the environments of the two tasks that `srun --nodes=1 --ntasks-per-node=2` starts."""
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "training", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "1"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_PORT": free_port()}
    return [job | {"SLURM_PROCID": task, "SLURM_LOCALID": task} for task in "01"]


def test_two_processes_train_as_one_with_two_accumulated_batches(run, undisturbed):
    files, said = undisturbed
    one, alone = run("one", "train.accumulate=2")
    assert one.returncode == 0, one.stderr
    # of the validation's batches one process has one more than the other, which has padding: no metric sees it
    for name in ("history.csv", "model.safetensors"):
        assert read(alone)[name] == files[name]
    assert said.count("epoch 1/2") == 1  # the first process alone prints
    assert "Warning" not in said


def stopped(task, signum):
    """Say whether a process has ended as a signal ends one: the shell's exit code, one line, no error."""
    last = f"stopped by {signum.name}; run the same command again"
    noise = "Traceback" in task.stderr or "error" in task.stderr or task.stderr.count("stopped by") != 1
    return task.returncode == 128 + signum and task.stderr.splitlines()[-1] == last and not noise


@pytest.mark.parametrize(
    ("signum", "who"),
    [(signal.SIGTERM, "1"), pytest.param(signal.SIGINT, "group", marks=pytest.mark.slow)],
    ids=str,
)
def test_a_signal_to_any_process_stops_all_with_a_checkpoint(signum, who, run):
    first, out = run(f"{signum.name} {who}", *TWO, event=f"{signum.name} {who} 5")
    assert stopped(first, signum), (first.returncode, first.stderr)
    assert [path.name for path in out.glob("scratch/*/*.ckpt")] == ["000000-000000016.ckpt"]
    assert not list(out.glob("*.*"))


@pytest.mark.slow
def test_tasks_of_slurm_that_are_preempted_go_on_to_the_same_bits(run, undisturbed):
    first, second, out = run("preempted", *TWO, event="SIGTERM each 5", launchers=[(sys.executable,)] * 2, tasks=srun())
    assert stopped(first, signal.SIGTERM), (first.returncode, first.stderr)
    assert (second.returncode, second.stderr) == (143, "")
    assert not list(out.glob("*.*"))
    first, second, out = run("preempted", *TWO, launchers=[(sys.executable,)] * 2, tasks=srun())
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert first.stderr.count("continuing in epoch 1, step 17") == 1
    assert second.stderr == ""
    assert read(out) == undisturbed[0]


def test_processes_with_other_params_do_not_train_together(run):
    one, other = srun()
    other["PATCH"] = "params.train.__dict__['seed'] = 1"
    *both, out = run("differ", *TWO, launchers=[(sys.executable,)] * 2, tasks=(one, other))
    for each in both:
        assert each.returncode == 1
        assert "error: the processes of this training differ in their params; bring params.yaml, code" in each.stderr
    assert not list(out.glob("*.*"))


def test_a_signal_ends_the_wait_for_a_task_that_never_comes(digits, tmp_path):
    alone = srun()[0]
    command = [sys.executable, "-c", SCRIPT, digits, tmp_path, "none 0 -1", *PLAIN, *TWO]
    process = subprocess.Popen(command, env=environment(**alone), stderr=PIPE, text=True)
    listening = f":{int(alone['MASTER_PORT']):04X} "
    while listening not in Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) == -signal.SIGTERM
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_training_which_goes_on_under_torchrun_to_the_same_bits(run):
    given = (*TWO, "model.name=test_resnet", "train.optimizer=adamw", "train.batch_size=4", "train.freeze_epochs=1")
    whole, out = run("whole", *given)
    assert whole.returncode == 0, whole.stderr
    often = (*given, "train.checkpoint_every.minutes=0")
    killed, again = run("again", *often, event="exit 1 20")
    assert killed.returncode != 0
    assert not (again / "model.safetensors").exists()
    assert len(list(again.glob("scratch/*/000000-000000016.ckpt"))) == 1
    resumed, again = run("again", *often, launchers=[TORCHRUN])
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("continuing in epoch 1, step 17") == 1
    assert read(again) == read(out)


@pytest.mark.slow
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
    ("overrides", "launcher", "expected"),
    [
        ([], {"LOCAL_RANK": "1"}, 0),  # a training of its own
        (["train.devices=2", "train.num_nodes=2"], SLURM | {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, 2),
        (["train.devices=2"], SLURM | {"SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, 1),  # Lightning starts them
    ],
)
def test_the_rank_is_what_the_launcher_says(tiny_params, launched, overrides, launcher, expected):
    launched(launcher)
    assert rank(tiny_params(*overrides).train) == expected


@pytest.mark.parametrize(
    ("overrides", "launcher", "said"),
    [
        ([], SLURM | {"SLURM_PROCID": "1"}, "--ntasks-per-node=1, or"),  # not two trainings side by side
        (TWO, SLURM | {"SLURM_NTASKS": "4"}, "--ntasks-per-node=2, or"),
        (TWO, SLURM | {"SLURM_NTASKS": "1"}, "--ntasks-per-node=2, or"),
        (TWO, SLURM | {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"}, "--ntasks-per-node=2, or"),
        (TWO, SLURM | {"SLURM_NTASKS_PER_NODE": None}, "--ntasks-per-node=2, or"),
        ([], {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}, r"train\.devices \* train\.num_nodes = 1"),
    ],
)
def test_the_launcher_and_the_params_agree_on_the_processes(tiny_params, launched, overrides, launcher, said):
    launched(launcher)
    with pytest.raises(UserError, match=rf"^(SLURM|torchrun) has started \d (tasks|processes).* {said}"):
        rank(tiny_params(*overrides).train)


@pytest.mark.parametrize(
    ("launcher", "managed"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, False),
        (SLURM | {"TORCHELASTIC_RUN_ID": "x"}, False),
    ],
)
def test_tasks_of_slurm_are_lightnings_without_its_requeueing(launched, launcher, managed):
    launched(launcher)
    found = slurm_environment()
    assert (found is not None) == managed
    assert not managed or not found.auto_requeue


SPAWNING = """
from reprise.training.module import MNISTLitModule
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":  # the processes import this file
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.rand(16, 1, 4, 4), torch.arange(16) % 10), batch_size=4)
    module = MNISTLitModule(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
    before = module.net[1].weight.clone()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(strategy="ddp_spawn", devices=2, max_epochs=1, **quiet)
    trainer.fit(module, data, data)
    assert not torch.equal(module.net[1].weight, before)
    alone = Trainer(devices=1, **quiet)
    alone.validate(module, data, verbose=False)
    for name in ("val/loss", "val/acc"):
        torch.testing.assert_close(trainer.callback_metrics[name], alone.callback_metrics[name])
    print("trained")
"""


@pytest.mark.slow
def test_spawned_processes_train_the_mnist_module(tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["trained"]), done.stderr
