"""RandAugment and TrivialAugment on whole batches: each change is applied to those images that drew it.

Changes and strengths are torchvision's defaults for RandAugment (Cubuk et al. 2020: two changes, strength 9 of 30) and
TrivialAugmentWide (Mueller and Hutter 2021: one change, strength 0 to 30 of 30), but images are sheared about their
middle, and no strength changes nothing.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reprise.augment import functional as transforms
from reprise.runtime.device import to_device

CHANGES = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
RELATIVE = ("brightness", "saturation", "contrast", "sharpness")
STEPS = 30


@dataclass(frozen=True)
class Policy:
    """How many changes, how strong (step of 30, both included), and what full strength is of each.

    shear: slope; translate: share of the image, or pixels; rotate: degrees; enhance: change of the factor 1; posterize:
    bits that are lost.
    """

    changes: int
    weakest: int
    strongest: int
    shear: float
    rotate: float
    enhance: float
    posterize: int
    translate: float = 0.0
    translate_pixels: int = 0


POLICIES: dict[Literal["randaugment", "trivialaugment"], Policy] = {
    "randaugment": Policy(2, 9, 9, shear=0.3, rotate=30, enhance=0.9, posterize=4, translate=150 / 331),
    "trivialaugment": Policy(1, 0, 30, shear=0.99, rotate=135, enhance=0.99, posterize=6, translate_pixels=32),
}


def apply_policy(images: Tensor, policy: Policy, generator: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), float in 0..1, each with changes of its own; drawn from the CPU generator."""
    for _ in range(policy.changes):
        drawn = torch.randint(len(CHANGES), (len(images),), generator=generator)
        steps = torch.randint(policy.weakest, policy.strongest + 1, (len(images),), generator=generator)
        sign = torch.randint(2, (len(images),), generator=generator) * 2 - 1
        images = change(images, drawn, sign * steps / STEPS, policy)
    return images


def change(images: Tensor, drawn: Tensor, strength: Tensor, policy: Policy) -> Tensor:
    """Apply to each image its change, drawn (N,) out of CHANGES by number, at its strength (N,) in -1..1.

    Changes that know no direction take the strength's size. `drawn` and `strength` are on the CPU, so that no device is
    asked which images drew what.
    """
    result = images.permute(0, 2, 3, 1).clone()  # (N, H, W, C): a row of it is one image
    groups = [GEOMETRIC, *((name,) for name in CHANGES if name not in ("identity", *GEOMETRIC))]
    for names in groups:
        chosen = torch.isin(drawn, torch.tensor([CHANGES.index(name) for name in names])).nonzero().flatten()
        if not len(chosen):
            continue
        rows = to_device(chosen, images.device)
        part = result.index_select(0, rows).permute(0, 3, 1, 2)
        if names == GEOMETRIC:
            theta = _theta(drawn[chosen], strength[chosen], policy, images.shape[3])
            part = transforms.affine(part, to_device(theta, images.device))
        else:
            part = _colour(part, names[0], to_device(strength[chosen], images.device), policy)
        result.index_copy_(0, rows, part.permute(0, 2, 3, 1))
    return result.permute(0, 3, 1, 2)


def _theta(drawn: Tensor, strength: Tensor, policy: Policy, width: int) -> Tensor:
    """Return (N, 2, 3) for `transforms.affine`: of its five kinds, each image has one."""
    shear_x, shear_y, shift_x, shift_y, turn = (strength * (drawn == CHANGES.index(name)) for name in GEOMETRIC)
    translate = policy.translate or policy.translate_pixels / width
    angle, one = transforms.radians(turn * policy.rotate), torch.ones_like(strength)
    theta = transforms.turn_zoom_shift(angle, one, shift_x * translate, shift_y * translate)
    theta[:, 0, 1] += shear_x * policy.shear
    theta[:, 1, 0] += shear_y * policy.shear
    return theta


def _colour(images: Tensor, name: str, strength: Tensor, policy: Policy) -> Tensor:
    if name in RELATIVE:
        enhanced: Tensor = getattr(transforms, name)(images, 1 + strength * policy.enhance)
        return enhanced
    if name == "posterize":
        return transforms.posterize(images, 8 - (strength.abs() * policy.posterize).round().long())
    if name == "solarize":
        return transforms.solarize(images, (1 - strength.abs()) * 256 / 255)  # beyond white at no strength
    return transforms.autocontrast(images) if name == "autocontrast" else transforms.equalize(images)
