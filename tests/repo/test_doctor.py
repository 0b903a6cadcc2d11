"""`make doctor` after real crashes: DVC killed with SIGKILL at a known step, by itself or by the stage that it runs."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pygit2
import pytest
from dulwich.index import IndexEntry
from dulwich.repo import Repo as DulwichRepo

from reprise.repo import doctor as doctoring
from reprise.repo import revisions
from reprise.repo.project import Project
from reprise.repo.stashes import Leftover
from tests.repo.conftest import (
    EDITS_STASHED,
    EXPERIMENT_COMMITTED,
    EXPERIMENT_PREPARED,
    EXPERIMENT_WAITS,
    HEAD_CHECKED_OUT,
    LR,
    NOT_YET_COLLECTED,
    killed,
)
from tests.test_pipeline import refused


def doctor(workspace, *arguments, expect=0):
    """Return what it says."""
    done = workspace.reprise("doctor", *arguments, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def followed(workspace, said, before):
    """Type the command that doctor names after some words."""
    workspace.run("sh", "-ec", said.split(f"{before}`")[1].split("`")[0])


def refusing(workspace):
    return refused(workspace.reprise("doctor", check=False))


def head(workspace):
    return workspace.run("git", "symbolic-ref", "-q", "HEAD", check=False).stdout.strip()


def hint(workspace):
    done = workspace.reprise("doctor", "--check")
    assert done.stdout == ""
    return done.stderr


def lines(workspace, *command):
    return workspace.run(*command).stdout.splitlines()


def healthy(workspace):
    """Say what a workspace must be after the doctor: on its branch, quiet, with everything that was the user's."""
    assert doctor(workspace) == "nothing to do\n"
    assert head(workspace) == "refs/heads/main"
    assert "kept" in experiments(workspace)
    assert (workspace.path / "README.md").read_text() == (workspace.path / "notes.txt").read_text() == "mine\n"
    assert "weight_decay: 0.02" in (workspace.path / "params.yaml").read_text()
    assert not {"EXEC_MERGE", "EXEC_BASELINE", "EXEC_BRANCH", "stash"} & {
        name.rpartition("/")[2] for name in lines(workspace, "git", "for-each-ref", "--format=%(refname)")
    }


def experiments(workspace):
    return {experiment.name for experiment in revisions.experiments(Project(workspace.path))}


def wait_for_the_end(pid):
    with contextlib.suppress(psutil.NoSuchProcess):  # nobody's child is gone at any moment, between two calls too
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def test_an_experiment_killed_with_its_stage_leaves_a_branch_and_all_edits(breakable):
    assert breakable.run("setsid", "--wait", "dvc", "exp", "run", "-S", LR, check=False, STAGE_KILLS="1").returncode
    assert head(breakable) == ""  # the next commit would be on no branch
    assert len(list(breakable.path.glob("metrics/.*.partial"))) == 1
    before = lines(breakable, "git", "status", "--porcelain=v2", "--branch")
    plan = doctor(breakable, "--dry-run")
    assert lines(breakable, "git", "status", "--porcelain=v2", "--branch") == before
    assert doctor(breakable) == plan
    healthy(breakable)
    assert not list(breakable.path.rglob("*.partial"))
    status = lines(breakable, "git", "status", "--porcelain")
    assert status == [" M README.md", " D metrics/test.json", " M params.yaml", "?? notes.txt"]
    assert "quick" in breakable.run("dvc", "status").stdout
    breakable.run("dvc", "exp", "run", "--name", "next")
    assert head(breakable) == "refs/heads/main"
    assert experiments(breakable) == {"kept", "next"}
    assert breakable.run("dvc", "status").stdout == "Data and pipelines are up to date.\n"


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (EDITS_STASHED, ["M  README.md", " M params.yaml", "?? notes.txt"]),
        (HEAD_CHECKED_OUT, [" M README.md", " M params.yaml", "?? notes.txt"]),
    ],
    ids=["stashed", "overwritten"],
)
def test_edits_that_dvc_had_set_aside_come_back(killed_at, step, status):
    breakable = killed_at(*step)
    assert lines(breakable, "git", "status", "--porcelain") == ["?? notes.txt"]  # gone
    doctor(breakable)
    healthy(breakable)
    assert lines(breakable, "git", "status", "--porcelain") == status
    assert ("lr: 0.5" in (breakable.path / "params.yaml").read_text()) == (step == HEAD_CHECKED_OUT)


