"""Augmentation of batches: which transforms each image gets, and how strong, by the params.

Each kind of transform draws from a generator of its own, which the caller seeds from (seed, epoch, step) and the kind's
name, and always draws the same number of values for each image. So switching one kind on does not alter what the others
draw. The caller chooses which images are mirrored.
"""

import math
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from reprise.augment import functional as transforms
from reprise.augment.policies import POLICIES, apply_policy
from reprise.data.formats.packed import Metadata
from reprise.params.schema import AugmentParams
from reprise.runtime.device import to_device
from reprise.runtime.errors import UserError

Generators = Callable[[str], torch.Generator]  # by the name of a kind of transform; on the CPU

# data sets whose mirrored images mean something else or nothing, in color too
NEVER_MIRRORED = {
    "digits", "mnist", "qmnist", "usps", "svhn", "semeion", "emnist", "kmnist", "omniglot",
    "gtsrb", "rendered_sst2",
}  # fmt: skip


def resolve_augmentation(params: AugmentParams, metadata: Metadata) -> AugmentParams:
    """Return the params with `flip: auto` resolved for this data set.

    Raises UserError if `crop` is not below the image size, or for saturation or hue of gray images.
    """
    if params.crop >= metadata.image_size:
        raise UserError(
            f"train.augment.crop = {params.crop}: padding must be below the image size, {metadata.image_size} pixels"
        )
    for name in ("saturation", "hue"):
        if metadata.channels == 1 and getattr(params, name):
            value = f"train.augment.{name} = {getattr(params, name):g}"
            raise UserError(f"{value}: the images are gray; set it to 0, or data.channels: 3")
    if params.flip != "auto":
        return params
    return params.model_copy(update={"flip": metadata.channels == 3 and metadata.data not in NEVER_MIRRORED})


def augment(images: Tensor, params: AugmentParams, generators: Generators, mirror: Tensor | None = None) -> Tensor:
    """Augment a batch at random: uint8 (N, H, W, C) in, float32 (N, C, H, W) in 0..1, channels-last, out.

    mirror: which images to flip left to right, bool (N,); None: none; `params.flip` is not read. Rotation, scale and
    shift are one bilinear resampling. What lies outside the image is 0, black.
    """
    count, device = len(images), images.device

    def uniform(kind: str, kinds: int) -> Tensor:
        return to_device(torch.rand(kinds, count, generator=generators(kind)), device)

    if mirror is not None or params.crop:
        top = left = torch.zeros(count, dtype=torch.int64, device=device)
        if params.crop:  # drawing in vain would cost a measurable share of an MLP's step
            top, left = (uniform("crop", 2) * (2 * params.crop + 1)).long()
        mirror = torch.zeros(count, dtype=torch.bool, device=device) if mirror is None else to_device(mirror, device)
        images = transforms.crop_flip(images, top, left, mirror, params.crop)
    images = transforms.to_unit(images)
    if params.resized_crop:
        share, ratio, across, down = uniform("resized_crop", 4)
        share = params.resized_crop + share * (1 - params.resized_crop)
        ratio = ((2 * ratio - 1) * math.log(4 / 3)).exp()
        images = transforms.resized_crop(images, *transforms.window(share, ratio, across, down, images.shape[3]))
    if params.policy != "none":
        images = apply_policy(images, POLICIES[params.policy], generators("policy"))
    if params.rotate or params.scale or params.shift:
        turn, zoom, shift_x, shift_y = uniform("augment", 4)
        images = transforms.affine(
            images,
            transforms.turn_zoom_shift(
                (2 * turn - 1) * math.radians(params.rotate),
                1 + (2 * zoom - 1) * params.scale,
                (2 * shift_x - 1) * params.shift,
                (2 * shift_y - 1) * params.shift,
            ),
        )
    if params.brightness or params.contrast or params.saturation or params.hue:
        amounts = 2 * uniform("colour", 4) - 1  # the spelling seeds the stream: another would change every result
        for name, amount in zip(("brightness", "contrast", "saturation"), amounts, strict=False):
            if strength := getattr(params, name):
                images = getattr(transforms, name)(images, 1 + amount * strength)
        if params.hue:
            images = transforms.hue(images, amounts[3] * params.hue)
    if params.cutout:
        middle_y, middle_x = uniform("cutout", 2)
        side = torch.full_like(middle_x, params.cutout)
        images.masked_fill_(transforms.box(middle_y, middle_x, side, *images.shape[2:]), 0)
    return images


def augment_own(images: Tensor, parts: Mapping[str, Callable[..., Tensor]], generators: Generators) -> Tensor:
    """Apply augmentations of the user's own, {name: part}: images float32 (N, C, H, W) in, the same out.

    Each is called with the images and a generator on the CPU; what draws from the random streams of torch, NumPy or
    Python instead finds them seeded alike.
    """
    for name, part in parts.items():
        generator = generators(f"own/{name}")
        random.seed(generator.initial_seed())
        np.random.seed(generator.initial_seed())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            images = part(images, generator)
    return images


def mix(
    images: Tensor, labels: Tensor, classes: int, params: AugmentParams, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Apply mixup or cutmix: blend each image with another of the batch, or paste a box of it; with both, half each.

    images: float32 (N, C, H, W); labels: int64 (N,). Returns images and soft targets, float32 (N, classes). Each image
    draws its share from Beta(alpha, alpha) (mixup: Zhang et al., 2018; cutmix: Yun et al., 2019). Entries with a label
    below 0 are padding: they are unchanged, serve as nobody's partner, and their target is zero.
    """
    count, (height, width), device = len(images), images.shape[2:], images.device

    def beta(kind: str, alpha: float) -> tuple[Tensor, ...]:
        source = np.random.default_rng(generators(kind).initial_seed())
        drawn = source.beta(alpha, alpha, count), *source.random((2, count))
        return tuple(to_device(torch.from_numpy(numbers).float(), device) for numbers in drawn)

    chosen = generators("mix")
    partner = to_device(torch.randperm(count, generator=chosen), device)
    patched = to_device(torch.rand(count, generator=chosen) < 0.5, device)[:, None, None, None]
    itself = torch.arange(count, device=device)
    partner = torch.where((labels < 0) | (labels.index_select(0, partner) < 0), itself, partner)
    if params.mixup:
        weight = beta("mixup", params.mixup)[0][:, None, None, None]
    if params.cutmix:
        share, middle_y, middle_x = beta("cutmix", params.cutmix)
        patch = transforms.box(middle_y, middle_x, share.sqrt(), height, width).float()
        weight = torch.where(patched, patch, weight) if params.mixup else patch
    return transforms.mix(images, transforms.one_hot(labels, classes), partner, weight)
