"""A trial is an experiment of DVC like any other, and the work tree of the project is not touched for it."""

import shutil
import signal
import subprocess
import sys

import pytest

from reprise.repo.project import Project
from reprise.repo.trials import end, remove_trees, workspace
from reprise.runtime.errors import UserError
from tests.conftest import new_repository, state_of


def committed(path, files):
    """Return a project without stages that holds these files, {name: text}, and its commit, which lacks *.png."""
    repository = new_repository(path)
    repository.run("dvc", "init", "--quiet")
    for name, text in {"dvc.yaml": "stages: {}\n", ".gitignore": "/runs/\n*.png\n", **files}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    repository.commit()
    return Project(path), Project(path).git("rev-parse", "HEAD").strip()


def test_a_damaged_work_tree_is_made_anew_and_the_projects_own_is_not_touched(tmp_path):
    project, head = committed(tmp_path, {"params.yaml": "a: 1\n", "data/file": ""})
    (tmp_path / "params.yaml").write_text("a: 2  # mine\n")
    with workspace(project, head) as found:
        tree = found.tree
        lock = project.git_path("worktrees/0/index.lock")
        lock.touch()  # of a git that was killed
        (tree / "left").touch()
        assert end(found.run({}, tmp_path / "runs/log")) is None
        assert not lock.exists()
        assert not (tree / "left").exists()
        (tree / ".git").rename(tree / "git")
        with pytest.raises(FileNotFoundError):  # and no reset of what lies around it
            found.run({}, tmp_path / "runs/log")
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
    assert project.git("worktree", "list").count("\n") == 1
    assert (tmp_path / "params.yaml").read_text() == "a: 2  # mine\n"
    assert project.git("rev-parse", "--abbrev-ref", "HEAD") == "main\n"


def test_a_trial_has_all_images_where_git_has_only_a_part_of_them_and_removes_none_of_the_projects(tmp_path):
    names = "mine/a/1.jpg", "mine/a/2.png", "mine/3.png", "kept/.gitkeep", "kept/b/4.png", "none/5.png", "whole/6.jpg"
    (data := tmp_path / "data").mkdir()
    (data / "link").symlink_to("none")
    project, head = committed(
        tmp_path, {"params.yaml": "data: {path: a}\n", **{f"data/{name}": name for name in names}}
    )
    before = state_of(data)
    with workspace(project, head) as found:
        for path in "data/mine", "data/kept", "data/link", "data/whole", "data/mine/", str(data / "mine"):
            end(found.run({"data.path": path}, tmp_path / "runs/log"))
            assert ((found.root / path).resolve() == (tmp_path / path).resolve()) == (path != "data/whole")
        with pytest.raises(UserError, match="it is another place"):
            found.run({"data.path": "."}, tmp_path / "runs/log")
        assert (found.root / "params.yaml").exists()
    assert state_of(data) == before


def test_a_process_and_what_it_has_started_are_both_ended(tmp_path):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    end(process, most_s=0.5)
    assert process.stdout.read() == b""  # nobody has it open any more
    assert process.returncode == -signal.SIGTERM
