"""Each image is changed in its own way, within the limits, by draws that depend on (seed, epoch, step) alone."""

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from reprise.augment import functional as transforms
from reprise.augment.pipeline import augment, mix, resolve_augmentation
from reprise.data.formats.packed import PackedSplit
from reprise.loader.batches import IGNORE_INDEX, Process, TrainBatches, stateless_generator
from tests.conftest import ROOT, augmentation, batch_params
from tests.loader.test_batches import metadata

GENERATORS = partial(stateless_generator, "test")
EVERYTHING = {
    "rotate": 20, "scale": 0.2, "shift": 0.1, "flip": True, "resized_crop": 0.3, "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.4, "hue": 0.1, "policy": "trivialaugment", "cutout": 0.3,
}  # fmt: skip


def noise(count=8, size=16, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, channels), generator=generator, dtype=torch.uint8)


def augmented(images, flip=False, **changes):
    """As TrainBatches has them changed; with flip, every other image is mirrored."""
    mirror = torch.arange(len(images)) % 2 == 0 if flip else None
    return augment(images, augmentation(**changes), GENERATORS, mirror)


def drawing(count, size, rows, columns):
    """Black images with a white part."""
    images = torch.zeros(count, size, size, 1, dtype=torch.uint8)
    images[:, rows, columns] = 255
    return images


# The bits of rotate, scale and shift, as they were before there were other changes; with flip, since it alternates.
DIGEST = """
import hashlib
from reprise.runtime.environment import after_torch, before_torch
before_torch(1, "portable")
import numpy as np
from reprise.loader.batches import TrainBatches
from reprise.data.formats.packed import Metadata, PackedSplit
from reprise.params.load import load_params
after_torch(1, "portable")

def digest(channels, size, *overrides):
    params = load_params("params.yaml", ["train.batch_size=32", *overrides]).train
    facts = Metadata(
        data="digits", classes=["a", "b"], image_size=size, channels=channels, mean=[0.3] * channels,
        std=[0.25] * channels, counts={}, source_sha256="", splits_sha256="", sha256={},
    )
    images = np.random.RandomState(0).randint(0, 256, (96, size, size, channels)).astype(np.uint8)
    batches = TrainBatches(PackedSplit(images, np.arange(96) % 2, [""] * 96), facts, params)
    batches.set_epoch(3)
    total = hashlib.sha256()
    for images, labels in batches:
        total.update(images.numpy().tobytes())
        total.update(labels.numpy().tobytes())
    return total.hexdigest()[:16]

print(digest(1, 32), digest(3, 28), digest(3, 28, "train.augment.flip=true"))
"""


@pytest.mark.slow
def test_the_bits_of_the_default_run_are_what_they_were():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["6ec69c3058779ab8", "ecbe066f278560f0", "2f3557a5dcbf4490"]


