"""A frozen backbone trains a head on its features: the published model gives what was measured on them, bit for bit."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.evaluate import predict
from reprise.features.store import MOST, check_frozen, folded, pooled, stored
from reprise.loader.batches import EvalBatches
from reprise.model.artifact import Architecture
from reprise.model.backbone import TIMMBackbone, build, load_model
from reprise.model.pretrained import find_pretrained
from reprise.runtime.errors import UserError
from reprise.training.train import train
from tests.training.test_checkpoint import bits

STILL = ["rotate=0", "scale=0", "shift=0", "flip=false"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a tiny network, as a file."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", in_chans=1).state_dict(), path)
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
    given, had = load_file(weights), network.model.state_dict()
    assert {name for name, value in had.items() if not torch.equal(value, given[name])} == {"fc.weight", "fc.bias"}
    val = EvalBatches(load_split(digits, "val"), load_metadata(digits).model_copy(update=normalization(card)), 32)
    logits, labels = predict(network, val, "cpu")
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(result.best.val_accuracy)
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(result.best.val_loss, rel=1e-4)
    assert result.best == max(result.history, key=lambda row: (row.val_accuracy, -row.val_loss))
    assert result.best.val_accuracy > 0.5  # by chance 0.1
    assert (card.training.head, card.training.epoch) == (f"{head} head", result.best.epoch)
    assert (tmp_path / "history.csv").read_text().startswith("epoch,lr,train_loss,train_accuracy,val_loss,val_acc")


def normalization(card):
    return {"mean": card.preprocessing.mean, "std": card.preprocessing.std}


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
    said = capsys.readouterr().err
    assert "features.safetensors: altered since it was written; features are computed anew" in said
    other = tmp_path / "other.safetensors"
    changed = load_file(weights)
    changed["conv1.0.weight"][0, 0, 0, 0] += 1e-3
    save_file(changed, other)
    again = [("train.batch_size=32", other), ("train.batch_size=16", weights), ("train.feature_views=2", weights)]
    for number, (override, start) in enumerate(again, 2):
        fit(scratch, override, start=start)
        assert computed in capsys.readouterr().err
        assert len(list(store.iterdir())) == number


def test_views_that_nothing_changes_are_the_images_themselves_with_their_labels(fit, digits, tmp_path):
    fit(tmp_path / "checkpoints", "train.feature_views=3", *(f"train.augment.{each}" for each in STILL))
    [path] = tmp_path.glob("features/*/features.safetensors")
    features, plain = load_file(path), load_split(digits, "train").labels
    own, labels = features["train"][: len(plain)], features["train_labels"]
    assert labels[: len(plain)].tolist() == plain.tolist()
    assert len(labels) == len(plain) + 2 * (len(plain) // 32 * 32)  # an epoch drops its incomplete last batch
    found = torch.cdist(features["train"].double(), own.double()).min(1)
    assert found.values.max() < 1e-4
    assert torch.equal(labels[found.indices], labels)


class NormLast(nn.Module):
    """Lists a norm behind a convolution, and calls it behind the activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward_features(self, x):
        return self.norm(self.conv(x).relu())

    def forward_head(self, x, pre_logits):
        return x.mean((2, 3))


@pytest.mark.parametrize("in_order", [True, False])
def test_folded_norms_change_no_feature_and_what_they_would_change_is_left_alone(in_order):
    torch.manual_seed(0)
    network = TIMMBackbone("test_efficientnet", pretrained=False)
    network.model = network.model if in_order else NormLast()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.rand(4, 3, 64, 64)
    quick = folded(network.eval(), images)
    with torch.no_grad():
        assert torch.allclose(pooled(quick, images), pooled(network, images), 1e-4, 1e-5)
    assert any(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) != in_order


def test_the_store_keeps_the_newest_and_nothing_of_what_has_failed(tmp_path):
    def fails():
        raise KeyboardInterrupt

    for number in range(MOST + 2):
        stored(tmp_path, str(number), lambda: {"x": torch.ones(1)})
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, "failed", fails)
    assert {path.name for path in tmp_path.glob("[!.]*")} == {str(number) for number in range(2, MOST + 2)}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "fc", nn.Linear(model.num_features, 3, bias=False)),
        lambda model: setattr(model, "fc", nn.Sequential(nn.Linear(model.num_features, 3))),
        lambda model: setattr(model, "forward", lambda x: model.fc(pooled_of(model, x)).tanh()),
        lambda model: setattr(model, "forward_head", lambda x, pre_logits=False: x),
    ],
    ids=["no bias", "not linear", "something after it", "not pooled"],
)
def test_a_classifier_that_is_no_linear_function_of_pooled_features_is_refused(change, weights, tiny_params):
    params = tiny_params()
    pretrained = find_pretrained(params.model, weights)
    architecture = Architecture(model_name="test_resnet", num_classes=3, in_chans=1, image_size=32, kwargs={})
    network = build(architecture, pretrained)
    check_frozen(network, architecture, pretrained)
    change(network.model)
    with pytest.raises(UserError, match="test_resnet has no pooled features under one linear classifier; set train"):
        check_frozen(network, architecture, pretrained)


def pooled_of(model, images):
    return model.forward_head(model.forward_features(images), pre_logits=True)


def test_random_weights_and_features_that_are_not_finite_are_refused(fit, tmp_path, weights):
    with pytest.raises(UserError, match=r"random weights have no features worth keeping; set model\.pretrained: true"):
        fit(start=None)
    broken = load_file(weights)
    broken["conv1.0.weight"] = broken["conv1.0.weight"] * float("inf")
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="the weights give features that are not finite"):
        fit(tmp_path / "s", start=tmp_path / "broken.safetensors")
    assert list(tmp_path.glob("features/[!.]*")) == []
