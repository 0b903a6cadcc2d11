"""The policies' changes are torchvision's, each applied to the images that drew it and to no others."""

import math
from collections import Counter

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide
from torchvision.transforms.v2 import functional as tv

from reprise.augment.policies import CHANGES, POLICIES, apply_policy, change
from tests.augment.test_functional import of_bytes, pictures

TORCHVISION = {"randaugment": RandAugment(), "trivialaugment": TrivialAugmentWide()}
NAMES = {"saturation": "Color", "autocontrast": "AutoContrast"}  # others: shear_x is ShearX


def affine(image, angle=0.0, translate=(0.0, 0.0), shear=(0.0, 0.0)):
    interpolation = InterpolationMode.BILINEAR
    return tv.affine(image, angle, list(translate), 1.0, list(shear), interpolation=interpolation)


def slope(strength):
    return math.degrees(math.atan(strength))


REFERENCES = {  # of image and strength in torchvision's units
    "identity": lambda image, _: image,
    "shear_x": lambda image, slant: affine(image, shear=(slope(slant), 0.0)),
    "shear_y": lambda image, slant: affine(image, shear=(0.0, slope(slant))),
    "translate_x": lambda image, pixels: affine(image, translate=(-pixels, 0)),
    "translate_y": lambda image, pixels: affine(image, translate=(0, -pixels)),
    "rotate": lambda image, degrees: affine(image, angle=-degrees),
    "brightness": lambda image, more: tv.adjust_brightness(image, 1 + more),
    "saturation": lambda image, more: tv.adjust_saturation(image, 1 + more),
    "contrast": lambda image, more: tv.adjust_contrast(image, 1 + more),
    "sharpness": lambda image, more: tv.adjust_sharpness(image, 1 + more),
    "posterize": of_bytes(lambda image, bits: tv.posterize(image, int(bits))),
    "solarize": lambda image, threshold: tv.solarize(image, threshold * 256 / 255) if threshold < 1 else image,
    "autocontrast": lambda image, _: tv.autocontrast(image),
    "equalize": of_bytes(lambda image, _: tv.equalize(image)),
}


def torchvisions_strength(policy, name, step):
    """The strength of a step, 0 to 30, in torchvision's own table; translations in pixels of a 16 pixel image."""
    table = TORCHVISION[policy]
    size = (31, 16, 16) if policy == "trivialaugment" else (31, (16, 16))
    space = table._augmentation_space(*size[: 1 if policy == "trivialaugment" else 2])
    magnitudes, signed = space[NAMES.get(name, name.title().replace("_", ""))]
    if magnitudes.ndim == 0:
        return 0.0, False
    value = magnitudes[step].item()
    return (value / 255 if name == "solarize" and value > 1 else value), signed


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_torchvisions(policy, name, channels):
    images = pictures(channels)
    steps = torch.tensor([0, 9, 9, 17, 30, 30])
    signs = torch.tensor([1, 1, -1, 1, 1, -1])
    drawn = torch.full((6,), CHANGES.index(name))
    result = change(images, drawn, signs * steps / 30, POLICIES[policy])
    for row in range(6):
        strength, signed = torchvisions_strength(policy, name, int(steps[row]))
        expected = REFERENCES[name](images[row], strength * int(signs[row]) if signed else strength)
        assert_close(result[row], expected, atol=5e-4, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_no_strength_changes_nothing(policy):
    always = ("autocontrast", "equalize")
    drawn = torch.tensor([number for number, name in enumerate(CHANGES) if name not in always])
    images = pictures(count=len(drawn))
    result = change(images, drawn, torch.zeros(len(drawn)), POLICIES[policy])
    assert_close(result, images, atol=5e-5, rtol=0)


def test_a_mixed_batch_is_each_image_on_its_own_and_the_batch_given_is_left_alone():
    policy = POLICIES["randaugment"]
    drawn = torch.arange(42) % len(CHANGES)
    strength = torch.linspace(-1, 1, 42)
    images = pictures(count=42)
    before = images.clone()
    result = change(images, drawn, strength, policy)
    assert torch.equal(images, before)
    assert torch.equal(result[drawn == 0], images[drawn == 0])
    for row in range(42):
        alone = change(images[row : row + 1], drawn[row : row + 1], strength[row : row + 1], policy)
        assert_close(result[row : row + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", POLICIES)
def test_images_draw_their_changes_evenly_and_independently(name, monkeypatch):
    drawn, strengths = [], []

    def record(images, changes, strength, policy):
        drawn.append(changes)
        strengths.append(strength)
        return images

    monkeypatch.setattr("reprise.augment.policies.change", record)
    apply_policy(torch.zeros(14_000, 1, 1, 1), POLICIES[name], torch.Generator().manual_seed(0))
    assert len(drawn) == {"randaugment": 2, "trivialaugment": 1}[name]
    for changes, strength in zip(drawn, strengths, strict=True):
        counts = Counter(changes.tolist())
        assert len(counts) == len(CHANGES)
        assert all(850 < count < 1150 for count in counts.values())
        assert abs(strength.sign().mean()) < 0.05
    sizes = torch.cat(strengths).abs().unique()
    assert_close(sizes, torch.tensor([0.3]) if name == "randaugment" else torch.arange(31) / 30)
    if name == "randaugment":
        pairs = Counter(zip(drawn[0].tolist(), drawn[1].tolist(), strict=True))
        assert len(pairs) == len(CHANGES) ** 2
