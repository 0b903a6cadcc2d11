"""Folds of one setting are summarised together, others apart; what is missing is said."""

import json
import re

import pytest

from reprise.repo.crossvalidation import finished_runs, summarise


def revision(fold, accuracy, time="2020-01-01", code="1", folds=3, **params):
    return {
        "timestamp": time,
        "params": {"params.yaml": {"data": {"data": {"folds": folds, "fold": fold}, **params}}},
        "deps": {
            "src/reprise/model/backbone.py": {"hash": code, "size": 1},
            "data/raw": {"hash": "raw"},
            "data/processed": {"hash": f"of fold {fold}"},
        },
        "metrics": {"metrics/test.json": {"data": {"accuracy": accuracy, "images": 7}}},
    }


def summary(*revisions, commit=None):
    experiments = [{"revs": [{"rev": "abc", "data": data}], "name": "x"} for data in revisions]
    table = [{"rev": "workspace", "data": revision(0, 99.0)}, {"rev": "abc", "data": commit}]
    return summarise(finished_runs([*table[:1], {**table[1], "experiments": experiments}]))


def test_mean_and_sample_standard_deviation_over_the_folds():
    assert summary(revision(2, 0.9), revision(0, 0.8), revision(1, 0.85)).splitlines() == [
        "3 of 3 folds",
        "",
        "| metric | mean | standard deviation |",
        "| --- | ---: | ---: |",
        "| accuracy | 0.8500 | 0.0500 |",
    ]


def test_only_runs_that_are_equal_in_all_but_the_fold_belong_together():
    text = summary(
        revision(0, 0.1, model={"name": "a"}),
        revision(1, 0.2, model={"name": "a"}),
        revision(0, 0.5, model={"name": "b"}),
        revision(1, 0.7, code="2", model={"name": "b"}),
        revision(0, 0.3, folds=None, model={"name": "a"}),
    )
    assert re.findall(r"^(\d of.*)|accuracy (.*)", text, re.M) == [
        ("2 of 3 folds, missing: data.fold=2: model.name=a", ""),
        ("", "| 0.1500 | 0.0707 |"),
        ("1 of 3 folds, missing: data.fold=1,2: model.name=b", ""),
        ("", "| 0.5000 | - |"),
        ("1 of 3 folds, missing: data.fold=0,2: model.name=b", ""),
        ("", "| 0.7000 | - |"),
    ]


def test_a_fold_that_ran_twice_counts_once_and_the_commit_itself_counts_too():
    unfinished = {**revision(2, 0.0), "metrics": {"metrics/test.json": {}}}
    queued = {**revision(2, 0.0), "metrics": None, "deps": None}
    text = summary(
        revision(1, 0.2, "2020-01-02"),
        revision(1, 0.4, "2020-01-01"),
        unfinished,
        queued,
        None,
        commit=revision(0, 0.4),
    )
    assert text.startswith("2 of 3 folds, missing: data.fold=2\n")
    assert "| accuracy | 0.3000 | 0.1414 |" in text


@pytest.mark.slow
def test_an_experiment_on_a_fold_is_found(reproduced):
    done = reproduced.run("python", "-m", "reprise", "folds", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this commit has no finished experiment with data.folds")
    reproduced.run("dvc", "exp", "run", "-S", "train.epochs=1", "-S", "data.folds=3", "-S", "data.fold=2")
    measured = json.loads((reproduced.path / "metrics/test.json").read_text())
    assert 500 < measured["images"] < 700
    text = reproduced.run("python", "-m", "reprise", "folds").stdout
    assert text.startswith("1 of 3 folds, missing: data.fold=0,1\n")
    assert f"| accuracy | {measured['accuracy']:.4f} | - |" in text
    assert "| val_accuracy | " in text
    assert "| images | " not in text


def test_a_metric_that_is_undefined_in_a_fold_is_averaged_over_the_others():
    runs = [revision(0, 0.8), revision(1, 0.9), revision(2, 1.0)]
    for run, auroc in zip(runs, (None, 0.5, 0.7), strict=True):
        run["metrics"]["metrics/test.json"]["data"] |= {"auroc": auroc, "odd": None}
    assert summary(*runs).splitlines()[4:] == [
        "| accuracy | 0.9000 | 0.1000 |",
        "| auroc (defined in 2 folds) | 0.6000 | 0.1414 |",
    ]
