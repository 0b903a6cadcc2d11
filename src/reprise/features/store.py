"""The features of a frozen backbone: what a network's classifier sees of an image, computed once and kept.

The store has a folder for each digest of everything but the image that decides the bits. Its files hold the features of
some images under their keys; a file's name is its SHA-256, which is checked whenever it is read. All folders but the
MOST that were used last go.
"""

import copy
import hashlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from reprise.model.artifact import Architecture
from reprise.model.backbone import TIMMBackbone
from reprise.model.pretrained import PretrainedWeights, classifier_prefixes
from reprise.runtime.atomic import publishing, remove
from reprise.runtime.checksums import verify_file
from reprise.runtime.errors import UserError, say

MOST = 10
BATCHES = 8  # in a file: what a killed pass loses at most


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
    return model.forward_head(model.forward_features(images), pre_logits=True)


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


def backbone_sha256(network: TIMMBackbone) -> str:
    """Return a digest of the weights of a network that decide its features: all but the classifier's."""
    weights, classifier = network.model.state_dict(), classifier_prefixes(network.model)
    deciding = (weights[name].cpu().numpy().tobytes() for name in sorted(weights) if not name.startswith(classifier))
    return hashlib.sha256(b"".join(deciding)).hexdigest()


def kept_features(
    folder: Path | None, keys: list[str], size: int, compute: Callable[[list[int]], Tensor], check: Callable[[], None]
) -> Tensor:
    """Return the features of N images, float32 (N, ...): those that a folder of the store holds, the others computed.

    keys: of the images; equal ones have equal features. compute: returns features (M, ...) of at most `size` images, by
    their numbers. What it gives is kept file by file, unless an image's features depend on the images beside it.
    check: called before a file appears; it raises if images have changed. folder: None keeps nothing. Raises UserError
    for features that are not finite.
    """
    known = _read(folder) if folder else {}
    missing = [number for key, number in {key: number for number, key in enumerate(keys)}.items() if key not in known]
    if missing:
        say(f"computing the features that are not kept: {len(missing):,} of {len(keys):,}", sys.stderr)
    for start in range(0, len(missing), BATCHES * size):
        some = missing[start : start + BATCHES * size]
        features = torch.cat([compute(some[first : first + size]) for first in range(0, len(some), size)])
        if not features.isfinite().all():
            raise UserError("train.backbone = frozen: the weights give features that are not finite; choose others")
        few = some[-max(1, size // 2) :]
        if folder and start == 0 and not torch.equal(features[-len(few) :], compute(few)):
            say("the features of an image depend on the images beside it: they are not kept", sys.stderr)
            folder = None
        computed = {keys[number]: each.clone() for number, each in zip(some, features, strict=True)}
        known |= computed
        if folder:
            content = safetensors.torch.save(computed)
            target = folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
            with publishing(target, check=check) as (partial,):
                partial.write_bytes(content)
    if folder and folder.exists():
        os.utime(folder)
        for _, old in sorted((path.stat().st_mtime_ns, path) for path in folder.parent.glob("[!.]*"))[:-MOST]:
            remove(old)
    return torch.stack([known[key] for key in keys])


def _read(folder: Path) -> dict[str, Tensor]:
    """Return the features that a folder of the store holds, by key. A damaged file is named on stderr and removed."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            verify_file(path, path.stem)
            found |= safetensors.torch.load_file(path)
        except (ValueError, FileNotFoundError) as error:  # damaged, or another process has just removed it
            say(f"{error}; its features are computed anew", sys.stderr)
            remove(path)
    return found
