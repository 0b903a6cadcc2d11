"""Small networks of the project's own, by name beside timm's: `model.name=digits_cnn`, `mlp`, `resnet9`.

timm's networks halve the image five times and so leave a 28 px image one pixel; these are made for 28 to 32 px, on
CPUs. `digits_cnn` shrinks by strides at once: 99 % on MNIST in 4 epochs. `resnet9` (after the residual network of David
Page's "How to train your ResNet", 2018, that speed runs on CIFAR-10 grew from) keeps its width as an argument.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import reprise.torchvision_repair  # noqa: F401

import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class SmallNetwork(nn.Module):
    """features, then a linear classifier `fc`, which is replaced as timm's are: by `reset_classifier`."""

    def __init__(self, features: nn.Module, num_features: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = drop_rate
        self.features = features
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier there; without classes the features come out as they are."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features (N, num_features) of images (N, C, H, W)."""
        features: Tensor = self.features(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes), or what goes into the last layer."""
        x = F.dropout(x, self.drop_rate, self.training)
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class MLP(SmallNetwork):
    """Fully connected layers over the pixels."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 28,
        hidden: Sequence[int] = (256, 128),
        drop_rate: float = 0.0,
    ) -> None:
        widths = [in_chans * math.prod(to_2tuple(img_size)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        super().__init__(nn.Sequential(*layers), widths[-1], num_classes, drop_rate)


class ConvNet(SmallNetwork):
    """Convolution, batch norm, ReLU for each of (channels, kernel, stride); then the mean over the image."""

    def __init__(
        self,
        layers: Sequence[tuple[int, int, int]],
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        widths = [in_chans, *(width for width, _, _ in layers)]
        parts = [
            convolution(before, after, kernel, stride)
            for before, (after, kernel, stride) in zip(widths, layers, strict=False)
        ]
        super().__init__(
            nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], num_classes, drop_rate
        )


class ResNet9(SmallNetwork):
    """Four steps of width, 2, 4 and 8 times that, pooled three times; a residual block in the second and the last."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: int = 64, drop_rate: float = 0.0) -> None:
        features = nn.Sequential(
            convolution(in_chans, width),
            convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        super().__init__(features, 8 * width, num_classes, drop_rate)


class Residual(nn.Module):
    """Two convolutions of equal width, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H, W), as it came in."""
        result: Tensor = x + self.block(x)
        return result


def convolution(before: int, after: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Return convolution, batch norm and ReLU; the image keeps its size, but for the stride."""
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _cfg(**facts: Any) -> dict[str, Any]:
    return {"num_classes": 10, "classifier": "fc", **facts}


default_cfgs = generate_default_cfgs(  # timm looks for this name
    {
        "mlp": _cfg(input_size=(1, 28, 28), fixed_input_size=True, first_conv="features.1"),
        "digits_cnn": _cfg(input_size=(1, 28, 28), first_conv="features.0.0"),
        "resnet9": _cfg(input_size=(3, 32, 32), first_conv="features.0.0"),
    }
)


@register_model
def mlp(pretrained: bool = False, **kwargs: Any) -> MLP:
    """Two hidden layers; `model.kwargs.hidden` takes other widths."""
    return build_model_with_cfg(MLP, "mlp", pretrained, **kwargs)


@register_model
def digits_cnn(pretrained: bool = False, **kwargs: Any) -> ConvNet:
    """Three convolutions, each with stride 2."""
    layers = [(16, 5, 2), (32, 3, 2), (64, 3, 2)]
    return build_model_with_cfg(ConvNet, "digits_cnn", pretrained, **{"layers": layers, **kwargs})


@register_model
def resnet9(pretrained: bool = False, **kwargs: Any) -> ResNet9:
    """About 94 % on CIFAR-10 on a GPU; `model.kwargs.width=32` has a quarter of the weights, for CPUs."""
    return build_model_with_cfg(ResNet9, "resnet9", pretrained, **kwargs)
