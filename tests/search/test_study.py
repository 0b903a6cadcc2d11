"""Optuna's study of a sweep: whenever it is rebuilt, the next trial is the one that would have come."""

import json
from dataclasses import replace

import optuna
import pytest

from reprise.repo.project import Project
from reprise.runtime.errors import UserError
from reprise.search.space import Definition
from reprise.search.storage import create_study
from reprise.search.study import Trial, record, sampler, suggest, trials
from tests.conftest import new_repository

SPACE = {
    "train.lr": "log(1e-4, 1e-1)",
    "train.optimizer": "adamw|sgd",
    "train.optimizer_kwargs.momentum": "float(0, 0.99)",
    "train.batch_size": "int(8, 64, 8)",
}
GRID = {"train.batch_size": "int(8, 40, 8)", "train.optimizer": "adamw|sgd", "train.schedule": "none|cosine"}


def definition(tmp_path, **changes):
    when = {"train.optimizer_kwargs.momentum": {"train.optimizer": "sgd"}} if "space" not in changes else {}
    return Definition.load(tmp_path / "mine.yaml", **{"space": SPACE, "when": when, "trials": 20, **changes})


def sweep(made, count, rebuilt_at=()):
    """Return the trials of a sweep of a made-up training, as one job runs them, with restarts before some of them."""
    ended, begun = [], {}
    study = create_study(made, begun, ended)
    for number in range(count):
        if number in rebuilt_at:
            study = create_study(made, json.loads(json.dumps(begun), object_hook=integers), ended)
        study.sampler = sampler(made, number, parallel=False)
        trial = study.ask()
        params = suggest(trial, made)
        goal = params.get("train.lr", 0) + params["train.batch_size"] / 100
        course = [goal * epoch for epoch in range(1, 9)]
        state, values = "complete", [goal, 1 / goal][: len(made.metrics)]
        for epoch, value in enumerate(course if made.pruner != "none" else [], 1):
            trial.report(value, epoch)
            if trial.should_prune():
                state, values, course = "pruned", None, course[:epoch]
                break
        if number % 7 == 3:
            state, values = "failed", None
        study.tell(trial, values, getattr(optuna.trial.TrialState, {"failed": "FAIL"}.get(state, state.upper())))
        begun[number] = {"params": params, "system": study.trials[-1].system_attrs}
        ended.append(Trial(number, f"mine-{number:04d}", state, params, values, None, 1.0, course, None))
    return ended


def integers(tree):
    return {int(key) if key.isdigit() else key: value for key, value in tree.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "tpe"},
        {"sampler": "random"},
        {"sampler": "grid", "space": GRID},
        {"sampler": "nsga2", "objectives": ["val_loss", "flops"]},
        {"pruner": "median", "objectives": ["val_accuracy"]},
        {"pruner": "hyperband", "objectives": ["val_loss"]},
    ],
    ids=str,
)
def test_a_sweep_that_is_rebuilt_at_any_trial_goes_on_with_the_trials_of_one_left_alone(tmp_path, changes):
    made = definition(tmp_path, **changes)
    alone = sweep(made, 20)
    assert sweep(made, 20, rebuilt_at=range(1, 20)) == alone
    assert sweep(made, 20, rebuilt_at=(5, 13)) == alone
    assert sweep(definition(tmp_path, **changes, seed=1), 20) != alone
    if made.pruner != "none":
        assert any(trial.state == "pruned" for trial in alone)
    if made.sampler == "grid":
        assert len({str(trial.params) for trial in alone}) == 20  # all that there are, none twice
    else:
        having = {trial.params["train.optimizer"]: "train.optimizer_kwargs.momentum" in trial.params for trial in alone}
        assert having == {"sgd": True, "adamw": False}


def test_a_trial_that_had_begun_goes_on_with_its_params(tmp_path):
    made = definition(tmp_path)
    ended = sweep(made, 3)
    params = {"train.lr": 0.05, "train.optimizer": "adamw", "train.batch_size": 48}
    study = create_study(made, {1: {"params": params}, 3: {"params": params}}, [ended[0], ended[2]])
    assert [suggest(study.ask(), made) for _ in range(2)] == [params, params]
    assert study.ask().number == 4


def test_trials_are_those_of_the_ledger_and_of_experiments_that_exist(tmp_path):
    (tmp_path / "clone").mkdir()
    repository = new_repository(tmp_path / "clone")
    (repository.path / "file").write_text("")
    repository.commit()
    project = Project(repository.path)
    head = project.git("rev-parse", "HEAD").strip()
    made = definition(tmp_path, commit=head)
    assert trials(project, made) == []
    ended = [replace(trial, state="complete", values=[0.5]) for trial in sweep(made, 3)]
    for trial in ended[:2]:
        record(project, trial)
    for trial in ended[1:]:  # the driver was killed before it could enter the last into its ledger
        message = f"sweep mine\n\n{trial.line()}"
        commit = project.git("commit-tree", "HEAD^{tree}", "-p", head, "-m", message).strip()
        project.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{trial.name}", commit)
    project.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/mine-own", head)  # of no sweep
    found = trials(project, made)
    assert [replace(trial, commit=None) for trial in found] == ended
    assert [trial.commit is None for trial in found] == [True, False, False]  # the first was removed
    odd = {"params": {"train.lr": 0.5}}, {"params": {"train.seed": 1}}, {"state": "done"}, {"values": None}
    ledger, whole = project.root / "sweeps/mine.jsonl", project.read("sweeps/mine.jsonl")
    for line in ['{"number": 3', *(replace(ended[0], **changes).line() for changes in odd)]:
        ledger.write_text(whole + line)
        with pytest.raises(UserError, match=r"sweeps/mine.jsonl: a line is no record of a trial"):
            trials(project, made)
    ledger.write_text(whole + replace(ended[0], digest="another").line())
    with pytest.raises(UserError, match="mine-0000: of another sweep; choose another name"):
        trials(project, made)
