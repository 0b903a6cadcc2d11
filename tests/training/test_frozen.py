"""A frozen backbone trains a head on its features: the published model gives what was measured on them, bit for bit."""

import os
import re
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.data.prepare.prepare import preprocess
from reprise.evaluation.evaluate import predict
from reprise.export.parity import export_model
from reprise.features.store import BATCHES, MOST, check_backbone, folded, kept_features, pooled
from reprise.loader.batches import EvalBatches
from reprise.model.backbone import TIMMBackbone, create_network, load_model
from reprise.model.pretrained import find_pretrained
from reprise.runtime.errors import UserError
from reprise.training.train import train
from tests.conftest import data_params
from tests.training.test_checkpoint import bits

HEAD = ["fc.bias", "fc.weight"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a tiny network, as a file."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(TIMMBackbone("test_resnet", False, in_chans=1).model.state_dict(), path)
    return path


@pytest.fixture
def fit(digits, tiny_params, weights):
    """Call it with a scratch folder and changed params: a training with a frozen backbone."""

    def run(scratch=None, *overrides, start=weights, data=digits):
        given = tiny_params("train.backbone=frozen", "train.batch_size=32", *overrides)
        return train(data, given.model, given.train, scratch, start)

    return run


@pytest.mark.parametrize(
    ("head", "new"),
    {
        "linear": HEAD,
        "prototypes": HEAD,
        "mlp": [f"fc.{layer}.{kind}" for layer in (0, 2) for kind in ("bias", "weight")],
        "knn": [f"fc.{name}" for name in ("examples", "k", "mean", "std", "votes")],
    }.items(),
)
def test_the_published_model_has_the_given_backbone_and_reaches_what_its_row_says(
    head, new, fit, weights, digits, tmp_path
):
    overrides = f"train.head={head}", "train.balance=weights"
    result = fit(None, *overrides)
    assert bits(result, tmp_path) == bits(fit(tmp_path / "checkpoints", *overrides), tmp_path / "again")
    network, card = load_model(tmp_path / "model.safetensors", tmp_path / "model.json")
    given, state = load_file(weights), network.model.state_dict()
    assert sorted(name for name in state if name not in given or not torch.equal(state[name], given[name])) == new
    assert ('"classifier"' in (tmp_path / "model.json").read_text()) == (new != HEAD)
    seen = card.preprocessing.model_dump(include={"mean", "std"})
    val = EvalBatches(load_split(digits, "val"), load_metadata(digits).model_copy(update=seen), 32)
    logits, labels = predict(network, val, "cpu")
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.best.val_accuracy)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.best.val_loss, rel=1e-4)
    assert (card.training.head, card.training.epoch) == (f"{head} head", result.best.epoch)


@pytest.mark.parametrize("head", ["mlp", "knn"])
def test_a_model_with_another_classifier_is_exported_and_lends_its_backbone_alone(head, fit, digits, tmp_path, capsys):
    bits(fit(None, f"train.head={head}"), tmp_path / "first")
    network, card = load_model(tmp_path / "first/model.safetensors", tmp_path / "first/model.json")
    (tmp_path / "out").mkdir()
    exported = export_model(network, card, digits, 64, tmp_path / "out/onnx")
    assert (exported.reason, exported.changed) == ("", 0)
    for overrides in (["train.head=knn"], ["train.backbone=tune", "train.head=linear"]):
        start = fit(None, *overrides, start=tmp_path / "first").card.training.start
        assert sorted(start.not_loaded) == HEAD
    assert "starting from model.safetensors; not loaded: fc.weight, fc.bias" in capsys.readouterr().err