def test_no_augmentation_changes_nothing():
    images = noise()
    assert torch.equal(augmented(images), images.permute(0, 3, 1, 2) / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_whatever_is_switched_on_the_result_is_an_image_and_the_original_stays(channels):
    images = noise(32, channels=channels)
    before = images.clone()
    for changes in (EVERYTHING, EVERYTHING | {"resized_crop": 0, "crop": 4, "policy": "randaugment"}):
        result = augmented(images, **changes)
        assert result.shape == (32, channels, 16, 16)
        assert result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result.isfinite().all()
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6
        assert torch.equal(images, before)
        assert torch.equal(result, augmented(images, **changes))


@pytest.mark.parametrize("kind", [*EVERYTHING, "crop"])
def test_equal_images_are_changed_each_in_its_own_way(kind):
    """Every other one mirrored; otherwise no two alike, but for a policy's choice of none and few windows."""
    images = noise(1, size=32).expand(64, 32, 32, 3)
    unlike = len(augmented(images, **{kind: (EVERYTHING | {"crop": 4})[kind]}).unique(dim=0))
    least, most = {"flip": (2, 2), "crop": (40, 64), "policy": (35, 60)}.get(kind, (60, 64))
    assert least <= unlike <= most


def test_a_further_change_leaves_the_draws_of_the_others_alone():
    images = noise(32)
    before = {"rotate": 20, "scale": 0.2, "shift": 0.1, "flip": True, "crop": 2, "policy": "randaugment"}
    first = augmented(images, **before)
    amount = 2 * torch.rand(4, 32, generator=GENERATORS("colour")) - 1
    assert torch.equal(augmented(images, **before, contrast=0.5), transforms.contrast(first, 1 + amount[1] * 0.5))
    box = augmented(torch.full_like(images, 255), cutout=0.5) == 0
    for changes in (before, before | {"brightness": 0.3, "contrast": 0.3, "hue": 0.2}):
        assert torch.equal(augmented(images, **changes, cutout=0.5), augmented(images, **changes).masked_fill(box, 0))


def test_every_kind_draws_from_a_source_of_its_own_once():
    asked = []

    def generators(kind):
        asked.append(kind)
        return GENERATORS(kind)

    params = augmentation(**EVERYTHING, mixup=1, cutmix=1)
    images = augment(noise(), params, generators, torch.ones(8, dtype=torch.bool))
    mix(images, torch.arange(8), 8, params, generators)
    assert sorted(asked) == sorted(["augment", "resized_crop", "policy", "colour", "cutout", "mix", "mixup", "cutmix"])


def test_all_of_it_runs_where_the_images_are():
    """On torch's device without data, every operation between two devices is an error."""
    images = torch.empty(8, 16, 16, 3, dtype=torch.uint8, device="meta")
    params = augmentation(**EVERYTHING, mixup=0.2, cutmix=1)
    result = augment(images, params, GENERATORS, torch.ones(8, dtype=torch.bool))
    result, targets = mix(result, torch.empty(8, dtype=torch.int64, device="meta"), 5, params, GENERATORS)
    assert result.device.type == targets.device.type == "meta"
    assert augmented(images, crop=3).shape == (8, 3, 16, 16)
    assert targets.shape == (8, 5)


def epoch_of(seed, epoch, begin=0, balance="none", **settings):
    """Return which of 400 images an epoch of batches of 40 has, in its order, and which of these it mirrors exactly."""
    images = np.zeros((400, 4, 4, 2), np.uint8)
    images[..., 0], images[..., 1] = np.arange(400)[:, None, None] % 200, np.arange(400)[:, None, None] // 200
    images[:, 3, :2] = 255
    batches = TrainBatches(
        PackedSplit(images, np.arange(400), []),
        metadata(2),
        batch_params(40, augmentation(flip=True), seed, balance),
        **settings,
    )
    batches.start(epoch, begin)
    changed, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    originals = torch.from_numpy(images).permute(0, 3, 1, 2)[labels] / 255
    mirrored, kept = ((changed == which).flatten(1).all(1) for which in (originals.flip(3), originals))
    assert torch.equal(mirrored, ~kept)
    return labels, mirrored


def test_each_image_is_mirrored_exactly_in_every_other_epoch_and_half_of_them_in_each():
    orders = []

    def ways(seed, epoch):
        labels, mirrored = epoch_of(seed, epoch)
        orders.append(labels)
        return torch.empty(400, dtype=torch.bool).index_copy_(0, labels, mirrored)

    first = ways(0, 0)
    assert 150 < first.sum() < 250
    assert torch.equal(ways(0, 1), ~first)
    assert torch.equal(ways(0, 2), first)
    assert not torch.equal(orders[0], orders[2])  # it goes with the image, not with its place
    assert 150 < (ways(1, 0) == first).sum() < 250


def test_an_image_that_an_epoch_draws_several_times_is_mirrored_by_chance_each_time():
    twice = 0
    for labels, mirrored in (epoch_of(0, 0, balance="sampling"), epoch_of(0, 1, balance="sampling")):
        assert 150 < mirrored.sum() < 250
        drawn = [mirrored[labels == label] for label in labels.unique()]
        twice += sum(bool(ways.any() and not ways.all()) for ways in drawn)
    assert 60 < twice < 170  # of about 210 images that are drawn twice or more often, a little more than half


def test_each_process_and_a_training_taken_up_again_mirror_as_one_that_is_neither():
    whole = [list(parts) for parts in zip(*(each.split(40) for each in epoch_of(0, 3)), strict=True)]
    for rank in (0, 1):
        labels, mirrored = epoch_of(0, 3, process=Process("cpu", rank, 2))
        assert torch.equal(labels, torch.cat([each for each, _ in whole[rank::2]]))
        assert torch.equal(mirrored, torch.cat([each for _, each in whole[rank::2]]))
    labels, mirrored = epoch_of(0, 3, begin=7)
    assert torch.equal(labels, torch.cat([each for each, _ in whole[7:]]))
    assert torch.equal(mirrored, torch.cat([each for _, each in whole[7:]]))


@pytest.mark.parametrize(
    ("data", "channels", "flip", "mirrored"),
    [
        ("digits", 1, "auto", False),
        ("svhn", 3, "auto", False),  # digits, in color
        ("mnist", 3, "auto", False),  # data.channels: 3
        ("emnist", 1, "auto", False),
        ("gtsrb", 3, "auto", False),  # turn left is not turn right
        ("folder", 1, "auto", False),
        ("folder", 3, "auto", True),
        ("cifar10", 3, "auto", True),
        ("cifar10", 3, False, False),
        ("digits", 1, True, True),
    ],
)
def test_auto_mirrors_photos_and_leaves_digits_alone(data, channels, flip, mirrored):
    facts = metadata(channels).model_copy(update={"data": data})
    assert resolve_augmentation(augmentation(flip=flip), facts).flip is mirrored
    split = PackedSplit(np.arange(256 * channels, dtype=np.uint8).reshape(16, 4, 4, channels), np.zeros(16, int), [])
    ((images, _),) = TrainBatches(split, facts, batch_params(16, augmentation(flip=flip)))
    originals = torch.from_numpy(split.images).permute(0, 3, 1, 2) / 255
    found = sum(bool((images == original).flatten(1).all(1).any()) for original in originals)
    assert (found < 16) is mirrored


def center(images):
    """Return the centers of mass, (x, y) in -1..1."""
    line = (torch.arange(8) * 2 + 1) / 8 - 1
    weight = images.sum(dim=(1, 2, 3))
    return (
        torch.stack([(images.sum(dim=(1, 2)) * line).sum(1), (images.sum(dim=(1, 3)) * line).sum(1)], 1)
        / weight[:, None]
    )


def test_shift_moves_each_image_by_its_own_amount_within_the_limit():
    offsets = center(augmented(drawing(200, 8, slice(3, 5), slice(3, 5)), shift=0.25))
    assert offsets.abs().max() <= 0.5 + 1e-4  # a quarter of a width that spans -1..1
    assert offsets.abs().max() > 0.4
    assert len(offsets.unique(dim=0)) == 200
    assert torch.corrcoef(offsets.T)[0, 1].abs() < 0.2  # x and y are shifted independently


def test_rotation_keeps_the_centre_and_turns_the_corner():
    corner = center(augmented(drawing(200, 8, slice(0, 2), slice(0, 2)), rotate=90))
    angle = torch.atan2(corner[:, 1], corner[:, 0]).rad2deg() % 360 - 225  # of the upper left corner
    assert angle.abs().max() <= 91
    assert angle.min() < -80
    assert angle.max() > 80


def test_scale_changes_the_size_within_the_limit():
    result = augmented(drawing(200, 32, slice(8, 24), slice(8, 24)), scale=0.2)
    factor = (result.sum(dim=(1, 2, 3)) / 256).sqrt()
    assert 0.79 < factor.min() < 0.85
    assert 1.15 < factor.max() < 1.21


def test_every_window_of_a_crop_comes_and_nothing_else():
    images = torch.arange(16, dtype=torch.uint8).view(1, 4, 4, 1).expand(2000, 4, 4, 1)
    padded = torch.zeros(6, 6)
    padded[1:5, 1:5] = torch.arange(16).view(4, 4)
    windows = padded.unfold(0, 4, 1).unfold(1, 4, 1).reshape(9, 16)
    came, counts = (augmented(images, crop=1) * 255).round().flatten(1).unique(dim=0, return_counts=True)
    assert torch.equal(came, windows.unique(dim=0))
    assert counts.min() > 160


def test_a_resized_crop_is_an_enlarged_part():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(300, 64, 64, 1)
    result = augmented(ramp, resized_crop=0.25)[:, 0] * 255
    assert (result - result[:, :1]).abs().max() < 1e-3  # across stays across
    width = result[:, 0, -1] - result[:, 0, 0] + 1
    assert 64 * (0.25 * 3 / 4) ** 0.5 - 1 < width.min() < 64 * 0.5
    assert width.max() > 60


@pytest.mark.parametrize("kind", ["brightness", "contrast"])
def test_strengths_fill_their_range(kind):
    images = torch.tensor([80, 120], dtype=torch.uint8).repeat_interleave(32).view(1, 8, 8, 1).expand(500, 8, 8, 1)
    result = augmented(images, **{kind: 0.5}) * 255
    span = result.amax(dim=(1, 2, 3)) - result.amin(dim=(1, 2, 3))
    assert 20 - 1e-3 < span.min() < 21
    assert 59 < span.max() < 60 + 1e-3


def test_cutout_blackens_a_square_about_a_place_of_its_own():
    white = torch.full((500, 16, 16, 1), 255, dtype=torch.uint8)
    black = augmented(white, cutout=0.25)[:, 0] == 0
    assert black.sum(dim=(1, 2)).max() == 16
    assert black.sum(dim=(1, 2)).min() < 9  # cut off in a corner
    assert black.any(dim=0).all()  # anywhere
    whole = black[black.sum(dim=(1, 2)) == 16]
    assert (whole.any(dim=1).sum(dim=1) == 4).all()
    assert (whole.any(dim=2).sum(dim=1) == 4).all()


# --- mixup and cutmix ---


def mixed(labels, classes, size=8, **changes):
    """Images whose every pixel holds the label, mixed; returned as the label of each pixel, and targets."""
    images = torch.tensor(labels, dtype=torch.float32)[:, None, None, None].expand(len(labels), 3, size, size)
    images = images.contiguous(memory_format=torch.channels_last)
    return mix(images, torch.tensor(labels), classes, augmentation(**changes), GENERATORS)


@pytest.mark.parametrize("size", [8, 7])
def test_cutmix_gives_each_class_exactly_its_share_of_the_pixels(size):
    images, targets = mixed(list(range(200)), 200, size=size, cutmix=1)
    assert targets.dtype == torch.float32
    for image, target in zip(images, targets, strict=True):
        counted = torch.bincount(image[0].flatten().long(), minlength=200)
        assert_close(target, (counted.double() / size**2).float(), atol=0 if size == 8 else 1e-7, rtol=0)
        assert torch.equal(image[0], image[1])
    assert (targets.count_nonzero(dim=1) == 2).sum() > 150
    place = [(image[0] != row).nonzero() for row, image in enumerate(images)]
    assert len({tuple(map(tuple, pixels.tolist())) for pixels in place}) > 100  # each a box of its own


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_image_and_label_by_the_same_share(alpha):
    images, targets = mixed(list(range(500)), 500, mixup=alpha)
    blended = targets.double() @ torch.arange(500).double()
    assert_close(images.double().mean(dim=(1, 2, 3)), blended, atol=1e-3, rtol=0)
    assert (images.amax(dim=(1, 2, 3)) == images.amin(dim=(1, 2, 3))).all()
    assert_close(targets.sum(dim=1), torch.ones(500), atol=1e-6, rtol=0)
    share = 1 - targets.diagonal()
    assert len(share.unique()) > 450
    # the variance of Beta(alpha, alpha) is 1 / (8 alpha + 4)
    assert share.mean().item() == pytest.approx(0.5, abs=0.06)
    assert share.var().item() == pytest.approx(1 / (8 * alpha + 4), rel=0.15)


def test_with_both_on_each_image_is_either_blended_or_patched():
    images, targets = mixed(list(range(400)), 400, mixup=1, cutmix=1)
    alone_mixup, _ = mixed(list(range(400)), 400, mixup=1)
    alone_cutmix, _ = mixed(list(range(400)), 400, cutmix=1)
    blended = (images == alone_mixup).flatten(1).all(1)
    patched = (images == alone_cutmix).flatten(1).all(1)
    assert (blended | patched).all()
    assert 150 < blended.sum() < 250
    assert_close(targets.sum(dim=1), torch.ones(400), atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [{"mixup": 1}, {"cutmix": 1}, {"mixup": 1, "cutmix": 1}])
def test_padding_is_neither_mixed_nor_mixed_in(changes):
    labels = [0, 1, 2, 3, IGNORE_INDEX, IGNORE_INDEX] * 20
    images, targets = mixed(labels, 4, **changes)
    padded = torch.tensor(labels) == IGNORE_INDEX
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (images[padded] == IGNORE_INDEX).all()
    assert (targets[padded] == 0).all()
    assert (images[~padded] >= 0).all()
    assert_close(targets[~padded].sum(dim=1), torch.ones(80), atol=1e-6, rtol=0)
    assert (targets[~padded].max(dim=1).values < 1).any()
