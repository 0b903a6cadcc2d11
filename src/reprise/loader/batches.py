"""Batches gathered from packed arrays, whole batches at a time, without worker processes or Python per image.

Order and augmentation of a batch are a function of (seed, epoch, step) alone, so a run can be repeated or resumed at
any step without saved random state.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from reprise.augment.functional import resized, to_unit
from reprise.augment.pipeline import augment, augment_own, mix, resolve_augmentation
from reprise.data.formats.packed import Metadata, PackedSplit
from reprise.loader.images import Images
from reprise.params.schema import TrainParams
from reprise.runtime.device import to_device
from reprise.runtime.errors import UserError
from reprise.runtime.parts import create_part

IGNORE_INDEX = -100  # the default of torch's cross_entropy, which leaves such targets out
# An image's logits have the same bits in batches of any multiple of this size; in others, matrix products round its row
# by how many rows there are.
SAME_BITS = 16


def whole(images: int) -> int:
    """Return the number of images rounded up to a multiple of SAME_BITS."""
    return -(-images // SAME_BITS) * SAME_BITS


def mask_outputs(preds: Tensor, targets: Tensor, ignore_index: int = IGNORE_INDEX) -> tuple[Tensor, Tensor]:
    """Drop the entries whose target is the ignore index, so that no metric counts padding.

    preds: (N, ...); targets: (N,). Both are returned with the same M <= N rows, in their order.
    """
    counted = targets != ignore_index
    return preds[counted], targets[counted]


def stateless_seed(*key: int | str) -> int:
    """Hash the key, e.g. (seed, "order", epoch), to a seed of 32 bits, which is all that torch's CPU generator uses."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:4], "big")


