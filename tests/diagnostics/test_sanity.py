"""The checks pass for what is sound, and name each of the bugs that are planted here."""

import dataclasses

import pytest
import torch
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.diagnostics.sanity import check, sanity, table
from reprise.loader.batches import EvalBatches, TrainBatches
from reprise.model.backbone import create_network
from reprise.training.setup import lit_classifier


@pytest.fixture
def parts(digits, tiny_params):
    """The module, the splits and the metadata of a sound training; tests break one of them and call `failed`."""
    params = tiny_params()
    metadata = load_metadata(digits)
    network, _ = create_network(params.model, metadata, seed=0)
    return {
        "lit": lit_classifier(network, 10, params.train, steps=100),
        "train": load_split(digits, "train"),
        "val": load_split(digits, "val"),
        "metadata": metadata,
        "params": params.train,
    }


@pytest.fixture
def few_steps(monkeypatch):
    """Let what cannot be learned be tried for fewer steps."""
    monkeypatch.setattr("reprise.diagnostics.sanity.STEPS", 20)


def failed(parts, classes=10):
    """Return the names of the checks that fail."""
    params, metadata = parts["params"], parts["metadata"]
    batches = TrainBatches(parts["train"], metadata, params)
    checks = check(parts["lit"], batches, EvalBatches(parts["val"], metadata, 64), classes)
    assert table(checks).count("FAIL") == sum(not each.passed for each in checks)
    return {each.name for each in checks if not each.passed}


def test_a_sound_training_passes(digits, tiny_params):
    params = tiny_params()
    checks = sanity(digits, params.model, params.train)
    assert [each.name for each in checks if not each.passed] == []
    assert len(checks) == 8


def test_weights_that_want_the_mean_of_other_images_pass_too(digits, tiny_params, tmp_path):
    params = tiny_params()
    weights = create_network(params.model, load_metadata(digits), seed=0)[0].model.state_dict()
    torch.save(weights, tmp_path / "start.pth")
    checks = sanity(digits, params.model, params.train, tmp_path / "start.pth")
    assert [each.name for each in checks if not each.passed] == []
    assert checks[0].seen.startswith("-0.")  # normalized as timm's weights of this network want it


def test_a_frozen_parameter_is_named(parts):
    name, parameter = list(parts["lit"].net.named_parameters())[3]
    parameter.requires_grad_(False)
    assert failed(parts) == {"every parameter gets a gradient"}
    assert name


def test_a_loss_of_the_wrong_sign_is_caught(parts, few_steps):
    class Wrong(nn.CrossEntropyLoss):
        def forward(self, logits, targets):
            return -super().forward(logits, targets)

    parts["lit"].criterion = Wrong()
    assert failed(parts) == {"loss at the start: near log(classes)", "one batch can be learned by heart"}


def test_shuffled_labels_are_caught(parts):
    order = torch.randperm(len(parts["train"]), generator=torch.Generator().manual_seed(0)).numpy()
    parts["train"] = dataclasses.replace(parts["train"], labels=parts["train"].labels[order])
    assert failed(parts) == {"labels: similar images share them"}


def test_inputs_that_are_not_normalized_are_caught(parts):
    parts["metadata"] = parts["metadata"].model_copy(update={"mean": [0.0], "std": [1 / 255]})
    assert {"training images: mean 0, deviation 1", "validation images: mean 0, deviation 1"} <= failed(parts)


def test_a_dead_normalization_layer_is_caught(parts, few_steps):
    layer = next(part for part in parts["lit"].net.modules() if isinstance(part, nn.BatchNorm2d))
    for parameter in layer.parameters():
        nn.init.constant_(parameter, -1 if parameter is layer.bias else 0)
    assert {"every parameter gets a gradient", "one batch can be learned by heart"} <= failed(parts)


@pytest.mark.parametrize("outputs", [9, 11, 1000])
def test_a_wrong_number_of_classes_is_caught(parts, outputs):
    parts["lit"].net.model.reset_classifier(outputs)
    assert "one output for each class" in failed(parts)


def test_labels_that_leave_classes_out_are_caught(parts):
    labels = parts["train"].labels
    parts["train"] = dataclasses.replace(parts["train"], labels=labels // 2)
    assert "labels: every class, no other" in failed(parts)
