"""Where raw images come from: a data set bundled with scikit-learn, torchvision's data sets, the user's own folder.

A source is a function that yields `RawImage`s; `download` picks it by name and writes the archive. Array data sets are
stored as PGM/PPM: a header and the pixels, the same bytes with every version of every library.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprise.data.archive import GIVEN_SPLITS, UNSPLIT, RawImage, Source, write_archive
from reprise.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm"}
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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


def download(name: str, destination: Path, own: Path, downloads: Path, mirror: str | None = None) -> Source:
    """Bring one data set in, as a raw archive in the new folder `destination`.

    `own` is the user's image folder (for `folder`); `downloads` keeps what torchvision fetched, so that an interrupted
    or repeated download does not fetch it again; `mirror` replaces the address. Raises UserError without a network,
    with an altered file, or with nothing usable in `own`.
    """
    if name == "digits":
        return write_archive(destination, name, [str(digit) for digit in range(10)], _digits())
    if name == "folder":
        classes, files = _list_folder(own)
        return write_archive(destination, name, classes, _read_files(files))
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
    except (OSError, RuntimeError) as error:
        where = mirror or "the data set's own address"
        raise UserError(
            f"data.name = {name}: could not download from {where} ({_first_line(error)}); check the network, set "
            "data.mirror to a copy, or put images into data/own/CLASS/ and set data.name: folder"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _from_arrays(split: str, data_set: Any, classes: list[str]) -> Iterator[RawImage]:
    for index, (pixels, label) in enumerate(zip(np.asarray(data_set.data), data_set.targets, strict=True)):
        encoded = encode_array(pixels)
        suffix = "pgm" if pixels.ndim == 2 else "ppm"
        yield RawImage(split, classes[int(label)], f"{index:05d}.{suffix}", encoded)


def _list_folder(own: Path) -> tuple[list[str], list[tuple[str, str, str, Path]]]:
    """Return the classes and (split, class, file name, path) of the images in `own/[SPLIT/]CLASS/`, sorted by name."""
    layout = (
        f"expected {own}/CLASS/IMAGE or {own}/train|val|test/CLASS/IMAGE "
        "(a queued or --temp experiment sees the folder once it is handed to DVC, see README)"
    )
    if not own.is_dir():
        raise UserError(f"data.name = folder, but there is no folder {own}; {layout}")
    paths = sorted(
        Path(folder, name).relative_to(own)
        for folder, _, names in os.walk(own, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )
    paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not paths:
        raise UserError(
            f"data.name = folder, but {own} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); {layout}"
        )
    has_splits = {path.parts[0] for path in paths} <= set(SPLIT_FOLDERS)
    files = []
    for path in paths:
        split = SPLIT_FOLDERS[path.parts[0]] if has_splits else UNSPLIT
        class_name, *rest = path.parts[1:] if has_splits else path.parts
        if not rest:
            raise UserError(f"{own / path}: an image outside a class folder; {layout}")
        files.append((split, class_name, "/".join(rest), own / path))
    if has_splits and not {"train"} <= {split for split, *_ in files} <= set(GIVEN_SPLITS):
        raise UserError(f"{own} has split folders but no train folder; {layout}")
    return sorted({class_name for _, class_name, _, _ in files}), files


def _read_files(files: list[tuple[str, str, str, Path]]) -> Iterator[RawImage]:
    for split, class_name, file_name, path in files:
        yield RawImage(split, class_name, file_name, path.read_bytes())
