"""From a raw archive to packed arrays: decode, convert, resize, split; integer statistics, no torch.

Several processes share the work and write disjoint rows, so the result does not depend on their number.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from reprise.checksums import file_sha256, naming, write_sealed
from reprise.data.archive import UNSPLIT, Extent, RawArchive, read_images, shown
from reprise.data.images import BadImageError, decode, is_grey
from reprise.data.packed import SPLITS, Metadata, Split
from reprise.data.splits import assign_splits
from reprise.data.workers import Map, spread
from reprise.errors import UserError

LISTED = 50  # bad images named in an error; the rest are counted
MANY_IMAGES, MANY_BYTES = 10_000, 32 << 20  # below both, one process is done before others have started
BATCH_IMAGES, BATCH_BYTES = 128, 8 << 20  # of a worker's task, at most


@dataclass(frozen=True)
class Batch:
    """A worker's task: images of one archive, and where their rows begin in the file of their split.

    rows: each image's position in the archive. shape: (H, W, C) of each decoded image.
    """

    archive: Path
    rows: list[int]
    extents: list[Extent]
    shape: tuple[int, int, int]
    file: Path
    offset: int


def preprocess(
    raw: Path,
    destination: Path,
    image_size: int,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    workers: int = 1,
) -> Metadata:
    """Decode, convert, resize and split the images of a raw folder; write packed arrays into the new folder.

    Grey stays one channel where all images are grey, otherwise all become RGB. workers: processes, at most; the result
    does not depend on them. Raises UserError for fewer than two classes, a class with fewer images than splits, a class
    that only the test split has, for images that cannot be read (all of them listed), for an altered archive, and when
    memory runs out.
    """
    archive = RawArchive(raw)
    class_names = [class_name for _, class_name in archive.placed()]
    given = [split for split, _ in archive.placed()]
    classes = archive.source.classes
    if len(classes) < 2:
        raise UserError(f"data has {len(classes)} class ({', '.join(classes)}); classification needs at least 2")
    ids = [member.removeprefix(f"{UNSPLIT}/") for member in archive.members]
    splits = assign_splits(ids, class_names, given, val_fraction, test_fraction, seed)
    rows_of = {split: [row for row, name in enumerate(splits) if name == split] for split in SPLITS}

    destination.mkdir()
    many = len(ids) >= MANY_IMAGES or sum(extent.size for extent in archive.members.values()) >= MANY_BYTES
    with spread(workers if many else 1) as map_tasks:
        channels = 1 if _all_grey(archive, map_tasks) else 3
        sums = _decode_all(archive, rows_of, (image_size, image_size, channels), destination, ids, map_tasks)
    mean, std = channel_statistics(sums, len(rows_of["train"]) * image_size**2)

    label_of = {name: label for label, name in enumerate(classes)}
    for split, rows in rows_of.items():
        labels = BytesIO()  # not straight into the file: numpy's error on a full disk has no number
        np.save(labels, np.array([label_of[class_names[row]] for row in rows], dtype=np.int64))
        split_ids = json.dumps([ids[row] for row in rows], indent=0) + "\n"
        for name, content in (("labels.npy", labels.getvalue()), ("ids.json", split_ids.encode())):
            path = destination / f"{split}_{name}"
            with naming(path):
                path.write_bytes(content)

    placement = json.dumps(
        [archive.source.sha256, *(f"{split} {image_id}" for split, image_id in zip(splits, ids, strict=True))]
    )
    metadata = Metadata(
        data=archive.source.name,
        classes=classes,
        image_size=image_size,
        channels=channels,
        mean=mean,
        std=std,
        counts={split: len(rows) for split, rows in rows_of.items()},
        source_sha256=archive.source.sha256,
        splits_sha256=hashlib.sha256(placement.encode()).hexdigest(),
        sha256={path.name: file_sha256(path) for path in sorted(destination.iterdir())},
    )
    write_sealed(destination / "metadata.json", metadata.model_dump())
    return metadata


def channel_sums(images: np.ndarray) -> np.ndarray:
    """Return the sums of values and of their squares, int64 (2, C), of uint8 images (N, H, W, C)."""
    values = np.arange(256)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in images.reshape(-1, images.shape[-1]).T])
    return np.stack([counts @ values, counts @ values**2])


def channel_statistics(sums: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, in 0..1, from `channel_sums` over so many pixels.

    Integers up to here, so neither order nor batches change a bit. A constant channel has standard deviation 1.
    """
    mean, std = [], []
    for total, squares in sums.T.tolist():
        variance = (pixels * squares - total**2) / pixels**2
        mean.append(total / pixels / 255)
        std.append(math.sqrt(variance) / 255 or 1.0)
    return mean, std


