"""A signal stops a stage with the shell's exit code and a checkpoint; an orphan does not outlive its DVC."""

import os
import re
import signal
import subprocess
import sys
from itertools import islice
from subprocess import PIPE

import pytest


def popen(*command, cwd=None, start_new_session=False, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "DVC_"))}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=inherited | environment,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
        bufsize=1,
        start_new_session=start_new_session,
    )


def stage(workspace):
    """Start the train stage."""
    return popen("stages/train.py", cwd=workspace.path, PYTHONPATH="src")


@pytest.mark.slow
def test_a_stopped_training_leaves_a_checkpoint_and_the_old_outs(reproduced):
    before = (reproduced.path / "models/model.safetensors").read_bytes()
    reproduced.set("train.epochs=5000")
    process, reached = stage(reproduced), (0, 0)
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        assert len(list(islice((line for line in process.stderr if line.startswith("epoch ")), 2))) == 2
        process.send_signal(signum)
        rest = process.stderr.read()
        assert process.wait() == code
        assert rest.splitlines()[-1] == f"stopped by {signum.name}; run the same command again"
        assert "Traceback" not in rest
        assert (reproduced.path / "models/model.safetensors").read_bytes() == before
        assert reproduced.run("git", "status", "--porcelain").stdout == " M params.yaml\n"
        process = stage(reproduced)
        begun = next(line for line in process.stderr if line.startswith("continuing in epoch "))
        assert reached < (reached := tuple(map(int, re.findall(r"\d+", begun))))
    process.kill()
    process.wait()


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    code = """
from reprise.runtime.signals import StopSignals
with StopSignals(deferred=True) as signals:
    print("busy", flush=True)
    while signals.received is None:
        pass  # not pause(): a signal just before it would never wake it
    print(signals.received, flush=True)
    while True:
        pass
"""
    process = popen("-c", code)
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "2\n", "the first one is only noted"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_signals_that_were_ignored_stay_ignored():
    code = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from reprise.runtime.errors import one_line_errors
with one_line_errors():
    os.kill(os.getpid(), signal.SIGHUP)
    print("survived")
"""
    process = popen("-c", code)
    assert process.communicate() == ("survived\n", "")
    assert process.returncode == 0


COMMANDS = {
    "repro": ["repro", "train"],
    "exp run": ["exp", "run", "--name", "idea", "-S", "train.lr=0.002"],
    "exp run --temp": ["exp", "run", "--temp", "-S", "train.lr=0.002"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_when_dvc_is_killed_the_orphan_stops_with_a_checkpoint_and_the_same_command_goes_on_from_it(
    command, reproduced
):
    reproduced.set("train.epochs=5000")
    reproduced.commit()
    environment = reproduced.environment() | {"SHELL": "/bin/sh"}
    dvc = popen("-m", "dvc", *COMMANDS[command], cwd=reproduced.path, **environment)
    for line in dvc.stderr:
        if line.startswith("epoch 2/"):
            break
    dvc.kill()
    dvc.wait()
    rest = dvc.stderr.read()  # until the orphan, too, has closed it
    assert rest.splitlines()[-1] == "stopped by SIGTERM; run the same command again"
    assert not (reproduced.path / "models/model.json").exists() or "--temp" in command
    checkpoint = max((reproduced.path / "runs/checkpoints").glob("*/*.ckpt"))
    if command == "exp run":
        reproduced.run("python", "-m", "reprise", "doctor")
    again = popen("-m", "dvc", *COMMANDS[command], cwd=reproduced.path, start_new_session=True, **environment)
    for line in again.stderr:
        if line.startswith(("continuing", "epoch")):
            break
    os.killpg(again.pid, signal.SIGKILL)
    epoch, step = (int(number) for number in checkpoint.stem.split("-"))
    assert line == f"continuing in epoch {epoch + 1}, step {step + 1}\n"
    assert epoch >= 2