def test_a_stash_of_the_users_own_is_not_taken_for_dvcs(breakable):
    breakable.run("git", "stash", GIT_COMMITTER_DATE="2099-01-01T00:00:00")  # as if in the same second
    (breakable.path / "Makefile").write_text("mine too\n")
    repository = pygit2.Repository(breakable.path)
    repository.stash(repository.default_signature, "for later")
    killed(breakable, EDITS_STASHED)  # had nothing to set aside
    assert "stash" not in doctor(breakable)
    assert len(lines(breakable, "git", "stash", "list")) == 2


def test_edits_mixed_with_the_runs_parameters_are_left_to_the_user_with_a_command_that_works(killed_at):
    breakable = killed_at(*EXPERIMENT_PREPARED)
    assert ".dvc/tmp/repro.dat" in breakable.run("git", "diff", "--cached", "--name-only").stdout
    said = doctor(breakable, expect=1)
    assert head(breakable) == "refs/heads/main"
    assert "lr: 0.5" in (breakable.path / "params.yaml").read_text()
    assert lines(breakable, "git", "status", "--porcelain") == [" M README.md", " M params.yaml", "?? notes.txt"]
    followed(breakable, said, "or go back to your edits: ")
    assert "the working tree has them" in doctor(breakable)
    healthy(breakable)
    assert "lr: 0.003" in (breakable.path / "params.yaml").read_text()


def test_an_experiment_killed_before_it_began_does_not_run_with_the_next_one(breakable):
    killed(breakable, EXPERIMENT_WAITS, "exp", "run", "--name", "ghost", "-S", LR)
    assert "ghost" in doctor(breakable)
    healthy(breakable)
    breakable.run("dvc", "exp", "run", "--name", "next", "-S", "train.lr=0.7")
    assert experiments(breakable) == {"kept", "next"}
    assert "lr: 0.7" in (breakable.path / "params.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "options", "changed"),
    [
        (EXPERIMENT_COMMITTED, [], [" M README.md", " M dvc.lock", " M metrics/test.json", " M params.yaml"]),
        (NOT_YET_COLLECTED, ["--temp"], ["M  README.md", " M params.yaml"]),
    ],
    ids=["workspace", "temp"],
)
def test_a_finished_experiment_survives(breakable, step, options, changed):
    killed(breakable, step, "exp", "run", *options, "--name", "done", "-S", LR)
    if options:
        assert "done" not in experiments(breakable)
        assert "Running" in breakable.run("dvc", "exp", "show", "--csv").stdout  # for ever
    doctor(breakable)
    healthy(breakable)
    assert lines(breakable, "git", "status", "--porcelain") == [*changed, "?? notes.txt"]
    assert experiments(breakable) == {"done", "kept"}
    assert "Running" not in breakable.run("dvc", "exp", "show", "--csv").stdout
    assert not list((breakable.path / ".dvc/tmp/exps").rglob("tmp*"))
    breakable.run("dvc", "exp", "apply", "done")
    assert (breakable.path / "models/model.json").read_text() == "0.5"


@pytest.mark.slow
def test_a_queued_experiment_whose_worker_died_is_marked_as_failed(breakable):
    exps = breakable.path / ".dvc/tmp/exps"
    breakable.run("dvc", "exp", "run", "--queue", "--name", "lost", "-S", LR)
    breakable.run("dvc", "queue", "start", STAGE_KILLS="1")
    wait_for_the_end(json.loads((exps / "celery/dvc-exp-worker-1.json").read_text())["pid"])
    assert "Running" in breakable.run("dvc", "queue", "status").stdout
    (info,) = exps.glob("run/*/*.json")
    with subprocess.Popen(["sleep", "60"]) as bystander:  # has got the dead process's pid
        info.write_text(json.dumps({**json.loads(info.read_text()), "pid": bystander.pid}))
        doctor(breakable)
        assert bystander.poll() is None
        bystander.terminate()
    assert "Failed" in breakable.run("dvc", "queue", "status").stdout
    assert "lost" in breakable.run("dvc", "exp", "show", "--csv").stdout
    assert not list(exps.glob("tmp*"))
    healthy(breakable)


