"""A signal stops a stage with the shell's exit code and a checkpoint; an orphan does not outlive its DVC."""

import os
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest


def popen(*command, cwd=None, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "DVC_"))}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=inherited | environment,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
        bufsize=1,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def training(workspace):
    """Start the train stage of a long run; return it once it has trained for a while."""
    workspace.set("train.epochs=5000")
    process = popen("stages/train.py", cwd=workspace.path, PYTHONPATH="src")
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            return process
    raise AssertionError("it never trained")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_stopped_training_leaves_a_checkpoint_and_the_old_outs(reproduced, signum, code):
    before = (reproduced.path / "models/model.safetensors").read_bytes()
    process = training(reproduced)
    process.send_signal(signum)
    rest = process.stderr.read()
    assert process.wait() == code
    assert rest.splitlines()[-1] == f"stopped by {signum.name}; nothing was published"
    assert "Traceback" not in rest
    assert (reproduced.path / "models/model.safetensors").read_bytes() == before
    assert reproduced.run("git", "status", "--porcelain").stdout == " M params.yaml\n"
    again = popen("stages/train.py", cwd=reproduced.path, PYTHONPATH="src")
    assert again.stderr.readline().startswith("continuing after ")
    again.kill()
    again.wait()


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    code = """
from reprise.interruption import StopSignals
import signal
with StopSignals(deferred=True) as signals:
    print("busy", flush=True)
    while True:
        signal.pause()
        print(signals.received, flush=True)
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
from reprise.errors import one_line_errors
with one_line_errors():
    os.kill(os.getpid(), signal.SIGHUP)
    print("survived")
"""
    process = popen("-c", code)
    assert process.communicate() == ("survived\n", "")
    assert process.returncode == 0


def test_an_orphan_stops_when_dvc_was_killed_and_publishes_nothing(reproduced):
    reproduced.set("train.epochs=5000")
    dvc = popen("-m", "dvc", "repro", cwd=reproduced.path, **(reproduced.environment() | {"SHELL": "/bin/sh"}))
    for line in dvc.stderr:
        if line.startswith("epoch 2/"):
            break
    dvc.kill()
    rest = dvc.stderr.read()  # until the orphan, too, has closed it
    assert "stopped by SIGTERM" in rest
    assert not list((reproduced.path / "models").glob("*.*"))
    assert list((reproduced.path / "runs/checkpoints").glob("*/*.ckpt"))
