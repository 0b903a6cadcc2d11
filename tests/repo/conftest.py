"""A repository with one quick stage, for tests of what a killed DVC leaves behind."""

import pytest

from tests.conftest import fresh_clone

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


@pytest.fixture(scope="session")
def quick_once(tmp_path_factory):
    """A clone with a pipeline of one quick stage, reproduced, and a finished experiment."""
    clone = fresh_clone(tmp_path_factory.mktemp("doctor") / "clone")
    (clone.path / "dvc.yaml").write_text(PIPELINE)
    (clone.path / "stages/quick.py").write_text(STAGE)
    clone.commit()
    clone.run("dvc", "repro")
    clone.commit()
    clone.run("dvc", "exp", "save", "--name", "kept")
    return clone


@pytest.fixture
def breakable(quick_once, tmp_path):
    """A copy of it with edits of the user: one staged, one not, and a file that Git does not know."""
    clone = quick_once.copy(tmp_path / "clone")
    (clone.path / "README.md").write_text("mine\n")
    clone.run("git", "add", "README.md")
    clone.set("train.weight_decay=0.02")
    (clone.path / "notes.txt").write_text("mine\n")
    return clone
