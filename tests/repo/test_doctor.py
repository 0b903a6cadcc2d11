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
import pytest

from reprise.repo import revisions
from reprise.repo.project import Project
from tests.test_pipeline import refused

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
EXPERIMENT_COMMITTED = "dvc.repo.experiments.executor.local", "WorkspaceExecutor", "cleanup", "1"
NOT_YET_COLLECTED = *QUEUE, "collect_executor", "1"


def killed(workspace, step, *arguments):
    done = workspace.run("python", "-c", KILLED, *step, *arguments, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def doctor(workspace, *arguments, expect=0):
    done = workspace.run("python", "-m", "reprise", "doctor", *arguments, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


def head(workspace):
    return workspace.run("git", "symbolic-ref", "-q", "HEAD", check=False).stdout.strip()


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
def test_edits_that_dvc_had_set_aside_come_back(breakable, step, status):
    killed(breakable, step, "exp", "run", "-S", LR)
    assert lines(breakable, "git", "status", "--porcelain") == ["?? notes.txt"]  # gone
    doctor(breakable)
    healthy(breakable)
    assert lines(breakable, "git", "status", "--porcelain") == status
    assert ("lr: 0.5" in (breakable.path / "params.yaml").read_text()) == (step == HEAD_CHECKED_OUT)


def test_a_stash_of_the_users_own_is_not_taken_for_dvcs(breakable):
    breakable.run("git", "stash", GIT_COMMITTER_DATE="2099-01-01T00:00:00")  # as if in the same second
    killed(breakable, EDITS_STASHED, "exp", "run", "-S", LR)  # had nothing to set aside
    assert "stash" not in doctor(breakable)
    assert len(lines(breakable, "git", "stash", "list")) == 1


def test_edits_mixed_with_the_runs_parameters_are_left_to_the_user_with_a_command_that_works(breakable):
    killed(breakable, EXPERIMENT_PREPARED, "exp", "run", "-S", LR)
    assert ".dvc/tmp/repro.dat" in breakable.run("git", "diff", "--cached", "--name-only").stdout
    said = doctor(breakable, expect=1)
    assert head(breakable) == "refs/heads/main"
    assert "lr: 0.5" in (breakable.path / "params.yaml").read_text()
    assert lines(breakable, "git", "status", "--porcelain") == [" M README.md", " M params.yaml", "?? notes.txt"]
    breakable.run("sh", "-ec", said.split("or go back to your edits: `")[1].split("`")[0])
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
        assert f"process {dvc.pid} (" in refused(breakable.run("python", "-m", "reprise", "doctor", check=False))
        dvc.kill()
        wait_for_the_end(dvc.pid)
        said = refused(breakable.run("python", "-m", "reprise", "doctor", check=False))
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


def test_a_lock_of_git_goes_unless_a_git_lives_and_a_cut_off_lock_of_dvc_goes(breakable):
    (breakable.path / ".git/index.lock").touch()
    (breakable.path / ".dvc/tmp/rwlock").write_text('{"write": {"')
    assert breakable.run("git", "commit", "--all", "-m", "x", check=False).returncode != 0
    assert "corrupted" in breakable.run("dvc", "repro", check=False).stderr
    with subprocess.Popen(["git", "cat-file", "--batch"], cwd=breakable.path, stdin=subprocess.PIPE) as git:
        assert f"git (process {git.pid}) is at work" in doctor(breakable, expect=1)
        git.stdin.close()
    assert "index.lock" in doctor(breakable)
    healthy(breakable)
    breakable.run("git", "commit", "--all", "-m", "x")
    breakable.run("dvc", "repro")


def test_it_waits_for_whoever_holds_dvcs_locks(breakable):
    (breakable.path / ".git/index.lock").touch()
    with subprocess.Popen(["dvc", "60"], executable=shutil.which("sleep"), cwd="/") as elsewhere:
        locks = {"write": {"models": {"pid": elsewhere.pid, "cmd": "dvc repro"}}}
        (breakable.path / ".dvc/tmp/rwlock").write_text(json.dumps(locks))
        assert f"process {elsewhere.pid} (" in refused(breakable.run("python", "-m", "reprise", "doctor", check=False))
        elsewhere.terminate()
    with (breakable.path / ".dvc/tmp/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a dvc in another container does
        assert "holds .dvc/tmp/lock" in refused(breakable.run("python", "-m", "reprise", "doctor", check=False))
    assert (breakable.path / ".git/index.lock").exists()


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


def test_commits_made_on_the_detached_head_are_left_to_the_user_with_a_command_that_works(breakable):
    killed(breakable, EXPERIMENT_COMMITTED, "exp", "run", "-S", LR)
    breakable.run("git", "commit", "--quiet", "--allow-empty", "-m", "on no branch")
    mine = breakable.run("git", "rev-parse", "HEAD").stdout
    said = doctor(breakable, expect=1)
    assert head(breakable) == ""
    assert breakable.run("git", "rev-parse", "HEAD").stdout == mine
    breakable.run("sh", "-ec", said.split("yours to decide: `")[1].split("`")[0])
    doctor(breakable)
    healthy(breakable)
    assert breakable.run("git", "rev-parse", "main").stdout == mine


@pytest.mark.parametrize("detached", ["by the user", "log lost", "two branches, log lost"])
def test_a_head_goes_back_only_where_it_surely_was(breakable, detached):
    breakable.run("git", "tag", "v1")
    if detached == "by the user":
        breakable.run("git", "checkout", "--quiet", "v1")
    killed(breakable, EXPERIMENT_COMMITTED, "exp", "run", "-S", LR)
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