def test_kept_features_give_the_same_bits_and_other_terms_never_find_them(fit, tmp_path, capsys, weights):
    scratch, store = tmp_path / "checkpoints", tmp_path / "features"
    first = bits(fit(scratch), tmp_path / "first")
    [kept] = store.iterdir()
    computed = "computing the features"
    assert computed in capsys.readouterr().err
    assert bits(fit(scratch), tmp_path / "second") == first
    fit(scratch, "train.label_smoothing=0.2", "train.head=prototypes", "train.seed=1", "train.lr=0.1")
    assert computed not in capsys.readouterr().err
    damaged = min(kept.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x99")
    assert bits(fit(scratch), tmp_path / "third") == first
    said = capsys.readouterr().err
    assert f"{damaged}: altered since it was written; its features are computed anew" in said
    assert said.count(computed) == 1
    other = tmp_path / "other.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, other)
    again = [("train.batch_size=32", other), ("train.batch_size=16", weights), ("train.feature_views=2", weights)]
    for override, start in again:
        fit(scratch, override, start=start)
    assert (
        capsys.readouterr().err.count(computed) == 2 + 2 + 1
    )  # training and validation images; the views alone, for the images as they are were kept


def test_a_fold_gives_the_same_bytes_whether_its_features_are_those_of_other_folds_or_computed_anew(
    fit, digits, tmp_path, capsys
):
    known = set()
    for number in range(2):
        fold = tmp_path / f"fold{number}"
        preprocess(digits.parent / "raw", fold, data_params(folds=3, fold=number))
        capsys.readouterr()
        shared = bits(fit(tmp_path / "checkpoints", data=fold), tmp_path / "shared" / fold.name)
        missing = sum(map(int, re.findall(r"not kept: ([\d,]+) of", capsys.readouterr().err.replace(",", ""))))
        assert shared == bits(fit(tmp_path / fold.name / "checkpoints", data=fold), tmp_path / "anew" / fold.name)
        images = {image.tobytes() for split in ("train", "val") for image in load_split(fold, split).images}
        assert missing == len(images - known)
        known |= images


def test_views_by_an_augmentation_of_ones_own_are_those_of_its_code(fit, tmp_path, capsys, monkeypatch):
    own = "train.augment.own=[project/a.py:Noise]"
    monkeypatch.setattr("reprise.loader.batches.create_part", lambda name: lambda images, generator: images)
    for code in ("one", "one", "two"):
        monkeypatch.setattr("reprise.training.frozen.project_md5", lambda code=code: code)
        fit(tmp_path / "checkpoints", "train.feature_views=2", own)
    assert capsys.readouterr().err.count("computing the features") == 3 + 1  # views, training and validation images


def test_views_that_nothing_changes_are_the_images_themselves_with_their_labels(fit, digits, tmp_path):
    still = (f"train.augment.{name}" for name in ("rotate=0", "scale=0", "shift=0", "flip=false"))
    reached = fit(tmp_path / "checkpoints", "train.feature_views=3", "train.label_smoothing=0", *still).history[0]
    files = [load_file(path).items() for path in tmp_path.glob("features/*/*.safetensors")]
    views = {key: rows for file in files for key, rows in file if rows.ndim == 2}
    own = torch.stack([row for file in files for _, row in file if row.ndim == 1])
    assert sorted(views) == [f"view {view}, batch {step}" for view in range(2) for step in range(len(views) // 2)]
    assert torch.cdist(torch.cat(list(views.values())).double(), own.double()).amin(1).max() < 1e-5
    assert reached.train_loss == pytest.approx(fit(None, "train.label_smoothing=0").history[0].train_loss, rel=0.02)


class NormLast(nn.Sequential):
    """Lists a norm behind a convolution, and calls it behind the activation."""

    def forward_features(self, x):
        return self[1](self[0](x).relu())

    def forward_head(self, x, pre_logits):
        return x.mean((2, 3))


@pytest.mark.parametrize("in_order", [True, False])
def test_folded_norms_change_no_feature_and_what_they_would_change_is_left_alone(in_order):
    torch.manual_seed(0)
    network = TIMMBackbone("test_efficientnet", pretrained=False)
    network.model = network.model if in_order else NormLast(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    images = torch.rand(4, 3, 64, 64)
    pooled(network.train(), images)  # the norms get statistics of their own
    quick = folded(network.eval(), images)
    with torch.no_grad():
        assert torch.allclose(pooled(quick, images), pooled(network, images), 1e-4, 1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) != in_order


def kept(folder, images, compute):
    return kept_features(folder, [str(image) for image in images], 4, compute, lambda: None).flatten().tolist()


def test_a_killed_pass_goes_on_where_the_last_file_ends(tmp_path):
    asked, images, block = [], list(range(100)), 4 * BATCHES

    def compute(numbers, most=1000):
        asked.extend(numbers)
        if len(asked) > most:
            raise KeyboardInterrupt
        return torch.tensor(numbers, dtype=torch.float32)[:, None]

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "store", images, lambda numbers: compute(numbers, most=2 * block + 10))
    asked.clear()
    (tmp_path / "store/.0.safetensors.partial").write_bytes(b"half")  # of a process that was killed while it wrote
    assert kept(tmp_path / "store", images, compute) == images
    assert sorted(set(asked)) == images[2 * block :]
    assert kept(tmp_path / "store", [*images, 7], None) == [*images, 7]


def test_features_that_depend_on_the_batch_are_used_but_not_kept(tmp_path, capsys):
    def compute(numbers):
        return torch.tensor([[number + 0.5 * numbers[0]] for number in numbers])

    assert kept(tmp_path / "store", range(40), compute) == [number + 0.5 * (number // 4 * 4) for number in range(40)]
    assert "depend on the images beside it: they are not kept" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_the_store_keeps_what_was_used_last_and_nothing_of_images_that_have_changed(tmp_path):
    for number in range(MOST):
        kept(tmp_path / str(number), [0], lambda numbers: torch.ones(len(numbers), 1))
        os.utime(tmp_path / str(number), (number, number))
    for number in (0, MOST, MOST + 1):
        kept(tmp_path / str(number), [0], lambda numbers: torch.ones(len(numbers), 1))
    assert {path.name for path in tmp_path.iterdir()} == {str(number) for number in (0, *range(3, MOST + 2))}
    with pytest.raises(ZeroDivisionError):
        kept_features(tmp_path / "failed", ["x"], 1, lambda numbers: torch.ones(1, 1), lambda: 1 // 0)
    assert list((tmp_path / "failed").iterdir()) == []


def test_a_classifier_that_is_no_linear_function_of_pooled_features_is_refused(weights, tiny_params, digits):
    params, data = tiny_params().model, load_metadata(digits)
    pretrained = find_pretrained(params, weights)
    check_backbone("frozen", *create_network(params, data, 0, pretrained), pretrained)
    for name, other in {
        "fc": lambda model: nn.Linear(model.num_features, 3, bias=False),
        "forward": lambda model: lambda x: model.fc(model.forward_features(x).mean((2, 3))).tanh(),
        "forward_head": lambda model: lambda x, pre_logits=False: x,
    }.items():
        network, architecture = create_network(params, data, 0, pretrained)
        setattr(network.model, name, other(network.model))
        with pytest.raises(UserError, match="test_resnet has no pooled features under one linear classifier; set"):
            check_backbone("frozen", network, architecture, pretrained)


def test_random_weights_and_features_that_are_not_finite_are_refused(fit, tmp_path, weights):
    with pytest.raises(UserError, match=r"random weights have nothing worth keeping; set model\.pretrained: true"):
        fit(start=None)
    save_file({name: value * float("nan") for name, value in load_file(weights).items()}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match="the weights give features that are not finite"):
        fit(tmp_path / "s", start=tmp_path / "nan.safetensors")


@pytest.mark.slow
def test_a_killed_feature_pass_and_kept_features_end_in_the_bytes_of_an_undisturbed_run(reproduced):
    shutil.copytree(reproduced.path / "models", reproduced.path / "data/weights", dirs_exist_ok=True)
    reproduced.set("train.backbone=frozen", "train.select=val_loss")
    reproduced.run("dvc", "repro", "check")
    where = {"cwd": reproduced.path, "env": reproduced.environment()}
    with subprocess.Popen(["python", "stages/train.py"], stderr=subprocess.PIPE, text=True, **where) as killed:
        assert any("computing the features" in line for line in killed.stderr)
        killed.kill()
    assert "computing" in reproduced.run("dvc", "repro").stderr
    reproduced.commit()
    shutil.rmtree(reproduced.path / "runs/features")
    assert "computing" in reproduced.run("dvc", "repro", "--force", "train").stderr
    assert reproduced.clean()
