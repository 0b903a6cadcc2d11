"""A sweep goes on after any end, records each trial once, and lets no fault pass for a result."""

import errno
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from optuna.storages import RDBStorage

from reprise.repo.project import Project
from reprise.repo.revisions import find_revision
from reprise.repo.trials import COURSE, TREES
from reprise.runtime.errors import UserError
from reprise.search import sweep as module
from reprise.search.space import Definition
from reprise.search.storage import create_study, take_over
from reprise.search.study import Trial, begin, inputs, trials
from reprise.search.sweep import run_sweep
from tests.conftest import new_repository

# a training: an epoch each time that the test allows one more
TRAINING = """
import json, os, signal, sys, time
from pathlib import Path
root, lr, epochs = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
course, history = root / "metrics/.history.csv.partial", root / "metrics/history.csv"
def fail(*_): sys.exit(f"error: the loss became nan with train.lr={lr}")
signal.signal(signal.SIGTERM, lambda *_: (root.with_name("stopped").touch(), sys.exit(143)))
text = "epoch,val_accuracy,val_loss\\n"
for epoch in range(1, epochs + 1):
    text += f"{epoch},{1 - lr},{lr}\\n"
    course.write_text(text + f"{epoch + 1},0.")  # half a line more
    for _ in range(200 * (epoch > 2 and root.with_name("slow").exists() and lr > 0.5)): time.sleep(0.05)
if lr > 0.9: fail()
if root.with_name("killed").exists():
    root.with_name("killed").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
(root / "metrics/train.json").write_text(json.dumps({"val_accuracy": 1 - lr, "val_loss": None if lr == 0.87 else lr}))
course.rename(history)
history.write_text(text)
"""


