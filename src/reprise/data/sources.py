"""Where raw images come from: a data set bundled with scikit-learn, torchvision's data sets, the user's own folder
or archive.

A source is a function that yields `RawImage`s; `download` picks it by name and writes the archive. Array data sets are
stored as PGM/PPM: a header and the pixels, the same bytes with every version of every library.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from reprise.checksums import file_sha256
from reprise.data.archive import UNSPLIT, RawImage, Source, shown, write_archive
from reprise.data.containers import archive_files, folder_files
from reprise.data.fetch import fetch
from reprise.data.layouts import Placed, lay_out
from reprise.data.unpack import DamagedArchiveError, Files
from reprise.errors import UserError


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision.datasets with `train=`; `address` is the class attribute that says where from."""

    class_name: str
    address: str


TORCHVISION_SETS = {
    "mnist": TorchvisionSet("MNIST", "mirrors"),
    "fashion_mnist": TorchvisionSet("FashionMNIST", "mirrors"),
    "cifar10": TorchvisionSet("CIFAR10", "url"),
}


def download(
    name: str,
    destination: Path,
    own: Path,
    downloads: Path,
    mirror: str | None = None,
    url: str | None = None,
    sha256: str | None = None,
) -> Source:
    """Bring one data set in, as a raw archive in the new folder `destination`.

    `own` is the user's image folder (for `folder`) or archive (for `archive`, unless there is a `url`; with `sha256`,
    only the one of that checksum); `downloads` keeps what was fetched, so that an interrupted or repeated download does
    not fetch it again; `mirror` replaces the address. Raises UserError without a network, with an altered file, or with
    nothing usable in `own`.
    """
    if name == "digits":
        return write_archive(destination, name, [str(digit) for digit in range(10)], _digits())
    if name == "folder":
        return _own_images(name, folder_files(own), destination)
    if name == "archive":
        return _own_archive(name, own, destination, downloads, url, sha256)
    data_set = TORCHVISION_SETS[name]
    downloads.mkdir(parents=True, exist_ok=True)
    splits = {split: _torchvision(name, data_set, split, downloads, mirror) for split in ("train", "test")}
    classes = [str(label).replace("/", "-") for label in splits["train"].classes]
    images = (image for split, images in splits.items() for image in _from_arrays(split, images, classes))
    return write_archive(destination, name, classes, images)


def encode_array(pixels: np.ndarray) -> bytes:
    """Encode a uint8 array, (height, width) or (height, width, 3), as PGM or PPM."""
    height, width = pixels.shape[:2]
    kind = b"P5" if pixels.ndim == 2 else b"P6"
    return b"%s %d %d 255\n" % (kind, width, height) + np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()


def _digits() -> Iterator[RawImage]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (pixels, label) in enumerate(zip(images, digits.target, strict=True)):
        yield RawImage(UNSPLIT, str(label), f"{index:04d}.pgm", encode_array(pixels))


def _torchvision(name: str, data_set: TorchvisionSet, split: str, root: Path, mirror: str | None) -> Any:
    import reprise.torchvision_repair  # noqa: F401  before torchvision

    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, data_set.class_name)
    if mirror is not None:
        base = mirror.rstrip("/") + "/"
        address = [base] if data_set.address == "mirrors" else base + kind.filename
        kind = type(kind.__name__, (kind,), {data_set.address: address})  # the name is also its folder's
    try:
        return kind(root=str(root), train=split == "train", download=True)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        where = mirror or "the data set's own address"
        raise UserError(
            f"data.name = {name}: could not download from {where} ({reason}); check the network, set data.mirror to "
            "the http:// or https:// address of a copy, or put images into data/own/CLASS/ and set data.name: folder; "
            f"if an earlier download is damaged, remove {root}"
        ) from None


def _from_arrays(split: str, data_set: Any, classes: list[str]) -> Iterator[RawImage]:
    for index, (pixels, label) in enumerate(zip(np.asarray(data_set.data), data_set.targets, strict=True)):
        encoded = encode_array(pixels)
        suffix = "pgm" if pixels.ndim == 2 else "ppm"
        yield RawImage(split, classes[int(label)], f"{index:05d}.{suffix}", encoded)


def _own_images(name: str, files: Files, destination: Path, origin: dict[str, str] | None = None) -> Source:
    layout = lay_out(files.names, files.read, files.where)
    if layout.left_out:
        print(f"download: the CSV of {files.where} leaves {layout.left_out:,} images out", file=sys.stderr)
    return write_archive(destination, name, layout.classes, _read_files(files, layout.images), origin)


def _read_files(files: Files, images: list[Placed]) -> Iterator[RawImage]:
    unreadable = []
    for image in tqdm(images, "read", unit=" images", unit_scale=True, leave=False, disable=not sys.stderr.isatty()):
        try:
            encoded = files.read(image.name)
        except OSError as error:
            unreadable.append(f"{shown(f'{files.where}/{image.name}')}: {error.strerror}")
            continue
        yield RawImage(image.split, image.class_name, image.file_name, encoded, image.columns)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise UserError(f"{len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")


def _own_archive(
    name: str, path: Path, destination: Path, downloads: Path, url: str | None, sha256: str | None
) -> Source:
    if url is None:
        with archive_files(path, str(path), destination.parent) as files:
            if sha256 is not None and (seen := file_sha256(path)) != sha256.lower():
                raise UserError(f"{path}: its SHA-256 is {seen}, not {sha256}; correct data.sha256, or fetch it again")
            return _own_images(name, files, destination)
    fetched = fetch(url, sha256, downloads)
    try:
        with archive_files(fetched.path, url, destination.parent) as files:
            return _own_images(name, files, destination, {"url": url, "sha256": fetched.sha256})
    except DamagedArchiveError:
        fetched.path.unlink(missing_ok=True)  # the next try fetches it anew
        raise
