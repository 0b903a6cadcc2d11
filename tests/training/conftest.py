"""Trainings in several processes, started by a test."""

import os
import signal
import subprocess
import sys
from subprocess import PIPE

import pytest

from tests.training.processes import PLAIN, SCRIPT, TWO, environment, read


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """Run a training in processes of its own; return what those started here ended with and the result's folder."""
    folder = tmp_path_factory.mktemp("trainings")
    script = folder / "training.py"
    script.write_text(SCRIPT)

    def start(name, *overrides, event="none 0 -1", launchers=((sys.executable,),), tasks=({},)):
        out = folder / name
        out.mkdir(exist_ok=True)
        training = [str(script), str(digits), str(out), event, *PLAIN, *overrides]
        started = [
            subprocess.Popen(
                [*launcher, *training], env=environment(**task), stderr=PIPE, text=True, start_new_session=True
            )
            for launcher, task in zip(launchers, tasks, strict=True)
        ]
        try:
            # ends when every process that could still write has ended, those that Lightning has started too
            said = [process.communicate(timeout=90)[1] for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        ended = (subprocess.CompletedProcess(p.args, p.returncode, None, s) for p, s in zip(started, said, strict=True))
        return *ended, out

    return start


@pytest.fixture(scope="module")
def undisturbed(run):
    """The result of two processes that Lightning has started, by name, and what they said."""
    two, out = run("two", *TWO)
    assert two.returncode == 0, two.stderr
    return read(out), two.stderr
