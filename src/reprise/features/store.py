"""The features of a frozen backbone: what a network's classifier sees of an image, computed once and kept.

The store has a folder for each key, a digest of everything that decides the bits. It is published whole, its file is
checked against a checksum whenever it is read, and all folders but the newest MOST go.
"""

import copy
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reprise.loader.batches import mask_outputs
from reprise.model.artifact import Architecture
from reprise.model.backbone import TIMMBackbone
from reprise.model.pretrained import PretrainedWeights, classifier_prefixes
from reprise.runtime.atomic import publishing, remove
from reprise.runtime.checksums import file_sha256, read_sealed, verify_file, write_sealed
from reprise.runtime.errors import UserError, say

MOST = 10
FILE, SEAL = "features.safetensors", "features.json"


def check_backbone(
    backbone: str, network: TIMMBackbone, architecture: Architecture, pretrained: PretrainedWeights | None
) -> None:
    """Raise UserError for a `train.backbone` that keeps random weights or statistics, or a frozen one without features.

    pretrained: the weights that the network has, None for random ones. A frozen backbone is set to `eval` mode; its
    logits have to be a linear function of pooled features.
    """
    if backbone != "tune" and pretrained is None:
        way_out = "set model.pretrained: true, put weights into data/weights, or set train.backbone: tune"
        raise UserError(f"train.backbone = {backbone}: random weights have nothing worth keeping; {way_out}")
    if backbone != "frozen":
        return
    model: Any = network.eval().model
    layer: Any = model.get_classifier() if hasattr(model, "get_classifier") else None
    fits = isinstance(layer, nn.Linear) and layer.bias is not None and hasattr(model, "forward_head")
    if fits:
        images = torch.rand(2, architecture.in_chans, *[architecture.image_size] * 2)
        weight, given = layer.weight.data, layer.weight.data.clone()
        with torch.no_grad():
            torch.linspace(-1, 1, weight.numel(), out=weight.view(-1))  # zeros would agree with anything
            features = pooled(network, images)
            fits = features.ndim == 2 and features.shape[1] == layer.in_features
            fits = fits and torch.allclose(layer(features), network(images), 1e-3, 1e-3, equal_nan=True)
            weight.copy_(given)
    if not fits:
        what = f"{architecture.model_name} has no pooled features under one linear classifier"
        raise UserError(f"train.backbone = frozen: {what}; set train.backbone: tune, or choose another model.name")


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

    network: in evaluation mode. Raises UserError for features that are not finite.
    """
    with torch.no_grad():
        parts = [mask_outputs(pooled(network, images).cpu(), labels.cpu()) for images, labels in batches]
    features, labels = map(torch.cat, zip(*parts, strict=True))
    if not features.isfinite().all():
        raise UserError("train.backbone = frozen: the weights give features that are not finite; choose others")
    return features, labels


def backbone_sha256(network: TIMMBackbone) -> str:
    """Return a digest of the weights of a network that decide its features: all but the classifier's."""
    weights, classifier = network.model.state_dict(), classifier_prefixes(network.model)
    deciding = (weights[name].cpu().numpy().tobytes() for name in sorted(weights) if not name.startswith(classifier))
    return hashlib.sha256(b"".join(deciding)).hexdigest()


def stored(folder: Path, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that a folder of the store holds; otherwise compute them and keep them there.

    A damaged folder is named on stderr and made anew.
    """
    if (found := _read(folder)) is None:
        with publishing(folder) as (partial,):
            found = compute()
            partial.mkdir()
            save_file(found, partial / FILE)
            write_sealed(partial / SEAL, {"sha256": file_sha256(partial / FILE)})
        for _, old in sorted((path.stat().st_mtime_ns, path) for path in folder.parent.glob("[!.]*"))[:-MOST]:
            remove(old)
    return found


def _read(folder: Path) -> dict[str, Tensor] | None:
    """Return what a folder of the store holds, None if there is none or if it is damaged."""
    with suppress(FileNotFoundError):
        try:
            verify_file(folder / FILE, read_sealed(folder / SEAL)["sha256"])
            return load_file(folder / FILE)
        except ValueError as error:
            say(f"{error}; features are computed anew", sys.stderr)
    return None
