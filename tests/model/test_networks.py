"""The project's own small networks are selected, adapted, saved and measured like any of timm's."""

import pytest
import timm
import torch
import torch.nn.functional as F

from reprise.model.backbone import create_network, load_model, save_model
from reprise.model.networks import Decorrelated
from tests.model.test_backbone import card, facts, params

OWN = ["mlp", "digits_cnn", "resnet8"]


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


def test_resnet8_begins_with_convolutions_that_keep_what_comes_in():
    network = timm.create_model("resnet8", widths=[12, 16, 24])
    convolutions = [part for part in network.modules() if isinstance(part, torch.nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [12, 12, 16, 16, 24, 24]
    for part in convolutions:
        images = torch.rand(2, part.in_channels, 5, 5)
        assert torch.allclose(part(images)[:, : part.in_channels], images)
        assert part.weight[part.in_channels :].abs().sum() > 0 or part.in_channels == part.out_channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_decorrelated_pixels_are_white_where_neighbours_and_channels_are_alike(channels):
    alike = F.avg_pool2d(torch.rand(64, 1, 24, 24, generator=torch.Generator().manual_seed(0)), 5, stride=1)
    images = alike + 0.05 * torch.rand(64, channels, 20, 20, generator=torch.Generator().manual_seed(1))

    def largest_correlation(values):
        table = values.transpose(0, 1).flatten(1).corrcoef() - torch.eye(values.shape[1])
        return table.abs().max().item()

    shifted = [images[:, :, y : y + 19, x : x + 19] for y in (0, 1) for x in (0, 1)]
    assert largest_correlation(torch.cat(shifted, dim=1)) > 0.7
    layer = Decorrelated(channels)
    white = layer(images)
    assert largest_correlation(white) < 0.1
    assert white.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * (4 * channels), abs=0.04)
    rows = layer.transform.flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(4 * channels), atol=1e-6)  # nothing of the image is lost
