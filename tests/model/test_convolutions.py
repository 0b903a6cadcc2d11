"""At tiny sizes the repaired convolutions compute what torch's compute, and nothing of the network changes."""

import pytest
import timm
import torch
from torch import nn

from reprise.model.convolutions import DepthwiseConv2d, PointwiseConv2d, repaired


def both(conv, size, dtype=torch.float32):
    """Return output, input gradient and weight gradient of torch's convolution and of the repaired one."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, conv.in_channels, *size, generator=generator).contiguous(memory_format=torch.channels_last)
    results = []
    for repair in (False, True):
        conv.zero_grad()
        leaf = images.to(dtype).requires_grad_()
        with repaired(conv, pointwise=True) if repair else torch.enable_grad():
            assert (type(conv) is not nn.Conv2d) == repair
            out = conv(leaf)
        weights = torch.arange(out.numel(), dtype=torch.float32).view(out.shape).cos()
        (out * weights).sum().backward()
        results.append([out.detach(), leaf.grad, *(parameter.grad for parameter in conv.parameters())])
    assert type(conv) is nn.Conv2d
    return results


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("kernel", [3, 5, (3, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_a_depthwise_convolution_gives_torchs_outputs_and_gradients(size, kernel, stride, bias):
    torch.manual_seed(0)
    padding = kernel // 2 if isinstance(kernel, int) else tuple(side // 2 for side in kernel)
    theirs, ours = both(nn.Conv2d(24, 24, kernel, stride, padding, groups=24, bias=bias), size)
    for one, two in zip(theirs, ours, strict=True):
        assert one.shape == two.shape
        assert (one - two).abs().max() <= 3e-6 * one.abs().max()
    if size == (1, 1) and not bias:
        assert torch.equal(theirs[0], ours[0]), "one product: there is no order of summation"


@pytest.mark.parametrize("size", [(1, 1), (2, 2)])
def test_a_1x1_convolution_gives_torchs_outputs_and_gradients(size):
    torch.manual_seed(0)
    theirs, ours = both(nn.Conv2d(24, 40, 1), size)
    for one, two in zip(theirs, ours, strict=True):
        assert (one - two).abs().max() <= 3e-6 * one.abs().max()


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": 3, "padding": 1}, (3, 3)),  # larger
        ({"kernel_size": 1}, (2, 2)),  # a tap that meets nothing
        ({"kernel_size": 3, "padding": 3}, (2, 2)),
        ({"kernel_size": 2, "stride": 2}, (2, 2)),
        ({"kernel_size": 3, "padding": 1, "dilation": 2}, (3, 3)),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (2, 2)),
        ({"kernel_size": 3, "padding": "same"}, (2, 2)),
    ],
)
def test_what_it_does_not_cover_is_torchs_own(options, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, groups=6, **options)
    images = torch.randn(2, 6, *size)
    whole = conv(images)
    with repaired(conv, pointwise=True):
        assert torch.allclose(conv(images), whole, rtol=0, atol=1e-6)


def test_a_timm_model_keeps_its_parameters_keys_and_outputs():
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=10).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before, keys = network(images), list(network.state_dict())
        parameters = [id(parameter) for parameter in network.parameters()]
        with repaired(network, pointwise=True):
            kinds = {type(module) for module in network.modules()}
            assert {DepthwiseConv2d, PointwiseConv2d} <= kinds
            assert (list(network.state_dict()), [id(p) for p in network.parameters()]) == (keys, parameters)
            assert torch.allclose(network(images), before, rtol=1e-4, atol=1e-5)
    assert not {DepthwiseConv2d, PointwiseConv2d} & {type(module) for module in network.modules()}


def test_a_training_after_an_evaluation_finds_its_gradients():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    with repaired(conv, pointwise=False):
        with torch.inference_mode():
            conv(torch.ones(1, 4, 1, 2))
        conv(torch.ones(1, 4, 1, 2)).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_it_goes_along_with_mixed_precision():
    torch.manual_seed(0)
    conv = nn.Conv2d(24, 24, 5, 1, 2, groups=24)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = both(conv, (2, 2), torch.bfloat16)
    assert ours[0].dtype in (torch.bfloat16, torch.float32)
    for one, two in zip(theirs, ours, strict=True):
        assert (one.float() - two.float()).abs().max() <= 0.03 * one.float().abs().max()
