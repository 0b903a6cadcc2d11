"""The winner of a sweep has to prove itself on new seeds; the trials' results are written by hand."""

import json
import re
import signal
import subprocess
import sys

import pytest

from reprise.cli import main
from reprise.repo.project import Project
from reprise.repo.revisions import Revision
from reprise.search.study import Trial, begin, inputs, record
from tests.conftest import tiny_clone


def swept(clone, *settings):
    """Make it a clone in which a sweep has ended, the first setting as the best; later ones reached less."""
    project = Project(clone.path)
    space = {key: list({of[key]: 0 for of in settings if key in of}) for of in settings for key in of}
    definition = begin(project, "lr", {"space": space, "trials": len(settings)})
    made = inputs(Revision(project)) if (clone.path / "data/raw").exists() else None
    for number, params in enumerate(settings):
        name, reached = f"lr-{number:04d}", [1.0 - number / 10]
        record(project, Trial(number, name, "complete", params, reached, None, 1.0, [], None, definition.digest, made))


@pytest.fixture
def sweep(monkeypatch, capsys):
    """Call it with a clone and options: the exit code of `reprise sweep lr` there, and what it says."""

    def sweep(clone, *options):
        monkeypatch.chdir(clone.path)
        try:
            return main(["sweep", "sweeps/lr.yaml", *options]), capsys.readouterr().out
        except SystemExit as refused:
            return 1, str(refused.code)

    return sweep


@pytest.mark.slow
def test_a_lucky_winner_is_found_worse_on_new_seeds_each_run_once_though_killed_and_is_not_applied(reproduced, sweep):
    swept(reproduced, {"train.lr": 0.00001, "train.epochs": 1}, {"train.lr": 0.001, "train.epochs": 1})
    command = [sys.executable, "-m", "reprise", "sweep", "sweeps/lr.yaml", "--confirm", "3"]
    own = reproduced.environment() | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=reproduced.path, env=own, stdout=subprocess.PIPE, text=True) as killed:
        assert any(line.startswith("lr-base-s2: ") for line in killed.stdout)
        killed.send_signal(signal.SIGKILL)
    said = reproduced.run(*command).stdout
    begun = re.findall(r"^(lr-\w+-s\d): (.*)$", said, re.MULTILINE)
    assert [name for name, _ in begun] == ["lr-base-s2", "lr-base-s3", "lr-0000-s1", "lr-0000-s2", "lr-0000-s3"]
    seeds = {json.loads(params)["train.seed"] for _, params in begun}
    assert len(seeds) == 3 and 0 not in seeds
    assert "worse: mean accuracy over 3 and 3 seeds" in said
    page = reproduced.path / "runs/sweeps/lr/report.md"
    before = page.read_text()
    assert "worse&#58; mean accuracy over 3 and 3 seeds" in before
    code, said = sweep(reproduced, "--confirm", "3")
    assert (code, re.findall(r"^lr-\w+-s\d: ", said, re.MULTILINE)) == (0, [])
    assert page.read_text() == before
    assert "lr-0000: worse than the baseline on new seeds, and not applied" in sweep(reproduced, "--apply")[1]
    assert reproduced.run("git", "status", "--porcelain").stdout == "?? sweeps/lr.yaml\n"
    ledger = reproduced.path / "sweeps/lr.jsonl"
    ledger.write_text(ledger.read_text().replace('"data/raw": "', '"data/raw": "other'))
    assert "lr-base-s1: data/raw not as for lr-0000; put it back" in sweep(reproduced, "--confirm", "3")[1]


def test_the_winner_is_applied_with_its_comments_unless_params_yaml_is_another_by_now(tmp_path, sweep):
    clone = tiny_clone(tmp_path / "clone")
    swept(clone, {"train.lr": 0.00025, "train.optimizer_kwargs.momentum": 0.5}, {"train.lr": 0.7})
    params = clone.path / "params.yaml"
    before = params.read_text()
    head = clone.run("git", "rev-parse", "HEAD").stdout.strip()
    for name in ("lr-base", "lr-0000"):  # those of an earlier sweep of this name
        for seed in range(1, 6):
            clone.run("git", "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}-s{seed}", head)
    params.write_text(before + "# mine\n")
    code, said = sweep(clone, "--apply")
    assert (code, params.read_text()) == (1, before + "# mine\n")
    assert "params.yaml: not as in the baseline" in said
    params.write_text(before)
    assert "Not confirmed on new seeds" in (said := sweep(clone, "--apply")[1])
    changed = [line for line in params.read_text().splitlines() if line not in before.splitlines()]
    shown = "lr: 0.00025 # at its peak", "optimizer_kwargs: # e.g. momentum: 0.9", "momentum: 0.5"
    assert tuple(" ".join(line.split()) for line in changed) == shown
    assert [line for line in said.splitlines() if line.startswith("+ ")] == [f"+{line}" for line in changed]
    after, (code, said) = params.read_text(), sweep(clone, "--apply")
    assert (code, params.read_text()) == (0, after) and "has the values of lr-0000 already" in said


def test_without_anything_to_confirm_that_is_said(tmp_path, sweep):
    clone = tiny_clone(tmp_path / "clone")
    swept(clone, {"train.epochs": 2}, {"train.epochs": 7})
    assert "lr-0000 has the params of the baseline" in sweep(clone, "--confirm", "3")[1]
    assert clone.run("git", "for-each-ref", "refs/exps").stdout == ""
    ledger = clone.path / "sweeps/lr.jsonl"
    ledger.write_text(re.sub(r"\[[01]\.\d\]", "null", ledger.read_text().replace("complete", "pruned")))
    assert "no trial is complete, see" in sweep(clone, "--apply")[1]
    assert "Best: no trial is complete" in (clone.path / "runs/sweeps/lr/report.md").read_text()