def stateless_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator seeded by a hash of the key."""
    return torch.Generator().manual_seed(stateless_seed(*key))


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return class weights for the loss, float32 (num_classes,), inversely proportional to the class counts.

    labels: (N,). N / (num_classes * count), scikit-learn's `balanced` (King and Zeng, Political Analysis 2001), so that
    the weights are 1 on average over the images.
    """
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / (len(counts) * counts.float())


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Sample N row numbers of labels (N,) with replacement, so that every class that occurs is equally likely."""
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    occurring = counts.nonzero().flatten()
    chosen = occurring[torch.randint(len(occurring), labels.shape, generator=generator)]
    within = torch.randint(2**62, labels.shape, generator=generator) % counts[chosen]
    return by_class[starts[chosen] + within]


def growing_sizes(epochs: int, start: int, full: int) -> list[int]:
    """Return the image size of each epoch for progressive resizing, in pixels.

    Sizes grow linearly from `start` to `full`, which is reached after two thirds of the epochs and in the last epoch in
    any case. Sizes between are multiples of 4, so that a network can halve them twice. Small images first cost less and
    lose little (Howard, in Stanford's DAWNBench, 2018; Touvron et al., Fixing the train-test resolution discrepancy,
    2019).
    """
    last = min(math.ceil(epochs * 2 / 3), epochs - 1)
    grown = [start + (full - start) * epoch / last for epoch in range(last)]
    return [min(full, max(start, round(size / 4) * 4)) for size in grown] + [full] * (epochs - last)


@dataclass(frozen=True)
class Process:
    """One process of a training: its device, and its rank among `world` processes."""

    device: Literal["cuda", "cpu"] = "cpu"
    rank: int = 0
    world: int = 1


ALONE = Process()


class Normalize:
    """Normalization of images, float32 (N, C, H, W) in 0..1, by the mean and standard deviation of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        given = torch.tensor([mean, std], dtype=torch.float32)
        self.mean, self.std = given.view(2, 1, -1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation, in place."""
        channels, width = images.shape[1], images.shape[3]
        if channels == 1 or not images.is_contiguous(memory_format=torch.channels_last):
            return images.sub_(self.mean).div_(self.std)
        # one line of pixels at a time: broadcasting over the three channels alone takes four times as long
        lines = images.permute(0, 2, 3, 1).flatten(2)
        lines.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return images


class TrainBatches:
    """Shuffled, augmented batches of a fixed size; an incomplete last batch of an epoch is dropped.

    batch_size: `train.batch_size` or, if that is less, what a small split has for each process.

    Yields images, float32 (batch_size, C, H, W), and labels, int64 (batch_size,), or with mixup or cutmix soft targets,
    float32 (batch_size, classes); all on the device. Lightning calls `sampler.set_epoch` before each epoch. `steps` is
    the number of batches in a whole epoch; there is no `len()`, because a resumed epoch has fewer.

    `balance: sampling` draws each class equally often on average, with replacement. The process of rank r among n has
    the batches r, r + n, ... of a single process. image_sizes: height and width in pixels that images are resized to in
    each epoch; empty: they are not resized. Raises UserError for fewer images than processes, or as
    `resolve_augmentation` does.
    """

    def __init__(
        self,
        split: PackedSplit,
        metadata: Metadata,
        params: TrainParams,
        process: Process = ALONE,
        image_sizes: Sequence[int] = (),
    ) -> None:
        world = process.world
        if len(split) < world:
            raise UserError(f"the training split has {len(split)} images for {world} processes; lower train.devices")
        self.images = Images(split.images, process.device)
        self.labels = torch.from_numpy(split.labels)
        self.normalize = Normalize(metadata.mean, metadata.std, process.device)
        self.process, self.image_sizes = process, image_sizes
        self.classes = len(metadata.classes)
        self.batch_size, self.seed = min(params.batch_size, len(split) // world), params.seed
        self.balanced = params.balance == "sampling"
        self.augmentation = resolve_augmentation(params.augment, metadata)
        self.own = {name: create_part(name) for name in params.augment.own}
        self.steps = len(split) // self.batch_size // world
        self.epoch = 0
        self.begin = (0, 0)
        self.sampler = self

    def start(self, epoch: int, step: int) -> None:
        """Set the first epoch and the step in it that iteration begins with; later epochs are whole."""
        self.epoch = epoch
        self.begin = (epoch, step)

    def first_step(self, epoch: int) -> int:
        """Return the step that an epoch begins with: 0, except in a resumed epoch."""
        return self.begin[1] if epoch == self.begin[0] else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the current epoch."""
        epoch, order = self.epoch, self.order(self.epoch)
        mirrored = self.mirrored(epoch, order) if self.augmentation.flip else None
        for step in range(self.first_step(epoch), self.steps):
            number = step * self.process.world + self.process.rank
            places = slice(number * self.batch_size, (number + 1) * self.batch_size)
            rows = order[places]
            generators = partial(self.generator, epoch, number)
            mirror = None if mirrored is None else mirrored[places]
            images = augment(self.images[rows], self.augmentation, generators, mirror)
            images = augment_own(images, self.own, generators)
            targets = to_device(self.labels[rows], self.images.device)
            if self.augmentation.mixup or self.augmentation.cutmix:
                images, targets = mix(images, targets, self.classes, self.augmentation, generators)
            if self.image_sizes:
                images = resized(images, self.image_sizes[epoch])
            yield self.normalize(images), targets

    def order(self, epoch: int) -> Tensor:
        """Return the row numbers of an epoch's images, int64 (N,), those of an incomplete last batch among them."""
        shuffle = stateless_generator(self.seed, "order", epoch)
        if self.balanced:
            return balanced_order(self.labels, shuffle)
        return torch.randperm(len(self.labels), generator=shuffle)

    def mirrored(self, epoch: int, order: Tensor) -> Tensor:
        """Return which images of an epoch are flipped left to right, bool (N,); order: row numbers, (N,).

        Alternating flip (Jordan, airbench, 2024): at random in the first epoch, then every other time, so that two
        epochs show each image both ways. With `balance: sampling`, which draws an image several times an epoch or
        never, at random each time.
        """
        if self.balanced:
            return torch.rand(len(order), generator=stateless_generator(self.seed, "mirror", epoch)) < 0.5
        first = torch.rand(len(order), generator=stateless_generator(self.seed, "mirror")) < 0.5
        return first[order] ^ bool(epoch % 2)

    def generator(self, epoch: int, step: int, kind: str) -> torch.Generator:
        """Return the generator of one kind of augmentation in one batch."""
        return stateless_generator(self.seed, kind, epoch, step)


class EvalBatches:
    """A split in its own order, in batches of a fixed size; the last one is padded with labels IGNORE_INDEX.

    Yields images, float32 (size, C, image_size, image_size), and labels, int64 (size,), on the device; size is
    batch_size or, if that is less, the split's, rounded up by `whole`. image_size: in pixels; None: that of the split.
    The process of rank r among n has the batches r, r + n, ...; all have equally many, some perhaps of padding alone.
    """

    def __init__(
        self,
        split: PackedSplit,
        metadata: Metadata,
        batch_size: int,
        process: Process = ALONE,
        image_size: int | None = None,
    ) -> None:
        self.images = Images(split.images, process.device)
        self.labels = torch.from_numpy(split.labels)
        self.normalize = Normalize(metadata.mean, metadata.std, process.device)
        self.process, self.image_size = process, image_size or split.images.shape[1]
        self.batch_size = min(batch_size, whole(len(split)))  # a small split is not padded to a large batch

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.labels) // (self.batch_size * self.process.world))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of this rank."""
        for step in range(len(self)):
            start = (step * self.process.world + self.process.rank) * self.batch_size
            rows = torch.arange(start, start + self.batch_size)
            padding = rows >= len(self.labels)
            rows[padding] = start if start < len(self.labels) else 0
            labels = torch.where(padding, IGNORE_INDEX, self.labels[rows])
            yield self.inputs(rows), to_device(labels, self.images.device)

    def inputs(self, rows: Tensor) -> Tensor:
        """Return what a network sees of the images of these rows, float32 (N, C, image_size, image_size)."""
        return self.normalize(resized(to_unit(self.images[rows]), self.image_size))
