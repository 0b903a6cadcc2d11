"""A DVC remote hands the results on: a second clone has model and metrics without running anything."""

import shutil

import pytest

from tests.conftest import Workspace
from tests.test_commands import make
from tests.test_pipeline import ran


@pytest.mark.slow
def test_a_second_clone_pulls_everything_and_reproduces_nothing(reproduced, tmp_path):
    reproduced.run("dvc", "remote", "add", "--default", "storage", "../storage")
    reproduced.commit()
    make(reproduced, "push")
    reproduced.run("git", "clone", "--quiet", ".", str(tmp_path / "second"))
    second = Workspace(tmp_path / "second")
    assert not (second.path / "models/model.safetensors").exists()
    shutil.rmtree(tmp_path / "clone")  # nothing but Git and the remote is left
    make(second, "pull")
    assert ran(second.run("dvc", "repro")) == []
    assert "what dvc.lock records" in second.run("python", "-m", "reprise", "verify").stdout
    assert second.clean()
    assert "test images of digits" in second.run("python", "src/eval.py").stdout
    assert list((second.path / ".dvc/cache/runs").iterdir())  # a run that somebody has done is not done again
