"""A trial is an experiment of DVC like any other, and the work tree of the project is not touched for it."""

import shutil
import signal
import subprocess
import sys

import pytest

from reprise.repo.project import Project
from reprise.repo.trials import end, remove_trees, workspace
from tests.conftest import new_repository


def test_a_damaged_work_tree_is_made_anew_and_the_projects_own_is_not_touched(tmp_path):
    (tmp_path / "clone").mkdir()
    repository = new_repository(tmp_path / "clone")
    repository.run("dvc", "init", "--quiet")
    (repository.path / "params.yaml").write_text("a: 1\n")
    (repository.path / "dvc.yaml").write_text("stages: {}\n")
    (repository.path / ".gitignore").write_text("/runs/\n")
    (repository.path / "data").mkdir()
    (repository.path / "data/file").touch()
    repository.commit()
    project = Project(repository.path)
    head = project.git("rev-parse", "HEAD").strip()
    (repository.path / "params.yaml").write_text("a: 2  # mine\n")
    with workspace(project, head) as found:
        tree = found.tree
        lock = project.git_path("worktrees/0/index.lock")
        lock.touch()  # of a git that was killed
        (tree / "left").touch()
        assert end(found.run({}, tmp_path / "log")) is None
        assert not lock.exists()
        assert not (tree / "left").exists()
        (tree / ".git").rename(tree / "git")
        with pytest.raises(FileNotFoundError):  # and no reset of what lies around it
            found.run({}, tmp_path / "log")
    with workspace(project, head) as found:
        assert (found.tree, (tree / "params.yaml").read_text()) == (tree, "a: 1\n")
        with workspace(project, head) as other:
            assert other.tree != tree
        remove_trees(project)
        assert tree.exists()
        assert not other.tree.exists()
    shutil.rmtree(tree)
    with workspace(project, head) as found:
        assert (found.root / "params.yaml").read_text() == "a: 1\n"
    remove_trees(project)
    assert repository.run("git", "worktree", "list").stdout.count("\n") == 1
    assert (repository.path / "params.yaml").read_text() == "a: 2  # mine\n"
    assert project.git("rev-parse", "--abbrev-ref", "HEAD") == "main\n"


def test_a_process_and_what_it_has_started_are_both_ended(tmp_path):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    end(process, most_s=0.5)
    assert process.stdout.read() == b""  # nobody has it open any more
    assert process.returncode == -signal.SIGTERM
