"""`reprise clean` removes what nothing needs, and `reprise experiments` lists what each changed and reached."""

import contextlib
import json
import re

import pytest

from reprise.cli import main
from reprise.repo import disk
from reprise.repo.disk import Holding, size


@pytest.mark.slow
def test_what_a_commit_or_an_experiment_needs_stays_and_the_rest_goes(reproduced):
    reproduced.run("dvc", "exp", "run", "--temp", "--name", "kept", "-S", "train.lr=0.01")
    reproduced.set("train.lr=0.02")
    reproduced.run("dvc", "repro", "train")
    dropped = (reproduced.path / "models/model.safetensors").read_bytes()
    reproduced.run("git", "checkout", "--quiet", ".")
    reproduced.run("dvc", "checkout")
    for name in ("data/.downloads/archive", "runs/data/key/processed", "runs/checkpoints/one", "runs/mine/model"):
        path = reproduced.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 2**20)
    shown = reproduced.reprise("clean").stdout
    assert re.search(r" 1\.0 MiB  data/\.downloads: downloads", shown)
    assert (reproduced.path / "runs/data/key/processed").exists()
    before = size(reproduced.path / ".dvc/cache")
    reproduced.reprise("clean", "--yes")
    assert not (reproduced.path / "data/.downloads").exists()
    assert not (reproduced.path / "runs/data").exists()
    assert (reproduced.path / "runs/checkpoints/one").exists()
    assert (reproduced.path / "runs/mine/model").exists()
    assert before - size(reproduced.path / ".dvc/cache") >= len(dropped)
    assert reproduced.run("dvc", "status", "--json").stdout.strip() == "{}"
    assert "workspace and cache are what dvc.lock records" in reproduced.reprise("verify").stdout

    listed = reproduced.reprise("experiments").stdout.splitlines()
    assert listed[0].split("  ")[0] == "experiment"
    name, val, _, test, *_, changed = listed[2].split()
    assert (name, changed) == ("kept", "train.lr=0.01")
    reproduced.run("dvc", "exp", "apply", "kept")  # its outs are there still
    reached = json.loads((reproduced.path / "metrics/test.json").read_text())["accuracy"]
    assert test == f"{reached:.4f}"
    assert val == f"{json.loads((reproduced.path / 'metrics/train.json').read_text())['val_accuracy']:.4f}"
    assert reproduced.run("dvc", "status", "--json").stdout.strip() == "{}"
    reproduced.reprise("clean", "--yes", "--checkpoints")
    assert not (reproduced.path / "runs/checkpoints").exists()


@pytest.mark.parametrize(("worked", "code"), [(False, 1), (True, 0), (None, 0)])
def test_a_cache_that_dvc_could_not_clean_is_no_success(reproduced, monkeypatch, worked, code):
    monkeypatch.setattr(disk, "holdings", lambda *_: [Holding(reproduced.path, 1, "outs", lambda: worked)])
    with contextlib.chdir(reproduced.path):
        assert main(["clean", "--yes"]) == code


def test_params_without_a_difference_say_so(reproduced, capsys):
    (reproduced.path / "params.yaml").write_bytes((reproduced.path / "src/reprise/params/defaults.yaml").read_bytes())
    reproduced.commit()
    with contextlib.chdir(reproduced.path):
        assert main(["params"]) == 0
    assert capsys.readouterr().out == "all params are those of the last commit, and the defaults\n"
