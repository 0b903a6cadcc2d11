"""From a raw archive to packed arrays: decode, convert, resize, split; integer statistics, no torch."""

import hashlib
import json
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from reprise.data.archive import UNSPLIT, RawArchive
from reprise.data.images import BadImageError, decode, is_grey
from reprise.data.packed import SPLITS, Metadata, Split
from reprise.data.splits import assign_splits
from reprise.errors import UserError

LISTED = 50  # bad images named in an error; the rest are counted


def preprocess(
    raw: Path, destination: Path, image_size: int, val_fraction: float, test_fraction: float, seed: int
) -> Metadata:
    """Decode, convert, resize and split the images of a raw folder; write packed arrays into the new folder.

    Grey stays one channel where all images are grey, otherwise all become RGB. Raises UserError for fewer than two
    classes, a class with fewer images than splits, a class that only the test split has, and for images that cannot be
    read (all of them listed).
    """
    archive = RawArchive(raw)
    placed = list(archive.placed())
    class_names = [class_name for _, class_name in placed]
    given = [split for split, _ in placed]
    classes = archive.source.classes
    if len(classes) < 2:
        raise UserError(f"data has {len(classes)} class ({', '.join(classes)}); classification needs at least 2")
    ids = [member.removeprefix(f"{UNSPLIT}/") for member in archive.members]
    splits = assign_splits(ids, class_names, given, val_fraction, test_fraction, seed)

    channels = 1 if _all_grey(archive) else 3
    label_of = {name: label for label, name in enumerate(classes)}
    destination.mkdir()
    bad: list[str] = []
    counts: dict[Split, int] = {}
    for split in SPLITS:
        rows = [row for row, name in enumerate(splits) if name == split]
        counts[split] = len(rows)
        shape = (len(rows), image_size, image_size, channels)
        images = _create_array(destination / f"{split}_images.npy", shape)
        for position, row in enumerate(rows):
            try:
                images[position] = decode(archive.read(archive.members[row]), image_size, channels)
            except BadImageError as error:
                bad.append(f"{ids[row]}: {error}")
        images.flush()
        labels = np.array([label_of[class_names[row]] for row in rows], dtype=np.int64)
        np.save(destination / f"{split}_labels.npy", labels)
        split_ids = json.dumps([ids[row] for row in rows], indent=0)
        (destination / f"{split}_ids.json").write_text(split_ids + "\n", encoding="utf-8")
    _refuse(bad)

    mean, std = channel_statistics(np.load(destination / "train_images.npy", mmap_mode="r"))
    source_sha256 = archive.sha256()
    placement = json.dumps(
        [source_sha256, *(f"{split} {image_id}" for split, image_id in zip(splits, ids, strict=True))]
    )
    metadata = Metadata(
        data=archive.source.name,
        classes=classes,
        image_size=image_size,
        channels=channels,
        mean=mean,
        std=std,
        counts=counts,
        source_sha256=source_sha256,
        splits_sha256=hashlib.sha256(placement.encode()).hexdigest(),
    )
    (destination / "metadata.json").write_text(metadata.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return metadata


def _create_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Create a uint8 array on disk. Raises OSError if there is no room: a sparse file would crash when it is filled."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def channel_statistics(images: np.ndarray, chunk: int = 4096) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images (N, H, W, C), in 0..1.

    Summed in integers, so neither order nor chunking changes a bit. A constant channel has standard deviation 1.
    """
    total = np.zeros(images.shape[-1], dtype=np.uint64)
    squares = np.zeros_like(total)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].astype(np.uint64)
        total += part.sum(axis=(0, 1, 2))
        squares += (part * part).sum(axis=(0, 1, 2))
    count = images.size // images.shape[-1]
    mean, std = [], []
    for channel_total, channel_squares in zip(total.tolist(), squares.tolist(), strict=True):
        variance = (count * channel_squares - channel_total**2) / count**2
        mean.append(channel_total / count / 255)
        std.append(math.sqrt(variance) / 255 or 1.0)
    return mean, std


def _all_grey(archive: RawArchive) -> bool:
    """Look at every readable header; the others are found, and listed, when their image is decoded."""
    for member in archive.members:
        with suppress(BadImageError):
            if not is_grey(archive.read(member)):
                return False
    return True


def _refuse(bad: list[str]) -> None:
    if bad:
        more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        listed = "\n  ".join(bad[:LISTED])
        noun = "image" if len(bad) == 1 else "images"
        raise UserError(f"{len(bad)} {noun} cannot be read; replace or remove them:\n  {listed}{more}")
