"""Batches are a function of (seed, epoch, step); padding counts nowhere."""

from collections import Counter

import numpy as np
import pytest
import torch

from reprise.data.formats.packed import Metadata, PackedSplit
from reprise.loader.batches import (
    IGNORE_INDEX,
    EvalBatches,
    Normalize,
    Process,
    TrainBatches,
    balanced_order,
    class_weights,
    growing_sizes,
    mask_outputs,
    stateless_generator,
)
from reprise.runtime.errors import UserError
from tests.conftest import augmentation, batch_params

STILL = augmentation()


def metadata(channels=1, mean=0.0, std=1.0):
    statistics = {"mean": [mean] * channels, "std": [std] * channels}
    digests = {"source_sha256": "", "splits_sha256": "", "sha256": {}}
    return Metadata(
        data="test", classes=["a", "b"], image_size=4, channels=channels, counts={}, **statistics, **digests
    )


def numbered(count):
    """Images whose every pixel is the image's number, and so is its label."""
    numbers = np.arange(count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 1)).astype(np.uint8)
    return PackedSplit(images, numbers.astype(np.int64), [str(number) for number in numbers])


def batches(count=10, size=3, augmentation=STILL, seed=0, epoch=0):
    train = TrainBatches(numbered(count), metadata(), batch_params(size, augmentation, seed))
    train.sampler.set_epoch(epoch)
    return train


def test_images_stay_with_their_labels_and_none_comes_twice():
    train = batches()
    seen = Counter()
    for images, labels in train:
        assert images.shape == (3, 1, 4, 4)
        assert torch.equal((images * 255).round()[:, 0, 0, 0].long(), labels)
        seen.update(labels.tolist())
    assert train.steps == 3
    assert len(seen) == 9  # the tenth is left out this epoch
    assert max(seen.values()) == 1


@pytest.mark.parametrize("mix", [{}, {"mixup": 0.4, "cutmix": 1}])
def test_order_and_augmentation_depend_on_seed_and_epoch_alone(mix):
    moving = augmentation(rotate=20, scale=0.1, shift=0.1, flip=True, crop=1, policy="trivialaugment", **mix)
    first = list(batches(augmentation=moving, epoch=5))
    other = batches(augmentation=moving, epoch=4)
    list(other)
    torch.rand(100)  # what has been drawn before plays no part
    other.set_epoch(5)
    for (images, labels), (same_images, same_labels) in zip(first, other, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert (labels.shape, labels.dtype) == (((3, 2), torch.float32) if mix else ((3,), torch.int64))
    assert not torch.equal(first[0][0], next(iter(batches(augmentation=moving, epoch=6)))[0])
    assert not torch.equal(first[0][0], next(iter(batches(augmentation=moving, epoch=5, seed=1)))[0])


def test_a_split_smaller_than_a_batch_is_one_batch():
    train = batches(count=10, size=11)
    assert train.steps == 1
    for epoch in range(2):
        train.set_epoch(epoch)
        ((images, labels),) = train
        assert images.shape == (10, 1, 4, 4)
        assert sorted(labels.tolist()) == list(range(10))


def test_a_split_smaller_than_the_batches_of_all_processes_is_divided_among_them():
    params = batch_params(8, STILL)
    seen = []
    for rank in range(3):
        ((_, labels),) = TrainBatches(numbered(10), metadata(), params, Process("cpu", rank, 3))
        seen += labels.tolist()
    assert len(seen) == len(set(seen)) == 9
    with pytest.raises(UserError, match=r"the training split has 2 images for 3 processes; lower train\.devices"):
        TrainBatches(numbered(2), metadata(), params, Process("cpu", 0, 3))


def test_evaluation_keeps_the_order_and_pads_to_one_shape():
    loader = EvalBatches(numbered(10), metadata(), 4)
    shapes = [tuple(images.shape) for images, _ in loader]
    labels = torch.cat([labels for _, labels in loader])
    assert shapes == [(4, 1, 4, 4)] * len(loader) == [(4, 1, 4, 4)] * 3
    assert labels.tolist() == [*range(10), IGNORE_INDEX, IGNORE_INDEX]


def test_mask_outputs_drops_exactly_the_padding():
    preds, targets = mask_outputs(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([7, IGNORE_INDEX, 9]))
    assert preds.tolist() == [[1.0], [3.0]]
    assert targets.tolist() == [7, 9]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_gives_the_same_bits_in_any_memory(channels, memory_format):
    facts = metadata(channels=channels).model_copy(
        update={"mean": [0.1, 0.2, 0.3][:channels], "std": [0.3, 0.7, 0.9][:channels]}
    )
    images = torch.rand(5, channels, 7, 6).contiguous(memory_format=memory_format)
    normalize = Normalize(facts.mean, facts.std)
    expected = (images - normalize.mean) / normalize.std
    result = normalize(images)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=memory_format)