def test_it_waits_for_dvc_and_for_a_stage_that_outlives_it_then_frees_the_dead_ones_locks(breakable):
    fifo = breakable.path.parent / "arrived"
    os.mkfifo(fifo)
    environment = breakable.environment() | {"STAGE_WAITS": str(fifo)}
    command = ["dvc", "repro", "--force"]
    dvc = subprocess.Popen(command, cwd=breakable.path, env=environment, stdout=subprocess.DEVNULL)
    with fifo.open() as arrived:
        stage = next(child for child in psutil.Process(dvc.pid).children(recursive=True) if "python" in child.name())
        assert f"process {dvc.pid} (" in refusing(breakable)
        dvc.kill()
        wait_for_the_end(dvc.pid)
        said = refusing(breakable)
        assert f"process {stage.pid} (" in said
        assert f"process {dvc.pid} (" not in said
        stage.kill()
        arrived.read()
    wait_for_the_end(stage.pid)
    # nobody has waited for dvc yet: its pid exists
    assert "is busy" in breakable.run("dvc", "repro", check=False).stderr
    assert f"process {dvc.pid}" in doctor(breakable)
    breakable.run("dvc", "repro")
    healthy(breakable)
    assert dvc.wait() == -signal.SIGKILL


def test_a_cut_off_lock_of_dvc_goes(breakable):
    (breakable.path / ".dvc/tmp/rwlock").write_text('{"write": {"')
    assert "corrupted" in breakable.run("dvc", "repro", check=False).stderr
    doctor(breakable)
    breakable.run("dvc", "repro")


@pytest.mark.parametrize("name", ["index.lock", "objects/ab/lost.lock", "refs/heads/main.lock", "gc.pid.lock"])
def test_a_lock_anywhere_in_git_is_found(breakable, name):
    (breakable.path / ".git" / name).parent.mkdir(exist_ok=True)
    (breakable.path / ".git" / name).touch()
    assert "`make doctor`" in hint(breakable)
    assert f".git/{name}: no living git process holds it" in doctor(breakable)
    assert not (breakable.path / ".git" / name).exists()


@pytest.mark.parametrize("where", ["here", "in another work tree"])
def test_a_lock_of_git_stays_while_a_git_is_at_work(breakable, tmp_path, where):
    breakable.run("git", "worktree", "add", "--quiet", str(tmp_path / "tree"))
    lock = breakable.path / ".git" / ("index.lock" if where == "here" else "worktrees/tree/index.lock")
    lock.touch()
    folder = breakable.path if where == "here" else tmp_path / "tree"
    command = ["git", "-c", "alias.wait=!sleep 60; : the daemon", "wait"]
    with subprocess.Popen(command, cwd=folder, start_new_session=True) as git:
        assert f"git (process {git.pid}) is at work" in refusing(breakable)
        assert hint(breakable) == ""
        os.killpg(git.pid, signal.SIGTERM)
    assert lock.exists()


