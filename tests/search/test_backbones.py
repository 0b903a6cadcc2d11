"""Backbones are ranked on the validation split, and each is an experiment that can be applied."""

import json

import pytest
import timm
from safetensors.torch import save_file

from reprise.repo.project import Project
from reprise.repo.revisions import experiments, find_revision
from reprise.runtime.errors import UserError
from reprise.search.backbones import Backbone, candidates, picture, ranking


def test_a_table_says_which_are_as_good_as_the_best_and_why_one_failed():
    good, bad = [True] * 90 + [False] * 10, [True] * 50 + [False] * 50
    tried = [Backbone("best", "backbone-best", good, 2_000_000, 10**9, 3.0)]
    tried += [Backbone("poor|", "backbone-poor-", bad, 1_000_000, 10**9, 2.0), Backbone("none", failed="no weights")]
    best, poor, none = ranking(tried).splitlines()[2:]
    assert best.split(" | ")[1:] == ["0.9000", "-", "2.0", "1.00", "3.0", "dvc exp apply backbone-best |"]
    assert "| poor&#124; | 0.5000 | -0.4000 (-0.4900 to -0.3000) | 1.0 |" in poor
    assert none.endswith("| - | no weights |")
    assert picture(tried).count("<circle") == 2


def test_candidates_are_weights_named_after_models_or_what_is_named_and_fetched_if_need_be(tmp_path):
    folder = tmp_path / "data/weights"
    with pytest.raises(UserError, match="no weights there"):
        candidates(tmp_path, [], str.upper)
    (folder / "vit.tag").mkdir(parents=True)
    (folder / "vit.tag/origin.json").touch()
    (folder / "resnet18.safetensors").touch()
    there = {"resnet18": "data/weights/resnet18.safetensors", "vit.tag": "data/weights/vit.tag"}
    assert candidates(tmp_path, [], str.upper) == there
    named = {"vit.tag": "data/weights/vit.tag", "resnet34": "RESNET34", "vit": "data/weights/v=1.pt"}
    assert candidates(tmp_path, ["vit.tag", "resnet34", "vit=data/weights/v=1.pt"], str.upper) == named


@pytest.mark.slow
def test_every_network_is_an_experiment_without_test_figures_and_is_not_tried_again(reproduced):
    folder = reproduced.path / "data/weights"
    for name in ("test_resnet", "test_vit"):
        save_file(timm.create_model(name, num_classes=10).state_dict(), folder / f"{name}.safetensors")
    shown = reproduced.run(
        "python", "-m", "reprise", "backbones", "test_resnet", "test_vit", "no_such_model=data/weights/no.pt"
    ).stdout
    assert "no_such_model" in shown.splitlines()[4]
    project = Project(reproduced.path)
    found = {run.name: run for run in experiments(project) if run.name.startswith("backbone-")}
    assert found.keys() == {"backbone-test_resnet", "backbone-test_vit"}
    for name, run in found.items():
        reached = json.loads(run.read("metrics/train.json"))["val_accuracy"]
        assert f"| {name.removeprefix('backbone-')} | {reached:.4f} |" in shown
        assert run.metrics == {} and str(reproduced.path) not in run.read("params.yaml") + run.read("dvc.lock")
    again = reproduced.run("python", "-m", "reprise", "backbones")
    assert again.stdout.splitlines()[2:4] == shown.splitlines()[2:4]
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), folder / "test_vit.safetensors")
    other = reproduced.run("python", "-m", "reprise", "backbones").stdout.splitlines()[2:4]
    kept, new = (next(line.split(" | ")[1] for line in other if name in line) for name in ("test_resnet", "test_vit"))
    assert f"| test_resnet | {kept} |" in shown
    assert (
        new
        == f"{json.loads(find_revision(project, 'backbone-test_vit').read('metrics/train.json'))['val_accuracy']:.4f}"
    )
    assert found["backbone-test_vit"].commit != find_revision(project, "backbone-test_vit").commit
    reproduced.run("dvc", "exp", "apply", "backbone-test_vit")
    assert json.loads(reproduced.run("dvc", "status", "--json").stdout).keys() == {"evaluate", "export"}
    with pytest.raises(UserError, match=r"its data/predictions.csv are another model's"):
        _ = find_revision(project, "backbone-test_vit").predictions
    reproduced.run("dvc", "repro")
    assert reproduced.run("dvc", "status", "--json").stdout.strip() == "{}"
    page = (reproduced.path / "runs/backbones/report.html").read_text()
    assert "<table>" in page
