"""The project's own small networks are selected, adapted, saved and measured like any of timm's."""

import pytest
import timm
import torch

from reprise.model import create_network, load_model, save_model
from tests.test_model import card, facts, params

OWN = ["mlp", "digits_cnn", "resnet9"]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (45, 3)])
def test_each_takes_any_size_and_channels_and_comes_back_from_disk(name, size, channels, tmp_path):
    data = facts().model_copy(update={"image_size": size, "channels": channels})
    network, architecture = create_network(params(name), data, 0)
    files = tmp_path / "model.safetensors", tmp_path / "model.json"
    save_model(network.eval(), card(architecture), *files)
    loaded, _ = load_model(*files)
    images = torch.rand(3, channels, size, size)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))
        assert network(images).shape == (3, 3)


@pytest.mark.parametrize("name", OWN)
def test_each_has_timms_head(name):
    network = timm.create_model(name, num_classes=7, in_chans=1, drop_rate=0.5).eval()
    images = torch.rand(2, 1, 28, 28)
    features = network.forward_features(images)
    assert features.shape == (2, network.num_features)
    assert torch.equal(network.forward_head(features), network(images))
    assert torch.equal(network.forward_head(features, pre_logits=True), features)
    network.reset_classifier(0)
    assert torch.equal(network(images), features)
    assert timm.create_model(name, num_classes=0).num_features == network.num_features


def test_the_weights_of_a_width():
    weights = [sum(p.numel() for p in timm.create_model("resnet9", width=width).parameters()) for width in (32, 64)]
    assert weights == [1_646_122, 6_573_130]  # the published network has 6.57 million
