"""`make doctor` after a killed `dvc exp run` was simply repeated: no edit is lost or unmentioned, no HEAD unnoticed."""

import pytest

from tests.repo.conftest import (
    EDITS_NOT_GIVEN_BACK,
    EDITS_STASHED,
    EXPERIMENT_COMMITTED,
    EXPERIMENT_PREPARED,
    HEAD_CHECKED_OUT,
    HEAD_NOT_DETACHED,
    LR,
    killed,
)
from tests.repo.test_doctor import doctor, followed, head, healthy, hint, lines

RUN = ("exp", "run", "-S", LR)


@pytest.mark.slow
@pytest.mark.parametrize("step", [EDITS_STASHED, EXPERIMENT_PREPARED, HEAD_CHECKED_OUT, EXPERIMENT_COMMITTED])
def test_after_a_kill_and_the_same_command_again_all_edits_are_back_on_the_branch(killed_at, step):
    breakable = killed_at(*step)
    breakable.run("dvc", *RUN)
    assert head(breakable) == ("refs/heads/main" if step == EDITS_STASHED else "")
    assert "`make doctor`" in hint(breakable)
    said = doctor(breakable, expect=int(step != EXPERIMENT_COMMITTED))
    if step != EXPERIMENT_COMMITTED:  # the line beside lr was edited
        followed(breakable, said, "go back to your edits: ")
        doctor(breakable)
    healthy(breakable)
    assert lines(breakable, "git", "stash", "list") == []
    assert hint(breakable) == ""


@pytest.mark.slow
def test_edits_that_only_a_lost_commit_has_are_found_though_head_is_on_its_branch(breakable):
    """DVC was killed when HEAD's files were laid over the edits, and HEAD not yet detached."""
    killed(breakable, HEAD_NOT_DETACHED)
    breakable.run("git", "checkout", "--force", "HEAD", "--", ".")  # as far as it came
    for command in (("stash", "clear"), ("update-ref", "-d", "refs/exps/exec/EXEC_MERGE")):
        breakable.run("git", *command)
    breakable.run("dvc", *RUN)
    assert head(breakable) == "refs/heads/main"
    assert (breakable.path / "README.md").read_text() != "mine\n"
    assert "`make doctor`" in hint(breakable)
    said = doctor(breakable, expect=1)
    assert "README.md, params.yaml: edits from before the experiment" in said
    followed(breakable, said, "go back to your edits: ")
    doctor(breakable)
    healthy(breakable)


def test_what_apply_replaced_is_named_until_it_is_decided_and_what_an_experiment_has_is_not(breakable):
    breakable.run("dvc", "exp", "save", "--name", "here")
    (breakable.path / "README.md").write_text("later\n")
    breakable.run("dvc", "exp", "apply", "kept")
    assert (breakable.path / "README.md").read_text() not in ("mine\n", "later\n")
    said = doctor(breakable, expect=1)
    assert said.startswith("README.md: your uncommitted edits, which `dvc exp apply` replaced")
    assert "params.yaml" not in said  # as `here` has it
    assert doctor(breakable, expect=1) == said
    assert "`make doctor`" in hint(breakable)
    followed(breakable, said, "yours to decide: ")
    assert (breakable.path / "README.md").read_text() == "later\n"
    assert doctor(breakable) == "nothing to do\n"
    (breakable.path / "README.md").write_text("other\n")
    followed(breakable, said, "gives it back, ")
    assert doctor(breakable) == "nothing to do\n"


