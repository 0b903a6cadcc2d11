"""Where raw images come from: a data set bundled with scikit-learn, torchvision's data sets, the user's own folder.

A source is a function that yields `RawImage`s; `download` picks it by name and writes the archive. Array data sets are
stored as PGM/PPM: a header and the pixels, the same bytes with every version of every library.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from reprise.data.archive import UNSPLIT, RawImage, Source, shown, write_archive
from reprise.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".jfif", ".avif"}
OTHER_IMAGES = {".heic", ".heif", ".svg", ".jxl", ".raw", ".cr2", ".nef", ".arw", ".dng", ".psd"}
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


def _list_folder(own: Path) -> tuple[list[str], list[tuple[str, str, str, Path]]]:
    """Return the classes and (split, class, file name, path) of the images in `own/[SPLIT/]CLASS/`, sorted by name."""
    layout = (
        f"expected {own}/CLASS/IMAGE or {own}/train|val|test/CLASS/IMAGE "
        "(a queued or --temp experiment sees the folder once it is handed to DVC, see README)"
    )
    if not own.is_dir():
        raise UserError(f"data.name = folder, but there is no folder {own}; {layout}")
    paths = _image_paths(own)
    if not paths:
        raise UserError(
            f"data.name = folder, but {own} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); {layout}"
        )
    top = {path.parts[0] for path in paths}
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in top if name.lower() in SPLIT_FOLDERS}
    deep = any(len(path.parts) > 2 for path in paths if path.parts[0] in splits)
    if deep and set(splits) != top:
        raise UserError(f"{own / min(top - set(splits))} lies beside {own / min(splits)}, a split; {layout}")
    files = []
    for path in paths:
        split = splits[path.parts[0]] if deep else UNSPLIT
        class_name, *rest = path.parts[1:] if deep else path.parts
        if not rest:
            raise UserError(f"{own / path}: an image outside a class folder; {layout}")
        files.append((split, class_name, "/".join(rest), own / path))
    if deep and "train" not in splits.values():
        raise UserError(f"{own} has split folders but no train folder; {layout}")
    return sorted({class_name for _, class_name, _, _ in files}), files


def _image_paths(own: Path) -> list[Path]:
    """Return the images below a folder, sorted, hidden ones left out; refuse what would be lost without a word."""
    paths = []
    for folder, folders, names in os.walk(own):
        for name in folders:
            if Path(folder, name).is_symlink():
                raise UserError(
                    f"{Path(folder, name)} is a symbolic link, behind which DVC does not look; copy the folder, "
                    f"or make {own} itself the link"
                )
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in OTHER_IMAGES:
                raise UserError(f"{path}: {path.suffix} is not read here; convert it, e.g. to JPEG, or remove it")
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                if not _is_text(str(path)):
                    raise UserError(f"{str(path)!a}: the name is not UTF-8; rename it")
                paths.append(path.relative_to(own))
    return sorted(paths)


def _is_text(name: str) -> bool:
    """Say whether a file name is proper text; bytes that are not come from the system as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_files(files: list[tuple[str, str, str, Path]]) -> Iterator[RawImage]:
    unreadable = []
    for split, class_name, file_name, path in files:
        try:
            yield RawImage(split, class_name, file_name, path.read_bytes())
        except OSError as error:
            unreadable.append(f"{shown(str(path))}: {error.strerror}")
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise UserError(f"{len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")
