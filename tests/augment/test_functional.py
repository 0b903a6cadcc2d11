"""Each change of a batch is what torchvision does to its images one by one, each with its own amount."""

import pytest
import torch
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from reprise.augment import functional as transforms
from tests.conftest import ROOT  # noqa: F401  # the repair before torchvision


def pictures(channels=3, count=6, size=16, seed=0):
    """Images in 0..1 whose values are whole 255ths, with some black, some white and one flat channel."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(-40, 300, (count, size, size, channels), generator=generator).clamp(0, 255)
    levels[0, :, :, 0] = 77
    return (levels / 255).permute(0, 3, 1, 2)


def as_bytes(image):
    return (image * 255).round().to(torch.uint8)


def of_bytes(change):
    """A reference that works on bytes, as one on floats."""
    return lambda image, *amount: change(as_bytes(image), *amount) / 255


FACTORS = torch.tensor([0.1, 0.6, 1.0, 1.4, 1.9, 0.0])
# name: amounts of the six images, and torchvision's function
COLORS = {
    "brightness": (FACTORS, tv.adjust_brightness),
    "contrast": (FACTORS, tv.adjust_contrast),
    "saturation": (FACTORS, tv.adjust_saturation),
    "sharpness": (FACTORS, tv.adjust_sharpness),
    "hue": (torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.35, 0.5]), tv.adjust_hue),
    "posterize": (torch.tensor([0, 1, 2, 4, 7, 8]), of_bytes(tv.posterize)),
    "solarize": (torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0, 0.3]), tv.solarize),
}
UNCONDITIONAL = {"autocontrast": tv.autocontrast, "equalize": of_bytes(tv.equalize)}


def number(amount):
    return int(amount) if amount.dtype == torch.int64 else float(amount)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COLORS)
def test_a_change_of_colours_is_torchvisions(name, channels):
    images = pictures(channels)
    amounts, reference = COLORS[name]
    before = images.clone()
    result = getattr(transforms, name)(images, amounts)
    expected = torch.stack([reference(image, number(amount)) for image, amount in zip(images, amounts, strict=True)])
    assert_close(result, expected, atol=2e-6, rtol=0)
    assert torch.equal(images, before)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", UNCONDITIONAL)
def test_a_stretch_of_levels_is_torchvisions(name, channels):
    images = pictures(channels)
    images[1] = images[1] * 0.25 + 0.25  # few levels, none of them black or white
    images[2] = (images[2] > 0.5).float()
    images = (images * 255).round() / 255
    result = getattr(transforms, name)(images)
    assert_close(result, torch.stack([UNCONDITIONAL[name](image) for image in images]), atol=2e-6, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_are_padding_and_slicing(channels):
    images = as_bytes(pictures(channels)).permute(0, 2, 3, 1).contiguous()
    top, left = torch.tensor([0, 8, 4, 3, 7, 1]), torch.tensor([8, 0, 4, 5, 2, 6])
    mirror = torch.tensor([False, True, False, True, True, False])
    result = transforms.crop_flip(images, top, left, mirror, padding=4)
    for row, image in enumerate(images.permute(0, 3, 1, 2)):
        expected = tv.crop(tv.pad(image, [4]), int(top[row]), int(left[row]), 16, 16)
        expected = tv.horizontal_flip(expected) if mirror[row] else expected
        assert torch.equal(result[row].permute(2, 0, 1), expected)
    assert result.dtype == torch.uint8
    assert torch.equal(transforms.crop_flip(images, top * 0, left * 0, mirror & False, 0), images)


def test_a_resized_crop_is_torchvisions():
    images = pictures()
    top, left = torch.tensor([0, 3, 11, 0, 5, 0]), torch.tensor([0, 2, 0, 11, 5, 0])
    height, width = torch.tensor([16, 7, 5, 4, 1, 16]), torch.tensor([16, 9, 16, 5, 1, 8])
    result = transforms.resized_crop(images, top, left, height, width)
    boxes = torch.stack([top, left, height, width], 1).tolist()
    expected = torch.stack(
        [tv.resized_crop(image, *box, [16, 16], antialias=False) for image, box in zip(images, boxes, strict=True)]
    )
    assert_close(result, expected, atol=1e-5, rtol=0)
    assert_close(result[0], images[0], atol=1e-5, rtol=0)  # the whole image is the image
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_windows_have_the_area_and_ratio_asked_for_and_lie_inside():
    share, ratio = torch.linspace(0.05, 1, 500), torch.linspace(3 / 4, 4 / 3, 500).flip(0)
    across, down = torch.rand(2, 500, generator=torch.Generator().manual_seed(0))
    top, left, height, width = transforms.window(share, ratio, across, down, 224)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 224).all()
    assert (left + width <= 224).all()
    whole = (height < 224) & (width < 224)
    assert_close((height * width / 224**2)[whole], share[whole], atol=0.01, rtol=0)
    assert_close((width / height)[whole], ratio[whole], atol=0.03, rtol=0)
    assert (down[height == 224] * top[height == 224] == 0).all()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"angle": 0.5}, {"angle": -28.64788976}),
        ({"angle": -2.0}, {"angle": 114.591559}),
        ({"zoom": 1.3}, {"scale": 1.3}),
        ({"zoom": 0.6, "angle": 0.3}, {"scale": 0.6, "angle": -17.18873385}),
        ({"shift_x": 3 / 16}, {"translate": [-3, 0]}),
        ({"shift_y": -5 / 16}, {"translate": [0, 5]}),
    ],
)
def test_turn_zoom_and_shift_are_torchvisions(ours, theirs):
    images = pictures()
    amounts = {"angle": 0.0, "zoom": 1.0, "shift_x": 0.0, "shift_y": 0.0} | ours
    theta = transforms.turn_zoom_shift(**{name: torch.full((6,), amount) for name, amount in amounts.items()})
    result = transforms.affine(images, theta)
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | theirs
    expected = tv.affine(images, **arguments, interpolation=InterpolationMode.BILINEAR)
    assert_close(result, expected, atol=2e-4, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_a_box_covers_its_pixels_and_is_cut_off_at_the_edge():
    middle_y, middle_x = torch.tensor([0.5, 0.0, 0.25]), torch.tensor([0.5, 1.0, 0.5])
    mask = transforms.box(middle_y, middle_x, torch.tensor([0.5, 0.5, 0.0]), 8, 8)
    expected = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    expected[0, :, 2:6, 2:6] = True
    expected[1, :, :2, 6:] = True
    assert torch.equal(mask, expected)
