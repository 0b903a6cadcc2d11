"""Pooled features: what a network's classifier sees of an image."""

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reprise.loader.batches import mask_outputs
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.errors import UserError

WAY_OUT = "set train.backbone: tune, or choose another model.name"


def linear_classifier(network: TIMMBackbone, images: Tensor) -> nn.Linear:
    """Return the last layer of a network whose logits are a linear function of its pooled features.

    images: (N, C, H, W), to try it on. Raises UserError for any other network.
    """
    model: Any = network.model
    name = network.arguments["model_name"]
    layer = model.get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise UserError(f"train.backbone = frozen: the classifier of {name} is not one linear layer; {WAY_OUT}")
    weight, given = layer.weight.data, layer.weight.data.clone()
    with torch.no_grad():
        network.eval()
        torch.linspace(-1, 1, weight.numel(), out=weight.view(-1))  # zeros would agree with anything
        features = pooled(network, images) if hasattr(model, "forward_head") else images
        fits = features.ndim == 2 and features.shape[1] == layer.in_features
        fits = fits and torch.allclose(layer(features), network(images), 1e-3, 1e-3)
        weight.copy_(given)
    if not fits:
        raise UserError(f"train.backbone = frozen: {name} has no pooled features under its classifier; {WAY_OUT}")
    return layer


def pooled(network: TIMMBackbone, images: Tensor) -> Tensor:
    """Return the features (N, D) that the classifier of a network would see of images (N, C, H, W)."""
    model: Any = network.model
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features


def folded(network: TIMMBackbone, images: Tensor) -> TIMMBackbone:
    """Return a copy of a network with each norm folded into the convolution before it, in evaluation mode.

    That takes two thirds of the time and rounds otherwise. images: (N, C, H, W), to try it on: a network that calls its
    layers in another order than it lists them would give other features, and is returned unfolded.
    """
    copied = copy.deepcopy(network.eval())
    for module in list(copied.modules()):
        layers: list[tuple[str, Any]] = list(module.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(layers):
            pair = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats
            if pair and conv.out_channels == norm.num_features:
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                # timm's norms bring an activation along
                setattr(module, norm_name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    with torch.no_grad():
        ours, given = pooled(copied, images), pooled(network, images)
    return copied if bool((ours - given).abs().max() <= 1e-4 * given.abs().max()) else network


def pooled_features(network: TIMMBackbone, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return features, float32 (N, D), and labels, int64 (N,), of batches without their padding, on the CPU.

    The network computes in evaluation mode. Raises UserError for features that are not finite.
    """
    network.eval()
    with torch.no_grad():
        parts = [mask_outputs(pooled(network, images).cpu(), labels.cpu()) for images, labels in batches]
    features, labels = map(torch.cat, zip(*parts, strict=True))
    if not features.isfinite().all():
        raise UserError(f"train.backbone = frozen: the weights give features that are not finite; {WAY_OUT}")
    return features, labels