@dataclass
class Tree:
    """A work tree in which a made-up training runs."""

    root: Path

    def run(self, params, log, *targets):
        assert targets == ("train",)
        for path in (self.root / "metrics").iterdir():
            path.unlink()
        deps = [{"path": "data/raw", "md5": self.root.with_name("raw").exists()}]
        (self.root / "dvc.lock").write_text(json.dumps({"stages": {"preprocess": {"deps": deps}}}))
        lr = params["train.lr"] + 0.1 * params.get("train.seed", 0)
        command = [sys.executable, "-c", TRAINING, self.root, str(lr), str(params["train.epochs"])]
        with log.open("ab") as file:
            return subprocess.Popen(command, stderr=file, start_new_session=True)

    def save(self, name, message, stages):
        self.root.with_name("saved").open("a").write(f"{name}\n")
        if message.endswith(", a part"):
            return "part"
        assert json.loads(message.splitlines()[-1])["name"] == name
        return "c0ffee"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose trainings are made up, in tmp_path/tree-N."""
    (tmp_path / "clone").mkdir()
    repository = new_repository(tmp_path / "clone")
    (repository.path / "params.yaml").write_text("train: {threads: 1, epochs: 5, lr: 0.1}\n")
    repository.commit()
    free = [tmp_path / "tree-0", tmp_path / "tree-1"]

    @contextmanager
    def workspace(project, commit):
        tree = Tree(free.pop())
        (tree.root / "metrics").mkdir(parents=True, exist_ok=True)
        yield tree
        free.append(tree.root)

    monkeypatch.setattr(module, "workspace", workspace)
    monkeypatch.setattr(module, "POLL_S", 0.02)
    monkeypatch.setattr(module, "cpus", lambda: 2)
    monkeypatch.setattr(Definition, "check", lambda self, params: None)
    return Project(repository.path)


def run(project, jobs=1, **changes):
    space = {"train.lr": "float(0, 0.8)", "train.epochs": 5}
    definition = begin(project, "mine", {"space": space, "trials": 8, "sampler": "random", **changes})
    return definition, lambda: run_sweep(project, definition, jobs)


def test_a_trial_over_seeds_has_the_mean_and_an_experiment_for_each(project, tmp_path):
    changes = {"repeat": {"train.seed": [0, 1, -1]}, "space": {"train.lr": "float(0.2, 0.6)", "train.epochs": 5}}
    ended = run(project, trials=2, **changes)[1]()
    for trial in ended:
        assert trial.values == pytest.approx([1 - trial.params["train.lr"]])
    names = [f"mine-{number:04d}{part}" for number in range(2) for part in ("-1", "-2", "")]
    assert (tmp_path / "saved").read_text().split() == names
    with pytest.raises(UserError, match="repeat: different values"):
        Definition.load(Path("x.yaml"), space={"train.lr": "0.1|0.2"}, repeat={"train.seed": [1, 1]})


def brief(ended):
    return [(each.number, each.name, each.state, each.params, each.values, each.course) for each in ended]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_trial_is_recorded_once_with_its_course_and_a_second_run_adds_none(project, jobs):
    _, sweep = run(project, jobs, trials=6)
    ended = sweep()
    assert [trial.name for trial in ended] == [f"mine-{number:04d}" for number in range(6)]
    for trial in ended:
        assert trial.values == [1 - trial.params["train.lr"]]
        assert trial.course == trial.values * 5
    ledger = (project.root / "sweeps/mine.jsonl").read_text()
    assert sorted(json.loads(line)["commit"] for line in ledger.splitlines()) == ["c0ffee"] * 6
    assert brief(sweep()) == brief(ended)
    assert (project.root / "sweeps/mine.jsonl").read_text() == ledger
    assert len(run(project, jobs, trials=7)[1]()) == 7  # more of the same sweep


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_sweep_that_is_stopped_at_any_trial_ends_in_the_trials_of_one_left_alone(project, monkeypatch, pruner):
    alone = brief(run(project, sampler="tpe", pruner=pruner)[1]())
    (project.root / "sweeps/mine.jsonl").unlink()
    for path in (project.root / "runs/sweeps/mine").iterdir():
        path.unlink()
    _, sweep = run(project, sampler="tpe", pruner=pruner)
    whole = module.record
    for kills in range(1, 4):  # before a trial's record, and after it
        for after in (False, True):

            def killed(project, trial, kills=kills, after=after):
                if trial.number < 2 * kills:
                    whole(project, trial)
                if after and trial.number == 2 * kills:
                    whole(project, trial)
                if trial.number >= 2 * kills:
                    raise SystemExit

            monkeypatch.setattr(module, "record", killed)
            with pytest.raises(SystemExit):
                sweep()
    monkeypatch.setattr(module, "record", whole)
    assert brief(sweep()) == alone
    assert any(state == "pruned" for _, _, state, *_ in alone) == (pruner == "median")


def test_a_hopeless_training_is_stopped_and_recorded_with_its_reason(project, tmp_path):
    space = {"train.lr": "0.1|0.2|0.3|0.4|0.45|0.7", "train.epochs": 5}
    (tmp_path / "slow").touch()  # the last, which would go on for long
    ended = run(project, space=space, sampler="grid", pruner="median", seed=6)[1]()
    (pruned,) = [trial for trial in ended if trial.params["train.lr"] == 0.7]
    assert (pruned.state, pruned.values, pruned.commit) == ("pruned", None, None)
    assert pruned.reason == "after epoch 2"
    assert pruned.course == pytest.approx([0.3, 0.3])
    assert (tmp_path / "stopped").exists()  # it had the time to keep a checkpoint
    assert len(ended) == 6


def test_a_failed_trial_stops_nothing_and_more_than_half_do(project, tmp_path):
    space = {"train.lr": "0.1|0.2|0.95", "train.epochs": 1}
    ended = run(project, space=space, sampler="grid")[1]()
    assert [trial.state for trial in ended].count("complete") == 2
    (failed,) = [trial for trial in ended if trial.state == "failed"]
    assert failed.reason == "error: the loss became nan with train.lr=0.95"
    worse = begin(project, "worse", {"space": {"train.lr": "float(0.91, 1)", "train.epochs": 1}, "trials": 20})
    with pytest.raises(UserError, match=r"4 of 4 trials failed, worse-0003 by: error: the loss became nan"):
        run_sweep(project, worse, 1)
    assert len(trials(project, worse)) == 4
    with pytest.raises(UserError, match=r"4 of 4 trials failed"):  # nothing more is tried
        run_sweep(project, worse, 1)


def test_a_trial_on_other_images_is_refused_and_runs_again_once_they_are_back(project, tmp_path):
    run(project, trials=2)[1]()
    (tmp_path / "raw").touch()
    with pytest.raises(UserError, match="mine-0002: data/raw not as for mine-0000; put it back"):
        run(project, trials=3)[1]()
    (tmp_path / "raw").unlink()
    assert [trial.inputs["data/raw"] for trial in run(project, trials=3)[1]()] == [False] * 3


def test_a_trial_whose_objective_cannot_be_computed_failed(project):
    (ended,) = run(project, trials=1, space={"train.lr": 0.87, "train.epochs": 1}, objectives=["val_loss"])[1]()
    assert (ended.state, ended.reason, ended.values) == ("failed", "an objective is no number: [nan]", None)


def test_the_file_as_it_was_before_the_sweep_is_that_of_the_same_sweep(project):
    path, given = project.root / "sweeps/mine.yaml", {"space": {"train.lr": "1|2"}}
    made = begin(project, "mine", given)
    trial = Trial(0, "mine-0000", "complete", {"train.lr": 1}, [0.5], None, 1.0, [], None, made.digest)
    commit = project.git("commit-tree", "HEAD^{tree}", "-m", f"a sweep\n\n{trial.line()}").strip()
    project.git("update-ref", f"refs/exps/{made.commit[:2]}/{made.commit[2:]}/mine-0000", commit)
    project.git("commit", "--quiet", "--allow-empty", "-m", "later")
    path.write_text("trials: 20\n")  # `dvc exp apply` puts back a file without what the sweep has added
    assert begin(project, "mine", given) == made
    path.write_text("trials: 20\n")
    with pytest.raises(UserError, match=r"mine.yaml: a sweep of this name began with another space, commit, setting"):
        begin(project, "mine", {"space": {"train.lr": "1|3"}})
    gone = made.model_copy(update={"commit": "0" * 40})
    with pytest.raises(UserError, match=r"mine.yaml: 0{40} is not in this clone; fetch it"):
        begin(project, "mine", {**given, "commit": gone.commit, "digest": gone.deciding()})
    project.git("update-ref", f"refs/exps/{made.commit[:2]}/{made.commit[2:]}/wide-0-0001", commit)
    assert begin(project, "wide", given).digest


def test_a_training_that_was_killed_goes_on(project, tmp_path):
    (tmp_path / "killed").touch()
    assert [trial.state for trial in run(project, trials=2)[1]()] == ["complete"] * 2
    assert not (tmp_path / "killed").exists()


def test_a_full_disk_ends_the_sweep_and_is_no_failed_trial(project, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    definition, sweep = run(project, space={"train.lr": 0.95, "train.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(module.tempfile, "TemporaryFile", full)
        with pytest.raises(OSError, match="No space left"):
            sweep()
    assert trials(project, definition) == []


def test_what_does_not_fit_is_refused(project):
    definition, sweep = run(project, trials=2)
    with pytest.raises(UserError, match=r"--jobs 3 with train.threads: 1 is more than the 2 CPUs"):
        run_sweep(project, definition, 3)
    with pytest.raises(UserError, match=r"mine.yaml: a sweep of this name began with another space"):
        run(project, space={"train.lr": "float(0, 0.7)"})
    lock = module.Lock(project.root / "runs/sweeps")
    lock.acquire()
    with pytest.raises(UserError, match="a sweep is at work in this clone"):
        sweep()
    lock.release()
    sweep()
    (project.root / "sweeps/mine.yaml").unlink()  # but its trials are there
    with pytest.raises(UserError, match=r"mine.yaml: a sweep of this name began with another space"):
        run(project)
    (project.root / "params.yaml").write_text("train: {threads: 1, epochs: 4}\n")
    with pytest.raises(UserError, match=r"uncommitted changes \(params.yaml\)"):
        begin(project, "other", {"space": {"train.lr": "1|2"}})


@pytest.fixture
def machines(project, monkeypatch):
    """Two clones of a project with a folder that both can write; a call runs the shared sweep in one of them."""
    shared, other = project.root.parent / "shared", project.root.parent / "other"
    shared.mkdir()
    project.git("clone", "--quiet", str(project.root), str(other))
    monkeypatch.setattr(module, "SIGN_S", 0)
    clones = [project, Project(other)]

    def sweep(number, storage=shared, **changes):
        space = {"train.lr": "float(0, 0.8)", "train.epochs": 5}
        given = {"space": space, "trials": 8, "shared": True, **changes}
        return run_sweep(clones[number], begin(clones[number], "mine", given), 1, str(storage))

    sweep.own = lambda number: [json.loads(line) for line in clones[number].read("sweeps/mine.jsonl").splitlines()]
    return sweep


@pytest.mark.parametrize("storage", [None, "sqlite:///{}/mine.db"])
def test_two_machines_share_the_trials_of_a_sweep_and_run_none_twice(machines, tmp_path, storage):
    place = {"storage": storage.format(tmp_path)} if storage else {}
    if storage:
        RDBStorage(place["storage"])  # makes its tables, which Optuna cannot do twice at once
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(partial(machines, **place), (0, 1)))
    assert brief(both[0]) == brief(both[1])
    assert [trial.number for trial in both[0]] == list(range(8))
    ran = [[trial["number"] for trial in machines.own(number)] for number in (0, 1)]
    assert sorted(ran[0] + ran[1]) == list(range(8)) and min(map(len, ran)) > 0
    assert len({trial.params["train.lr"] for trial in both[0]}) == 8  # each chosen with a seed of its own
    assert [trial.number for trial in machines(1, **place, trials=9)] == list(range(9))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_a_trial_of_a_machine_that_died_runs_again_by_its_number_there_or_elsewhere(
    machines, monkeypatch, first, after
):
    whole, tried = module.record, []

    def killed(project, trial):
        tried.append(trial.params)
        if after:
            whole(project, trial)
        if trial.number == 3:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(module, "record", killed)
        with pytest.raises(SystemExit):
            machines(0)
    monkeypatch.setattr(module, "DEAD_S", 0.5)
    ended = machines(first)
    assert (len(ended), ended[3].number) == (8, 3)  # 4 is Optuna's number of its second attempt
    assert ended[3].params == tried[3]
    assert ("mine-0003" in [trial["name"] for trial in machines.own(1)]) == (first == 1)
    assert brief(machines(0)) == brief(machines(1)) == brief(ended)


def test_a_trial_that_was_taken_over_meanwhile_ends_and_is_not_recorded(machines, tmp_path):
    (tmp_path / "slow").touch()
    with ThreadPoolExecutor(1) as pool:
        swept = pool.submit(machines, 0, trials=1, space={"train.lr": 0.7, "train.epochs": 3})
        until(lambda: list(tmp_path.glob(f"tree-*/{COURSE}")))
        definition = Definition.load(tmp_path / "clone/sweeps/mine.yaml")
        study = create_study(definition, {}, [], str(tmp_path / "shared"))
        take_over(study, definition, study.trials[0], {})
        (tmp_path / "slow").unlink()
        assert [trial.number for trial in swept.result()] == [0]
    assert (tmp_path / "stopped").exists() and len(machines.own(0)) == 1
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


def test_a_storage_that_is_of_no_use_is_refused_in_one_line(machines, tmp_path):
    for place, said in {
        tmp_path / "none": "No such file or directory",
        "/proc/self/net": r"\[Errno",
        "postgresql://me:secret@localhost:1/none": "--storage localhost:1/none: ",
        "no://where": "--storage no://where: .*plugin",
    }.items():
        with pytest.raises(UserError, match=said) as refused:
            machines(0, place)
        assert "\n" not in str(refused.value) and "secret" not in str(refused.value)
    machines(0, trials=1)
    with pytest.raises(UserError, match="mine: the storage has another definition or commit of this name"):
        machines(1, trials=1, seed=1)
    with pytest.raises(UserError, match="setting or --storage"):
        machines(0, shared=False)
    with pytest.raises(UserError, match="several machines could try the same"):
        machines(0, sampler="grid", space={"train.lr": "1|2"})


def children(process, what):
    """Return the processes below one whose command line holds a text."""
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
        return [each for each in below if what in " ".join(each.cmdline())]
    return []


def until(condition):
    """Wait for a state of other processes, and return it."""
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_killed_drivers_and_a_killed_training_lose_and_repeat_no_trial(reproduced):
    project, name = Project(reproduced.path), "killed"
    settings = ["train.lr=log(1e-3,1e-2)", "train.epochs=25", "--trials", "4", "--jobs", "2", "--name", name]
    command = [sys.executable, "-m", "reprise", "sweep", *settings]
    ledger = project.root / f"sweeps/{name}.jsonl"
    start = partial(
        subprocess.Popen, command, cwd=project.root, env=reproduced.environment(), stdout=subprocess.DEVNULL
    )
    for kill in range(2):
        driver = start()
        until(lambda kill=kill: kill == 0 or ledger.exists())
        until(lambda: list(project.root.glob(f"{TREES}/*/{COURSE}")))  # an epoch is over
        driver.kill()
        driver.wait()
    driver = start()
    until(lambda: children(driver, "stages/train.py"))[0].kill()
    assert driver.wait(timeout=280) == 0
    names = [f"{name}-{number:04d}" for number in range(4)]
    assert sorted(reproduced.run("dvc", "exp", "list", "--name-only").stdout.split()) == names
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == names
    definition = Definition.load(project.root / f"sweeps/{name}.yaml")
    for trial in trials(project, definition):
        revision = find_revision(project, trial.name)
        assert (revision.training["val_accuracy"], revision.metrics) == (trial.values[0], {})  # none of the test split
        assert revision.params["train.lr"] == trial.params["train.lr"]
        assert revision.history["val_accuracy"] == trial.course
        assert trial.inputs == inputs(revision) and all(trial.inputs.values())
    assert reproduced.run("git", "status", "--porcelain").stdout == f"?? sweeps/{name}.yaml\n"
    assert reproduced.run("git", "worktree", "list").stdout.count("\n") == 1
    assert "continuing in epoch" in "".join(path.read_text() for path in project.root.glob(f"runs/sweeps/{name}/*.log"))