def test_a_small_split_is_not_padded_to_a_large_batch():
    ((images, labels),) = EvalBatches(numbered(3), metadata(), 256)
    assert images.shape == (16, 1, 4, 4)
    assert labels.tolist() == [0, 1, 2, *[IGNORE_INDEX] * 13]


def test_two_steps_of_one_epoch_draw_different_augmentation():
    same = PackedSplit(np.full((4, 4, 4, 1), 200, np.uint8), np.zeros(4, np.int64), list("abcd"))
    moving = augmentation(rotate=20, scale=0.1, shift=0.3)
    (first, _), (second, _) = TrainBatches(same, metadata(), batch_params(2, moving))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_what_moves_in_is_black_before_the_mean_is_subtracted():
    white = PackedSplit(np.full((2, 4, 4, 1), 255, np.uint8), np.zeros(2, np.int64), list("ab"))
    away = augmentation(shift=0.9)
    train = TrainBatches(white, metadata(mean=0.5, std=0.25), batch_params(2, away))
    ((images, _),) = train
    assert images.min().item() == pytest.approx((0 - 0.5) / 0.25)  # not 0, the mean


def test_weights_of_classes_are_inverse_to_their_counts_and_1_on_average():
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 5)
    assert (weights * torch.bincount(labels, minlength=5)).tolist() == pytest.approx([2, 2, 0, 2, 0])
    assert class_weights(labels.clamp(max=1), 2)[labels.clamp(max=1)].mean().item() == pytest.approx(1)


def test_a_balanced_order_draws_every_class_that_occurs_equally_often_and_every_image():
    labels = torch.tensor([4] * 900 + [1] * 90 + [0] * 10)
    counts = torch.zeros(5)
    seen = set()
    for epoch in range(30):
        order = balanced_order(labels, stateless_generator(0, "order", epoch))
        assert len(order) == 1000
        counts += torch.bincount(labels[order], minlength=5)
        seen |= set(order.tolist())
    assert (counts / counts.sum()).tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3], abs=0.01)
    assert len(seen) > 990
    again = balanced_order(labels, stateless_generator(0, "order", 29))
    assert torch.equal(again, order)


def test_balance_by_sampling_reaches_the_batches():
    rare = PackedSplit(np.zeros((100, 4, 4, 1), np.uint8), np.repeat([0, 1], [98, 2]), list(map(str, range(100))))
    train = TrainBatches(rare, metadata(), batch_params(10, STILL, balance="sampling"))
    assert 35 <= sum(int(labels.sum()) for _, labels in train) <= 65


def test_images_grow_in_even_steps_and_are_whole_for_the_last_third():
    assert growing_sizes(9, 16, 32) == [16, 20, 20, 24, 28, 28, 32, 32, 32]
    assert growing_sizes(10, 16, 32) == [16, 20, 20, 24, 24, 28, 28, 32, 32, 32]
    assert growing_sizes(3, 9, 31) == [9, 20, 31]  # multiples of 4 on the way
    assert max(growing_sizes(50, 9, 31)) == 31
    assert growing_sizes(2, 16, 32) == [16, 32]
    assert growing_sizes(1, 16, 32) == [32]
    assert growing_sizes(4, 30, 30) == [30] * 4


def test_each_epoch_has_images_of_its_size_and_evaluation_of_the_last():
    halves = np.zeros((4, 8, 8, 1), np.uint8)
    halves[:, :, 4:] = 200
    split = PackedSplit(halves, np.arange(4), list("abcd"))
    train = TrainBatches(split, metadata(mean=0.5, std=0.25), batch_params(2, STILL), image_sizes=[4, 6, 8])
    for epoch, size in enumerate([4, 6, 8]):
        train.set_epoch(epoch)
        for images, _ in train:
            assert images.shape == (2, 1, size, size)
            assert images.is_contiguous(memory_format=torch.channels_last)
            for column, value in ((0, 0), (-1, 200 / 255)):
                edge = torch.full((2, 1, size), (value - 0.5) / 0.25)
                assert torch.allclose(images[..., column], edge, atol=1e-6)
    ((images, _),) = EvalBatches(split, metadata(), 4, image_size=4)
    assert images[0, 0, 0].tolist() == pytest.approx([0, 25 / 255, 175 / 255, 200 / 255])  # a triangle of 4 pixels
    ((images, _),) = EvalBatches(split, metadata(), 4)
    assert images.shape == (4, 1, 8, 8)
