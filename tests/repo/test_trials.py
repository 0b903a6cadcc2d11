"""A trial is an experiment of DVC like any other, and the work tree of the project is not touched for it."""

import json

import pytest

from reprise.repo.project import Project
from reprise.repo.revisions import find_revision
from reprise.repo.trials import workspace
from reprise.runtime.errors import UserError

TRAINED = ("check", "download", "preprocess", "train")


@pytest.mark.slow
def test_a_trial_up_to_train_can_be_applied_and_has_no_figure_of_the_test_split(reproduced):
    project, log = Project(reproduced.path), reproduced.path / "runs/log"
    head = reproduced.run("git", "rev-parse", "HEAD").stdout.strip()
    (reproduced.path / "README.md").write_text("mine\n")
    with workspace(project, head) as found:
        assert found.run({"train": {"epochs": 1}}, log, "train").wait() == 0, log.read_text()
        found.save("one", "trial one", TRAINED)
    assert reproduced.run("git", "status", "--porcelain").stdout == " M README.md\n"
    assert "one" in reproduced.run("dvc", "exp", "list", "--name-only").stdout.split()
    trial = find_revision(project, "one")
    assert trial.params["train.epochs"] == 1
    assert trial.metrics == {}
    assert len(trial.history["epoch"]) == 1
    assert trial.read("README.md") != "mine\n"
    with pytest.raises(UserError, match=r"one .*: its data/predictions.csv are another model's"):
        _ = trial.predictions
    reproduced.run("git", "checkout", "README.md")
    reproduced.run("dvc", "exp", "apply", "one")
    assert json.loads(reproduced.run("dvc", "status", "--json").stdout).keys() == {"evaluate", "export"}
    reproduced.run("dvc", "repro")
    assert reproduced.run("dvc", "status", "--json").stdout.strip() == "{}"
