"""Packing: decode a raw archive's images into rows of arrays on disk, by several processes, in little memory.

The processes write disjoint rows, so the bytes do not depend on their number. Statistics are sums of integers, so
neither order nor batches change a bit of them.
"""

import math
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from reprise.data.formats.packed import Split
from reprise.data.formats.raw import Extent, RawArchive, read_images
from reprise.data.prepare.decode import BadImageError, decode, is_gray
from reprise.data.prepare.signatures import SIGNATURE, signatures
from reprise.data.prepare.workers import Map
from reprise.params.schema import PrepareParams, Resize
from reprise.runtime.checksums import naming

Shape = tuple[int, int, int]  # height, width, channels
Rows = dict[Split, list[int]]  # of each split, by their position in the archive
BATCH_IMAGES, BATCH_BYTES = 128, 8 << 20  # of a worker's task, at most


class Batch(NamedTuple):
    """A worker's task: images, by their rows in the archive, and the offset in bytes of theirs in a split's file."""

    rows: list[int]
    extents: list[Extent]
    file: Path
    offset: int


def all_gray(archive: RawArchive, map_tasks: Map) -> bool:
    """Return whether no readable image has color, by the headers; unreadable ones are listed when they are decoded."""
    extents = list(archive.members.values())
    tasks = [(archive.path, extents[start : start + BATCH_IMAGES]) for start in range(0, len(extents), BATCH_IMAGES)]
    return all(map_tasks(_gray_batch, tasks))


def _gray_batch(task: tuple[Path, list[Extent]]) -> bool:
    for encoded in read_images(*task):
        with suppress(BadImageError):
            if not is_gray(encoded):
                return False
    return True


def pack(
    archive: RawArchive, rows_of: Rows, shape: Shape, params: PrepareParams, destination: Path, map_tasks: Map
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Write `{split}_images.npy` of every split; return training images' sums, signatures, {row: what is wrong}.

    signatures: SIGNATURE (N,), in the archive's order. What is wrong: with images that could be read, too; the others
    have no width, and a row of zeros, which adds nothing to the sums.
    """
    batches: list[Batch] = []
    for split, rows in rows_of.items():
        batches += _batches(archive, rows, shape, images_file(destination, split))
    wrong: dict[int, str] = {}
    seen = np.zeros(len(archive.members), SIGNATURE)
    sums = np.zeros((2, shape[2]), np.int64)
    done = map_tasks(partial(_decode_batch, archive.path, shape, params.resize, params.bits), batches)
    images = sum(len(batch.rows) for batch in batches)
    with tqdm(total=images, desc="preprocess", unit=" images", disable=None, leave=False) as bar:
        for batch, (batch_sums, batch_seen, batch_wrong) in zip(batches, done, strict=True):
            wrong |= batch_wrong
            seen[batch.rows] = batch_seen
            if batch.file == images_file(destination, "train"):
                sums += batch_sums
            bar.update(len(batch.rows))
    return sums, seen, dict(sorted(wrong.items()))


def images_file(folder: Path, split: Split) -> Path:
    """Return the path of a split's images."""
    return folder / f"{split}_images.npy"


def _batches(archive: RawArchive, rows: list[int], shape: Shape, file: Path) -> Iterator[Batch]:
    """Create one split's array and cut its rows into tasks."""
    extents = list(archive.members.values())
    offset = _create_array(file, (len(rows), *shape))
    largest = max(math.prod(shape), max(extents[row].size for row in rows))
    length = max(1, min(BATCH_IMAGES, BATCH_BYTES // largest))
    for start in range(0, len(rows), length):
        part = rows[start : start + length]
        yield Batch(part, [extents[row] for row in part], file, offset + start * math.prod(shape))


def _create_array(path: Path, shape: tuple[int, ...]) -> int:
    """Create a uint8 array on disk, to be filled; return the offset of its data. Raises OSError if there is no room."""
    header = _header(shape)
    with naming(path), path.open("wb") as file:
        file.write(header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), len(header), math.prod(shape))  # no room: known now, not after an hour
    return len(header)


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the beginning of a .npy file; numpy pads it, so that the first dimension does not change its length."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _decode_batch(
    archive: Path, shape: Shape, resize: Resize, depth: int, batch: Batch
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Write one batch into its place; return its `channel_sums`, its `signatures`, and what is wrong, see `pack`."""
    images = np.zeros((len(batch.rows), *shape), np.uint8)
    sizes = np.zeros((len(batch.rows), 3), np.int64)
    wrong = {}
    for position, encoded in enumerate(read_images(archive, batch.extents)):
        try:
            decoded = decode(encoded, shape[0], shape[2], resize, depth)
            images[position], sizes[position] = decoded.pixels, (*decoded.size, decoded.peak)
            if decoded.complaint:
                wrong[batch.rows[position]] = decoded.complaint
        except BadImageError as error:
            wrong[batch.rows[position]] = str(error)
    with naming(batch.file), batch.file.open("r+b") as file:
        file.seek(batch.offset)
        file.write(images.data)
    return channel_sums(images), signatures(images, sizes), wrong


def take_out(
    destination: Path, rows_of: Rows, shape: Shape, dropped: Collection[int], sums: np.ndarray
) -> tuple[Rows, np.ndarray]:
    """Remove rows of the archive from the packed arrays; return the remaining rows and training images' sums."""
    for split, rows in rows_of.items():
        keep = np.array([row not in dropped for row in rows])
        if not keep.all():
            removed = _compact(images_file(destination, split), shape, keep)
            sums = sums - removed if split == "train" else sums
    return {split: [row for row in rows if row not in dropped] for split, rows in rows_of.items()}, sums


def _compact(path: Path, shape: Shape, keep: np.ndarray) -> np.ndarray:
    """Keep these rows, bool (N,), of a packed array, in place, batch by batch; return the others' `channel_sums`."""
    removed = np.zeros((2, shape[2]), np.int64)
    row_bytes, header = math.prod(shape), _header((int(keep.sum()), *shape))
    length = max(1, BATCH_BYTES // row_bytes)
    with naming(path), path.open("r+b") as file:
        file.write(header)
        end = len(header)
        for start in range(0, len(keep), length):
            kept = keep[start : start + length]
            file.seek(len(header) + start * row_bytes)
            images = np.frombuffer(file.read(len(kept) * row_bytes), np.uint8).reshape(-1, *shape)
            removed += channel_sums(images[~kept])
            file.seek(end)
            end += file.write(images[kept].tobytes())
        file.truncate(end)
    return removed


def channel_sums(images: np.ndarray) -> np.ndarray:
    """Return the sums of values and of their squares, int64 (2, C), of uint8 images (N, H, W, C)."""
    values = np.arange(256)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in images.reshape(-1, images.shape[-1]).T])
    return np.stack([counts @ values, counts @ values**2])


def channel_statistics(sums: np.ndarray, pixels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, in 0..1, from `channel_sums` over so many pixels.

    A constant channel has standard deviation 1.
    """
    variances = [(pixels * squares - total**2) / pixels**2 for total, squares in sums.T.tolist()]
    return [total / pixels / 255 for total in sums[0].tolist()], [math.sqrt(each) / 255 or 1.0 for each in variances]
