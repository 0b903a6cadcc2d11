"""A project may be a Git repository, a folder of a larger one, a work tree or a submodule; commands work in each."""

import shutil

import pytest

from reprise.repo.project import Project
from reprise.repo.revisions import find_revision
from reprise.runtime.errors import UserError
from tests.conftest import Workspace
from tests.repo.conftest import EDITS_STASHED, HEAD_CHECKED_OUT, killed

pytestmark = pytest.mark.slow


def committed(path):
    """Make a new repository of what lies at a path, as far as its ignore files let it."""
    repository = Workspace(path)
    repository.run("git", "init", "--quiet", "--initial-branch", "main")
    repository.run("git", "config", "user.name", "Test")
    repository.run("git", "config", "user.email", "test@example.invalid")
    repository.commit()
    return repository


def with_outs(project, source):
    """Bring the outs in, out of another clone's cache."""
    project.run("dvc", "cache", "dir", "--local", str(source.path / ".dvc/cache"))
    project.run("dvc", "checkout", "--quiet")
    return project


def in_a_subfolder(source, tmp_path):
    shutil.copytree(source.path, tmp_path / "large/models/digits", ignore=shutil.ignore_patterns(".git"))
    (tmp_path / "large/README").write_text("of all")
    committed(tmp_path / "large")
    (tmp_path / "large/README").write_text("not the project's")
    return Workspace(tmp_path / "large/models/digits")


def in_a_worktree(source, tmp_path):
    source.run("git", "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "tree"))
    return with_outs(Workspace(tmp_path / "tree"), source)


def as_a_submodule(source, tmp_path):
    (tmp_path / "large").mkdir()
    large = committed(tmp_path / "large")
    local = ("-c", "protocol.file.allow=always")
    large.run("git", *local, "submodule", "--quiet", "add", str(source.path), "models/digits")
    return with_outs(Workspace(tmp_path / "large/models/digits"), source)


@pytest.mark.parametrize("layout", [in_a_subfolder, in_a_worktree, as_a_submodule])
def test_every_command_works_wherever_the_project_lies(reproduced, tmp_path, layout):
    project = layout(reproduced, tmp_path)

    def reprise(*arguments, **options):
        return project.reprise(*arguments, **options).stdout

    assert "are what dvc.lock records" in reprise("verify")
    assert reprise("doctor") == "nothing to do\n"
    assert "workspace " not in reprise("history")
    page = reprise("review", "--base", "main")
    assert page.count("| passed |") == 3, page
    assert "# No difference shown: the workspace against " in page
    assert (project.path / "runs/review/reliability.svg").exists()
    assert "older than" not in page
    assert "uncommitted" not in page
    project.set("train.lr=0.002")
    said = reprise("compare")
    assert said.startswith("no difference shown: ")
    assert "uncommitted changes (params.yaml)" in said
    assert "The results of the workspace are older than its params.yaml train:" in said
    assert "The results of main" not in said
    page = reprise("review", check=False)
    assert "| dvc.lock is fresh | **failed** |" in page
    assert "| params.yaml train | train | modified since dvc.lock was written |" in page
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@example.invalid")
    project.commit()
    assert "are older than its params.yaml train:" in reprise("compare", "HEAD", "main")


@pytest.mark.parametrize("step", [EDITS_STASHED, HEAD_CHECKED_OUT])
def test_the_doctor_gives_back_what_was_edited_inside_and_outside_of_the_project(reproduced, tmp_path, step):
    project = in_a_subfolder(reproduced, tmp_path)
    project.set("train.weight_decay=0.02")
    edited = {path: path.read_text() for path in (project.path / "params.yaml", tmp_path / "large/README")}
    killed(project, step)
    assert {path: path.read_text() for path in edited} != edited
    project.reprise("doctor")
    now = {path: path.read_text() for path in edited}
    if step == HEAD_CHECKED_OUT:  # with the value of -S
        now[project.path / "params.yaml"] = edited[project.path / "params.yaml"]
    assert now == edited
    assert project.run("git", "symbolic-ref", "HEAD").stdout == "refs/heads/main\n"
    assert project.reprise("doctor").stdout == "nothing to do\n"


def test_a_clone_of_the_subfolder_is_reproduced_and_its_base_too(quick_once, tmp_path):
    large = in_a_subfolder(quick_once, tmp_path)
    large.run("git", "clone", "--quiet", str(tmp_path / "large"), str(tmp_path / "runner"))
    runner = Workspace(tmp_path / "runner/models/digits")
    runner.run("git", "checkout", "--quiet", "-b", "try")
    page = runner.reprise("review", "--base", "main", check=False).stdout
    assert "the same bytes in every out" in page


def test_the_project_is_found_from_any_folder_below_and_a_revision_reads_the_files_of_it(reproduced, tmp_path):
    path = in_a_subfolder(reproduced, tmp_path).path
    project = Project.find(path / "src/reprise")
    assert (project.root, str(project.prefix)) == (path, "models/digits")
    assert find_revision(project, "main").read("params.yaml") == (path / "params.yaml").read_text()
    assert project.changed("HEAD") == []
    with pytest.raises(UserError, match="not in a Git and DVC repository"):
        Project.find(tmp_path / "large/models")