@pytest.mark.parametrize("name", ["dvc", "ipython"])
def test_it_waits_for_whoever_holds_dvcs_locks_but_not_for_who_has_only_the_pid(breakable, name):
    rwlock = breakable.path / ".dvc/tmp/rwlock"
    with subprocess.Popen([name, "60"], executable=shutil.which("sleep"), cwd="/") as elsewhere:
        rwlock.write_text(json.dumps({"write": {"models": {"pid": elsewhere.pid, "cmd": "dvc repro"}}}))
        assert f"process {elsewhere.pid} (" in refusing(breakable)
        os.utime(rwlock, (1, 1))  # from before that process began
        assert f"`dvc repro` (process {elsewhere.pid}), which is dead" in doctor(breakable)
        elsewhere.terminate()
    with (breakable.path / ".dvc/tmp/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a dvc in another container does
        assert "holds .dvc/tmp/lock" in refusing(breakable)


def test_what_a_repair_did_not_put_right_is_said_and_no_success(tmp_path, monkeypatch):
    stubborn = Leftover("a lock", "remove it", lambda: None)
    monkeypatch.setattr(doctoring, "examine", lambda *_: iter([stubborn]))
    assert [bool(found.repair) for found in doctoring.repairs(Project(tmp_path), [])] == [True, False]


@pytest.mark.parametrize("script", ["train", "eval"])
def test_scripts_say_that_doctor_is_needed(breakable, script):
    (breakable.path / ".git/index.lock").touch()
    assert "note: a killed DVC left" in breakable.run("python", f"src/{script}.py", check=False).stderr


def test_partial_outs_go_unless_a_living_process_holds_them(breakable):
    gone = ["metrics/.test.json.partial", "data/.raw.partial/images.zip", "data/.raw.replaced.partial/images.zip"]
    kept = ["data/own/.x.partial", "models/.model.json.partial"]
    for name in [*kept, *gone, "metrics/.test.json.lock"]:
        (breakable.path / name).parent.mkdir(exist_ok=True)
        (breakable.path / name).touch()
    with (breakable.path / "models/.model.json.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        doctor(breakable)
    assert [name for name in kept + gone if (breakable.path / name).exists()] == kept


def test_commits_made_on_the_detached_head_are_left_to_the_user_with_a_command_that_works(killed_at):
    breakable = killed_at(*EXPERIMENT_COMMITTED)
    breakable.run("git", "commit", "--quiet", "--allow-empty", "-m", "on no branch")
    mine = breakable.run("git", "rev-parse", "HEAD").stdout
    said = doctor(breakable, expect=1)
    assert head(breakable) == ""
    assert breakable.run("git", "rev-parse", "HEAD").stdout == mine
    followed(breakable, said, "yours to decide: ")
    doctor(breakable)
    healthy(breakable)
    assert breakable.run("git", "rev-parse", "main").stdout == mine


@pytest.mark.parametrize("detached", ["by the user", "log lost", "two branches, log lost"])
def test_a_head_goes_back_only_where_it_surely_was(breakable, detached):
    breakable.run("git", "tag", "v1")
    if detached == "by the user":
        breakable.run("git", "checkout", "--quiet", "v1")
    killed(breakable, EXPERIMENT_COMMITTED)
    if "log lost" in detached:
        (breakable.path / ".git/logs/HEAD").unlink()
    if "two branches" in detached:
        breakable.run("git", "branch", "other", "main")
    said = doctor(breakable, expect=int("two" in detached))
    assert head(breakable) == ("refs/heads/main" if detached == "log lost" else "")
    if detached == "by the user":
        assert lines(breakable, "git", "rev-parse", "HEAD") == lines(breakable, "git", "rev-parse", "v1")
        assert doctor(breakable) == "nothing to do\n"
    if "two" in detached:
        assert "`git symbolic-ref HEAD refs/heads/main` or `git symbolic-ref HEAD refs/heads/other`" in said


def test_a_healthy_workspace_needs_nothing(breakable, tmp_path):
    breakable.run("dvc", "exp", "run", "-S", LR)
    assert doctor(breakable) == "nothing to do\n"
    breakable.run("git", "clone", "--quiet", ".", str(tmp_path / "never run"))
    never_run = type(breakable)(tmp_path / "never run")
    assert doctor(never_run) == "nothing to do\n"
    assert not (never_run.path / ".dvc/tmp").exists()


def test_a_change_that_git_does_not_see_is_shown_to_it(reproduced):
    file = reproduced.path / "params.yaml"
    before = file.read_text()
    file.write_text(before.replace("lr: 0.003", "lr: 0.004"))  # of the same size
    os.utime(file, (0, 0))
    index = DulwichRepo(str(reproduced.path)).open_index()  # as DVC leaves it now and then, after a stage that failed
    seen, old = file.stat(), index[b"params.yaml"]
    times = [divmod(time, 10**9) for time in (seen.st_ctime_ns, seen.st_mtime_ns)]
    numbers = (seen.st_dev, seen.st_ino, old.mode, seen.st_uid, seen.st_gid, seen.st_size)
    index[b"params.yaml"] = IndexEntry(*times, *numbers, old.sha)
    index.write()
    assert reproduced.clean()  # which is wrong
    said = doctor(reproduced)
    assert said.startswith("params.yaml: changed, and `git status` does not see it")
    assert not reproduced.clean()
    reproduced.run("git", "checkout", ".")
    assert file.read_text() == before
    assert doctor(reproduced) == "nothing to do\n"
