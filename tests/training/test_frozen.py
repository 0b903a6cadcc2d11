"""A frozen backbone trains a head on its features: the published model gives what was measured on them, bit for bit."""

import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.evaluate import predict
from reprise.features.store import MOST, check_backbone, folded, pooled, stored
from reprise.loader.batches import EvalBatches
from reprise.model.backbone import TIMMBackbone, create_network, load_model
from reprise.model.pretrained import find_pretrained
from reprise.runtime.errors import UserError
from reprise.training.train import train
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

    def run(scratch=None, *overrides, start=weights):
        given = tiny_params("train.backbone=frozen", "train.batch_size=32", *overrides)
        return train(digits, given.model, given.train, scratch, start)

    return run


@pytest.mark.parametrize("head", ["linear", "prototypes"])
def test_the_published_model_has_the_given_backbone_and_reaches_what_its_row_says(head, fit, weights, digits, tmp_path):
    result = fit(None, f"train.head={head}", "train.balance=weights")
    bits(result, tmp_path)
    network, card = load_model(tmp_path / "model.safetensors", tmp_path / "model.json")
    given = load_file(weights).items()
    assert [name for name, value in given if not torch.equal(value, network.model.state_dict()[name])] == HEAD
    seen = card.preprocessing.model_dump(include={"mean", "std"})
    val = EvalBatches(load_split(digits, "val"), load_metadata(digits).model_copy(update=seen), 32)
    logits, labels = predict(network, val, "cpu")
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.best.val_accuracy)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.best.val_loss, rel=1e-4)
    assert (card.training.head, card.training.epoch) == (f"{head} head", result.best.epoch)


def test_kept_features_give_the_same_bits_and_other_terms_never_find_them(fit, tmp_path, capsys, weights):
    scratch, store = tmp_path / "checkpoints", tmp_path / "features"
    first = bits(fit(scratch), tmp_path / "first")
    [kept] = store.iterdir()
    computed = "computing the features"
    assert computed in capsys.readouterr().err
    assert bits(fit(scratch), tmp_path / "second") == first
    fit(scratch, "train.label_smoothing=0.2", "train.head=prototypes", "train.seed=1", "train.lr=0.1")
    assert computed not in capsys.readouterr().err
    (kept / "features.safetensors").write_bytes((kept / "features.safetensors").read_bytes()[:-1] + b"\x99")
    assert bits(fit(scratch), tmp_path / "third") == first
    assert "altered since it was written; features are computed anew" in capsys.readouterr().err
    other = tmp_path / "other.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, other)
    again = [("train.batch_size=32", other), ("train.batch_size=16", weights), ("train.feature_views=2", weights)]
    for override, start in again:
        fit(scratch, override, start=start)
    assert capsys.readouterr().err.count(computed) == len(again)


def test_views_by_an_augmentation_of_ones_own_are_those_of_its_code(fit, tmp_path, capsys, monkeypatch):
    own = "train.augment.own=[project/a.py:Noise]"
    monkeypatch.setattr("reprise.loader.batches.create_part", lambda name: lambda images, generator: images)
    for code in ("one", "one", "two"):
        monkeypatch.setattr("reprise.training.frozen.project_md5", lambda code=code: code)
        fit(tmp_path / "checkpoints", "train.feature_views=2", own)
    assert capsys.readouterr().err.count("computing the features") == 2


def test_views_that_nothing_changes_are_the_images_themselves_with_their_labels(fit, digits, tmp_path):
    still = (f"train.augment.{name}" for name in ("rotate=0", "scale=0", "shift=0", "flip=false"))
    fit(tmp_path / "checkpoints", "train.feature_views=3", *still)
    [path] = tmp_path.glob("features/*/features.safetensors")
    features, plain = load_file(path), load_split(digits, "train").labels
    own, labels = features["train"][: len(plain)], features["train_labels"]
    assert labels[: len(plain)].tolist() == plain.tolist()
    assert len(labels) == len(plain) + 2 * (len(plain) // 32 * 32)  # an epoch drops its incomplete last batch
    found = torch.cdist(features["train"].double(), own.double()).min(1)
    assert torch.equal(labels[found.indices], labels)


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


def test_the_store_keeps_the_newest_and_nothing_of_what_has_failed(tmp_path):
    for number in range(MOST + 2):
        stored(tmp_path / str(number), lambda: {"x": torch.ones(1)})
    with pytest.raises(ZeroDivisionError):
        stored(tmp_path / "failed", lambda: {"x": torch.ones(1 // 0)})
    assert {path.name for path in tmp_path.glob("[!.]*")} == {str(number) for number in range(2, MOST + 2)}


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
