"""RandAugment and TrivialAugment on whole batches: each transform is applied to the images that drew it.

Transforms and strengths are torchvision's defaults for RandAugment (Cubuk et al., 2020: two transforms of strength 9 of
30) and TrivialAugmentWide (Mueller and Hutter, 2021: one transform of strength 0 to 30 of 30), except that images are
sheared about their center and that strength 0 changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reprise.augment import functional as transforms
from reprise.runtime.device import to_device

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
RELATIVE = ("brightness", "saturation", "contrast", "sharpness")  # by a factor about 1
COLOR = (*RELATIVE, "posterize", "solarize", "autocontrast", "equalize")  # by the function of that name
CHANGES = ("identity", *GEOMETRIC, *COLOR)
STEPS = 30


@dataclass(frozen=True)
class Policy:
    """How many transforms an image gets, the range of strengths, and what full strength means for each kind.

    weakest, strongest: steps of 30, both inclusive. shear: slope; rotate: degrees; enhance: deviation from factor 1;
    posterize: bits lost; translate: share of the image's side, by that in pixels.
    """

    changes: int
    weakest: int
    strongest: int
    shear: float
    rotate: float
    enhance: float
    posterize: int
    translate: Callable[[int], float]


POLICIES: dict[Literal["randaugment", "trivialaugment"], Policy] = {
    "randaugment": Policy(2, 9, 9, shear=0.3, rotate=30, enhance=0.9, posterize=4, translate=lambda side: 150 / 331),
    "trivialaugment": Policy(
        1, 0, 30, shear=0.99, rotate=135, enhance=0.99, posterize=6, translate=lambda side: 32 / side
    ),
}


def apply_policy(images: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Apply the policy to images (N, C, H, W), float32 in 0..1, each with transforms of its own.

    generator: on the CPU.
    """
    for _ in range(policy.changes):
        drawn = torch.randint(len(CHANGES), (len(images),), generator=generator)
        steps = torch.randint(policy.weakest, policy.strongest + 1, (len(images),), generator=generator)
        sign = torch.randint(2, (len(images),), generator=generator) * 2 - 1
        images = change(images, drawn, sign * steps / STEPS, policy)
    return images


def change(images: Tensor, drawn: Tensor, strength: Tensor, policy: Policy) -> Tensor:
    """Apply one transform to each image, at a strength of its own.

    drawn: index into CHANGES, (N,); strength: (N,) in -1..1, of which transforms without a direction take the
    magnitude. Both are on the CPU, so that no GPU has to be waited for to learn which images drew what.
    """
    result = images.permute(0, 2, 3, 1).clone()  # (N, H, W, C): index_select along dimension 0 takes whole images
    for names in (GEOMETRIC, *((name,) for name in COLOR)):
        chosen = torch.isin(drawn, torch.tensor([CHANGES.index(name) for name in names])).nonzero().flatten()
        if not len(chosen):
            continue
        rows = to_device(chosen, images.device)
        part = result.index_select(0, rows).permute(0, 3, 1, 2)
        if names == GEOMETRIC:
            theta = _theta(drawn[chosen], strength[chosen], policy, images.shape[3])
            part = transforms.affine(part, to_device(theta, images.device))
        else:
            part = _change_color(part, names[0], to_device(strength[chosen], images.device), policy)
        result.index_copy_(0, rows, part.permute(0, 2, 3, 1))
    return result.permute(0, 3, 1, 2)


def _theta(drawn: Tensor, strength: Tensor, policy: Policy, width: int) -> Tensor:
    """Return theta (N, 2, 3) for `functional.affine`; each image has one of the five geometric transforms."""
    shear_x, shear_y, shift_x, shift_y, turn = (strength * (drawn == CHANGES.index(name)) for name in GEOMETRIC)
    translate = policy.translate(width)
    angle, one = torch.deg2rad(turn * policy.rotate), torch.ones_like(strength)
    theta = transforms.turn_zoom_shift(angle, one, shift_x * translate, shift_y * translate)
    theta[:, 0, 1] += shear_x * policy.shear
    theta[:, 1, 0] += shear_y * policy.shear
    return theta


def _change_color(images: Tensor, name: str, strength: Tensor, policy: Policy) -> Tensor:
    """Apply one transform of COLOR; strength: (N,) in -1..1, on the images' device."""
    amount: tuple[Tensor, ...] = ()
    if name in RELATIVE:
        amount = (1 + strength * policy.enhance,)
    elif name == "posterize":
        amount = (8 - (strength.abs() * policy.posterize).round().long(),)
    elif name == "solarize":
        amount = ((1 - strength.abs()) * 256 / 255,)  # above 1 at strength 0
    changed: Tensor = getattr(transforms, name)(images, *amount)
    return changed
