"""Small networks for images of 28 to 32 pixels, registered with timm: `model.name=digits_cnn`, `mlp`, `resnet8`.

timm's networks halve the image five times, which leaves one pixel of 28. `digits_cnn` reaches 99 % on MNIST in 4 epochs
(benchmarks/mnist.py). `resnet8`, for color images, follows the networks of speed records on CIFAR-10
(benchmarks/cifar10.py). `timm_name` looks a model up among these and timm's.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from reprise.runtime.errors import UserError, nearest
from reprise.runtime.parts import ROOT, is_part, load_part


def timm_name(name: str, root: Path = ROOT) -> str:
    """Return the name that timm has a model by; of one of the user's own below a root, once its code is loaded.

    Raises UserError, with the nearest names, for a model or a tag of weights that timm does not have.
    """
    if is_part(name):
        own, model = load_part(name, root), name.partition(":")[2]
        if not timm.is_model(model) or timm.model_entrypoint(model) is not own:
            raise UserError(f"model.name = {name!r}: not registered; put timm's @register_model above it")
        return model
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and name not in tags:
            known = ", ".join(tags) or "none"
            raise UserError(f"model.name = {name!r}: timm has no weights of that tag; it has {known}")
        return name
    if ":" in name or "/" in name:
        hint = "the last part may be a model of timm's, for model.pretrained: true; other weights go into data/weights"
        raise UserError(f"model.name = {name!r}: an address, not a model; {hint}")
    near = nearest(name, timm.list_models())
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`timm.list_models()` names them all"
    raise UserError(f"model.name = {name!r} is not a model of timm {timm.__version__}; {hint}")


class SmallNetwork(nn.Module):
    """Base class: features, dropout and a linear classifier `fc`, with timm's interface (`reset_classifier`, ...)."""

    def __init__(self, features: nn.Module, num_features: int, num_classes: int = 10, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = drop_rate
        self.features = features
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one for so many classes; 0: by the identity, so that features come out."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (N, num_features) of images (N, C, H, W)."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) of features (N, num_features); pre_logits: the classifier's input instead."""
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of images (N, C, H, W)."""
        return self.forward_head(self.forward_features(x))


class MLP(SmallNetwork):
    """Multilayer perceptron on the pixels; hidden: the widths of its hidden layers; head: as of `SmallNetwork`."""

    def __init__(
        self, in_chans: int = 1, img_size: int | tuple[int, int] = 28, hidden: Sequence[int] = (256, 128), **head: Any
    ) -> None:
        widths = [in_chans * math.prod(to_2tuple(img_size)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(nn.Sequential(*layers), widths[-1], **head)


class ConvNet(SmallNetwork):
    """Convolution, batch norm and ReLU for each (channels, kernel, stride) of `layers`, then global average pooling."""

    def __init__(self, layers: Sequence[tuple[int, int, int]], in_chans: int = 3, **head: Any) -> None:
        widths = [in_chans, *(layer[0] for layer in layers)]
        parts = [convolution(before, *layer) for before, layer in zip(widths, layers, strict=False)]
        super().__init__(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], **head)


class ResNet8(SmallNetwork):
    """Three stages of convolution, pooling and a residual convolution, on `Decorrelated` pixels.

    After David Page, "How to train your ResNet" (2018), and Keller Jordan's airbench ("94 % on CIFAR-10 in 3.29
    seconds", 2024): the shape, images whitened by a fixed first layer, convolutions that are initialized to the
    identity, pooling before the norm, and features scaled down, so that the classifier's first logits are small.
    """

    def __init__(self, in_chans: int = 3, widths: Sequence[int] = (64, 128, 256), **head: Any) -> None:
        steps: list[nn.Module] = []
        for before, after in itertools.pairwise([4 * in_chans, *widths]):
            steps += [convolution(before, after, pool=2), Residual(convolution(after, after))]
        for convolved in (layer for step in steps for layer in step.modules() if isinstance(layer, nn.Conv2d)):
            nn.init.dirac_(convolved.weight.data[: convolved.in_channels])
        features = nn.Sequential(Decorrelated(in_chans), *steps, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        super().__init__(features, widths[-1], **head)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (N, num_features) of images (N, C, H, W)."""
        return self.features(x) * 0.15


class Decorrelated(nn.Module):
    """Discrete cosine transform of 2x2 pixels over channels and positions, then batch norm without parameters.

    The transform is fixed. It nearly gives the principal components of natural images (Ahmed, Natarajan and Rao,
    Discrete cosine transform, 1974), so the norm that follows whitens them, and no statistics of the data have to be
    computed first.
    """

    transform: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        color, line = cosines(channels), cosines(2)
        transform = torch.einsum("ac,by,dx->abdcyx", color, line, line).reshape(4 * channels, channels, 2, 2)
        self.register_buffer("transform", transform.float(), persistent=False)
        self.norm = nn.BatchNorm2d(4 * channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 4 C, H - 1, W - 1) of images (N, C, H, W)."""
        with torch.autocast(x.device.type, enabled=False):  # the differences would be lost in bf16
            return self.norm(F.conv2d(x, self.transform))


def cosines(n: int) -> Tensor:
    """Return the matrix of the orthonormal discrete cosine transform (DCT-II), float64 (n, n)."""
    rows, places = torch.arange(n).view(-1, 1), torch.arange(n, dtype=torch.float64).add(0.5)
    matrix = torch.cos(math.pi / n * rows * places) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


class Residual(nn.Module):
    """Residual connection: input plus block(input)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, in the shape of the input."""
        return x + self.block(x)


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1, pool: int = 1) -> nn.Sequential:
    """Return convolution, max pooling, batch norm and ReLU; padded, so that only stride and pool shrink the image."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        *([nn.MaxPool2d(pool)] if pool > 1 else []),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


HEAD = {"num_classes": 10, "classifier": "fc"}
default_cfgs = generate_default_cfgs(  # the name that timm looks for
    {
        "mlp": {**HEAD, "input_size": (1, 28, 28), "fixed_input_size": True, "first_conv": "features.1"},
        "digits_cnn": {**HEAD, "input_size": (1, 28, 28), "first_conv": "features.0.0"},
        "resnet8": {**HEAD, "input_size": (3, 32, 32)},
    }
)


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> MLP:
    """Two hidden layers; `model.kwargs.hidden` sets other widths."""
    return build_model_with_cfg(MLP, "mlp", pretrained, **kwargs)


@register_model
def digits_cnn(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Three convolutions, each with stride 2."""
    layers = [(16, 5, 2), (32, 3, 2), (64, 3, 2)]
    return build_model_with_cfg(ConvNet, "digits_cnn", pretrained, **{"layers": layers, **kwargs})


@register_model
def resnet8(pretrained: bool = False, **kwargs: Any) -> ResNet8:
    """1.2 million weights; `model.kwargs.widths` sets other widths: airbench94 has [64, 256, 256], for GPUs."""
    return build_model_with_cfg(ResNet8, "resnet8", pretrained, **kwargs)