def _all_grey(archive: RawArchive, map_tasks: Map) -> bool:
    """Look at every readable header; the others are found, and listed, when their image is decoded."""
    extents = list(archive.members.values())
    tasks = [(archive.path, extents[start : start + BATCH_IMAGES]) for start in range(0, len(extents), BATCH_IMAGES)]
    return all(map_tasks(_grey_batch, tasks))


def _grey_batch(task: tuple[Path, list[Extent]]) -> bool:
    for encoded in read_images(*task):
        with suppress(BadImageError):
            if not is_grey(encoded):
                return False
    return True


def _decode_all(
    archive: RawArchive,
    rows_of: dict[Split, list[int]],
    shape: tuple[int, int, int],
    destination: Path,
    ids: list[str],
    map_tasks: Map,
) -> np.ndarray:
    """Write `{split}_images.npy` of every split; return the sums of the training images."""
    batches: list[Batch] = []
    for split, rows in rows_of.items():
        batches += _batches(archive, rows, shape, destination / f"{split}_images.npy")
    bad: list[tuple[int, str]] = []
    sums = np.zeros((2, shape[2]), np.int64)
    for batch, (batch_sums, batch_bad) in zip(batches, map_tasks(_decode_batch, batches), strict=True):
        bad += batch_bad
        if batch.file.name == "train_images.npy":
            sums += batch_sums
    _refuse([f"{shown(ids[row])}: {reason}" for row, reason in sorted(bad)])
    return sums


def _batches(archive: RawArchive, rows: list[int], shape: tuple[int, int, int], file: Path) -> Iterator[Batch]:
    """Create one split's array and cut its rows into tasks."""
    extents = list(archive.members.values())
    offset = _create_array(file, (len(rows), *shape))
    largest = max(math.prod(shape), max(extents[row].size for row in rows))
    length = max(1, min(BATCH_IMAGES, BATCH_BYTES // largest))
    for start in range(0, len(rows), length):
        part = rows[start : start + length]
        yield Batch(archive.path, part, [extents[row] for row in part], shape, file, offset + start * math.prod(shape))


def _create_array(path: Path, shape: tuple[int, ...]) -> int:
    """Create a uint8 array on disk, to be filled; return where its data begin. Raises OSError if there is no room."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with naming(path), path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), offset, math.prod(shape))  # no room: known now, not after an hour
    return offset


def _decode_batch(batch: Batch) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Write one batch into its place; return its `channel_sums`, and row and reason of each bad image."""
    images = np.zeros((len(batch.rows), *batch.shape), np.uint8)
    bad = []
    for position, encoded in enumerate(read_images(batch.archive, batch.extents)):
        try:
            images[position] = decode(encoded, batch.shape[0], batch.shape[2])
        except BadImageError as error:
            bad.append((batch.rows[position], str(error)))
    with naming(batch.file), batch.file.open("r+b") as file:
        file.seek(batch.offset)
        file.write(images.data)
    return channel_sums(images), bad


def _refuse(bad: list[str]) -> None:
    if bad:
        more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        listed = "\n  ".join(bad[:LISTED])
        noun = "image" if len(bad) == 1 else "images"
        raise UserError(f"{len(bad)} {noun} cannot be read; replace or remove them:\n  {listed}{more}")
