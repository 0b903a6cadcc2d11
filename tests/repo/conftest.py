"""A repository with one quick stage, for tests of what a killed DVC leaves behind."""

import hashlib
import signal

import pytest

from tests.conftest import Workspace, fresh_clone

# one stage that publishes as the real ones do, and takes no time; told to, it kills all of DVC half-way, or waits there
STAGE = """
import os, signal
from pathlib import Path
from reprise.params.load import load_params
from reprise.runtime.atomic import publishing
with publishing(Path("models/model.json"), Path("metrics/test.json")) as outs:
    for out in outs:
        out.write_text(str(load_params("params.yaml").train.lr))
    if "STAGE_KILLS" in os.environ:
        os.killpg(0, signal.SIGKILL)
    if "STAGE_WAITS" in os.environ:
        with open(os.environ["STAGE_WAITS"], "w"):
            signal.alarm(120)  # should the test fail
            signal.pause()
"""
PIPELINE = """
stages:
  quick:
    cmd: PYTHONPATH=src python stages/quick.py
    params: [train.lr]
    outs: [models/model.json]
    metrics: [metrics/test.json: {cache: false}]
"""


LR = "train.lr=0.5"  # what the experiments try

# dvc that kills itself before a function's Nth call: KILLED MODULE CLASS FUNCTION N ARGUMENT...
KILLED = """
import importlib, os, signal, sys
module, owner, name, calls, *arguments = sys.argv[1:]
owner = getattr(importlib.import_module(module), owner)
kept = owner.__dict__[name]
left = int(calls)
def or_die(*args, **kwargs):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return kept.__get__(None, owner)(*args, **kwargs)
setattr(owner, name, staticmethod(or_die) if isinstance(kept, staticmethod) else or_die)
from dvc.cli import main
main(arguments)
"""
QUEUE = "dvc.repo.experiments.queue.base", "BaseStashQueue"
EDITS_STASHED = "scmrepo.git", "Git", "detach_head", "1"
EXPERIMENT_PREPARED = "scmrepo.git.stash", "Stash", "push", "2"
EXPERIMENT_WAITS = *QUEUE, "get_stash_entry", "1"
HEAD_CHECKED_OUT = "scmrepo.git.stash", "Stash", "apply", "3"
HEAD_NOT_DETACHED = "scmrepo.git", "Git", "detach_head", "2"
EXPERIMENT_COMMITTED = "dvc.repo.experiments.executor.local", "WorkspaceExecutor", "cleanup", "1"
NOT_YET_COLLECTED = *QUEUE, "collect_executor", "1"
EDITS_NOT_GIVEN_BACK = "dvc.repo.experiments.stash", "ApplyStash", "_apply_difference", "1"


def killed(workspace, step, *arguments):
    done = workspace.run("python", "-c", KILLED, *step, *(arguments or ("exp", "run", "-S", LR)), check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    return workspace


def edited(workspace):
    """Make edits of the user: one staged, one not, and a file that Git does not know."""
    (workspace.path / "README.md").write_text("mine\n")
    workspace.run("git", "add", "README.md")
    workspace.set("train.weight_decay=0.02")
    (workspace.path / "notes.txt").write_text("mine\n")
    return workspace


@pytest.fixture(scope="session")
def quick_once(once):
    """A clone with a pipeline of one quick stage, reproduced, and a finished experiment."""

    def make(path):
        clone = fresh_clone(path)
        (clone.path / "dvc.yaml").write_text(PIPELINE)
        (clone.path / "stages/quick.py").write_text(STAGE)
        clone.commit()
        clone.run("dvc", "repro")
        clone.commit()
        clone.run("dvc", "exp", "save", "--name", "kept")

    return Workspace(once("doctor", make), shared=True)


@pytest.fixture
def breakable(quick_once, tmp_path):
    """A copy of it with edits of the user."""
    return edited(quick_once.copy(tmp_path / "clone"))


@pytest.fixture
def killed_at(once, quick_once, tmp_path):
    """Call it with a step: a copy of an edited clone in which DVC has killed itself there; made once."""

    def killed_at(*step, arguments=()):
        name = hashlib.sha256(repr((step, arguments)).encode()).hexdigest()[:12]
        made = once(f"killed-{name}", lambda path: killed(edited(quick_once.copy(path)), step, *arguments))
        return Workspace(made).copy(tmp_path / "clone")

    return killed_at
