"""Folds of one setting are summarized together, others apart; what is missing is said."""

import json
import re

import pytest
import yaml

from reprise.repo.crossvalidation import finished_runs, summarize
from reprise.repo.project import Project
from tests.comparison.conftest import Project as Repository
from tests.comparison.conftest import answers


@pytest.fixture
def repository(tmp_path):
    """A repository with results of the first of three folds."""
    repository = Repository(tmp_path / "repository")
    write(repository, 0, 0.8).commit()
    return repository


def write(repository, fold, accuracy, folds=3, code="1", model="a", **metrics):
    params = {"data": {"folds": folds, "fold": fold, "path": "data/own"}, "model": {"name": model}}
    repository.state(answers(1, 1), params=params, code=code, metrics={"accuracy": accuracy, "loss": 1, **metrics})
    repository.write("metrics/train.json", '{"epoch": 1}')
    lock = yaml.safe_load((repository.path / "dvc.lock").read_text())
    follows = ("data/processed", "data/own", "models/model.json")  # from the fold, or is without effect on data/raw
    lock["stages"]["all"]["deps"] += [{"path": path, "md5": f"of fold {fold}"} for path in follows]
    repository.write("dvc.lock", yaml.safe_dump(lock))
    return repository


def run(repository, *arguments, **options):
    """Leave a finished experiment that began from main."""
    base, number = repository.git("rev-parse", "main"), len(repository.git("for-each-ref", "refs/exps").splitlines())
    write(repository, *arguments, **options)
    commit = repository.commit(f"run-{number}")
    repository.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/run-{number}", commit)
    repository.git("checkout", "--quiet", "main")


def summary(repository):
    return summarize(finished_runs(Project(repository.path)))


def test_mean_and_sample_standard_deviation_over_the_folds(repository):
    run(repository, 2, 0.9)
    run(repository, 1, 0.85)
    repository.git("update-ref", "refs/exps/ab/cdef/elsewhere", "run-0")  # began from another commit
    assert summary(repository).splitlines() == [
        "3 of 3 folds",
        "",
        "| metric | mean | standard deviation |",
        "| --- | ---: | ---: |",
        "| test accuracy | 0.8500 | 0.0500 |",
    ]


def test_only_runs_that_are_equal_in_all_but_the_fold_belong_together(repository):
    run(repository, 1, 0.9)
    run(repository, 0, 0.5, model="b")
    run(repository, 1, 0.7, code="2", model="b")
    run(repository, 0, 0.3, folds=None)
    assert re.findall(r"^(\d of.*)|accuracy (.*)", summary(repository), re.M) == [
        ("2 of 3 folds, missing: data.fold=2: model.name=a", ""),
        ("", "| 0.8500 | 0.0707 |"),
        ("1 of 3 folds, missing: data.fold=1,2: model.name=b", ""),
        ("", "| 0.5000 | - |"),
        ("1 of 3 folds, missing: data.fold=0,2: model.name=b", ""),
        ("", "| 0.7000 | - |"),
    ]


def test_of_a_fold_that_ran_twice_the_newest_run_counts(repository, monkeypatch):
    for date, accuracy in (("2040-01-02", 0.4), ("2040-01-01", 0.2)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{date}T00:00:00")
        run(repository, 1, accuracy)
    text = summary(repository)
    assert text.startswith("2 of 3 folds, missing: data.fold=2\n")
    assert "| test accuracy | 0.6000 | 0.2828 |" in text


def test_a_metric_that_is_undefined_in_a_fold_is_averaged_over_the_others(repository):
    for fold, auroc in enumerate((None, 0.5, 0.7)):
        run(repository, fold, 0.8 + fold / 10, auroc=auroc, odd=None)
    assert summary(repository).splitlines()[4:] == [
        "| test accuracy | 0.9000 | 0.1000 |",
        "| test auroc (defined in 2 folds) | 0.6000 | 0.1414 |",
    ]


@pytest.mark.slow
def test_an_experiment_on_a_fold_is_found(reproduced):
    done = reproduced.reprise("folds", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this commit has no finished experiment with data.folds")
    reproduced.run("dvc", "exp", "run", "-S", "train.epochs=1", "-S", "data.folds=3", "-S", "data.fold=2")
    measured = json.loads((reproduced.path / "metrics/test.json").read_text())
    assert 500 < measured["images"] < 700
    text = reproduced.reprise("folds").stdout
    assert text.startswith("1 of 3 folds, missing: data.fold=0,1\n")
    assert f"| test accuracy | {measured['accuracy']:.4f} | - |" in text
    assert "| val_accuracy | " in text
    assert "| test images | " not in text