@pytest.mark.parametrize(
    ("content", "code", "result"),
    [
        ("", 0, "weight_decay: 0.02"),
        (None, 0, "weight_decay: 0.02"),
        ("train: [", 1, "train: ["),
        ("- a list", 1, "- a list"),
    ],
)
def test_a_params_file_cut_off_comes_from_the_edits_that_dvc_had_set_aside(killed_at, content, code, result):
    breakable = killed_at(*EXPERIMENT_PREPARED)
    (breakable.path / "params.yaml").unlink()
    if content is not None:
        (breakable.path / "params.yaml").write_text(content)
    said = doctor(breakable, expect=code)
    assert "params.yaml: " in said
    assert result in (breakable.path / "params.yaml").read_text()
    if code:
        followed(breakable, said, "put it right, or ")
        assert "weight_decay: 0.02" in (breakable.path / "params.yaml").read_text()
        doctor(breakable)
    healthy(breakable)


def test_each_edit_that_an_apply_took_when_it_was_killed_comes_back_by_the_command_that_is_named(killed_at):
    workspace = killed_at(*EDITS_NOT_GIVEN_BACK, arguments=("exp", "apply", "kept"))
    assert not (workspace.path / "notes.txt").exists()
    for _ in range(3):
        followed(workspace, doctor(workspace, expect=1), "yours to decide: ")
    assert doctor(workspace) == "nothing to do\n"
    assert (workspace.path / "README.md").read_text() == (workspace.path / "notes.txt").read_text() == "mine\n"
    assert "weight_decay: 0.02" in (workspace.path / "params.yaml").read_text()


def test_stashes_that_the_working_tree_has_are_dropped_by_one_call(killed_at):
    workspace = killed_at(*EDITS_STASHED)
    workspace.run("git", "stash", "apply", "--quiet")
    named = ("stash^{tree}", "-p", "stash^1", "-p", "stash^2", "-m", "dvc-exp: as it was")
    other = workspace.run("git", "commit-tree", *named).stdout.strip()
    workspace.run("git", "stash", "store", "-m", "dvc-exp: as it was", other)
    assert len(lines(workspace, "git", "stash", "list")) == 2
    doctor(workspace)
    healthy(workspace)


def test_a_name_with_the_characters_of_a_pattern_brings_back_no_other_file(breakable):
    for name in ("n*.md", "notes.md"):
        (breakable.path / name).write_text("old")
    breakable.commit()
    (breakable.path / "n*.md").write_text("mine")
    killed(breakable, EDITS_STASHED)
    (breakable.path / "n*.md").unlink()
    (breakable.path / "notes.md").write_text("later")
    doctor(breakable)
    assert [(breakable.path / name).read_text() for name in ("n*.md", "notes.md")] == ["mine", "later"]


@pytest.mark.parametrize("how", ["an older commit by its whole id", "a rebase that stopped", "a bisection"])
def test_a_head_that_the_user_detached_stays_and_is_no_finding(breakable, how):
    breakable.run("git", "stash", "--quiet")
    (breakable.path / ".dvc/tmp/exps").mkdir(exist_ok=True)  # DVC has run experiments here
    old, new = lines(breakable, "git", "log", "--reverse", "--format=%H")
    if "older" in how:
        breakable.run("git", "checkout", "--quiet", old)
    elif "rebase" in how:
        breakable.run("git", "rebase", "--exec", "false", old, check=False)
    else:
        for word in (["start"], ["bad", new], ["good", old]):
            breakable.run("git", "bisect", *word)
        breakable.run("git", "checkout", "--quiet", "--detach", check=False)
    assert head(breakable) == ""
    assert hint(breakable) == ""
    assert doctor(breakable) == "nothing to do\n"
    assert head(breakable) == ""
    assert len(lines(breakable, "git", "stash", "list")) == 1


def test_a_worker_of_the_queue_that_died_is_found_once(breakable):
    folder = breakable.path / ".dvc/tmp/exps/celery"
    folder.mkdir(parents=True, exist_ok=True)
    for number, code in enumerate(["null", "0"], 1):
        (folder / f"dvc-exp-worker-{number}.json").write_text(f'{{"pid": 1, "returncode": {code}}}')
    assert doctor(breakable).startswith("dvc-exp-worker-1 of the queue: died\n  -> note it; `dvc queue start` goes on")
    assert "worker" not in doctor(breakable)
