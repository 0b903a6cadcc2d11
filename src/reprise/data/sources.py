"""Where raw images come from: a data set bundled with scikit-learn, torchvision's data sets, the user's own folder.

A source is a function that yields `RawImage`s; `download` picks it by name and writes the archive. Array data sets are
stored as PGM/PPM: a header and the pixels, the same bytes with every version of every library.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reprise.data.archive import UNSPLIT, RawImage, Source, encode_array, shown, write_archive
from reprise.data.torchvision_sets import TORCHVISION_SETS, download_torchvision
from reprise.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".jfif", ".avif"}
OTHER_IMAGES = {".heic", ".heif", ".svg", ".jxl", ".raw", ".cr2", ".nef", ".arw", ".dng", ".psd"}
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def download(
    name: str, destination: Path, own: Path, downloads: Path, mirror: str | None = None, variant: str | None = None
) -> Source:
    """Bring one data set in, as a raw archive in the new folder `destination`.

    `own` is the user's image folder (for `folder`); `downloads` keeps what torchvision fetched, so that an interrupted
    or repeated download does not fetch it again; `mirror` replaces the address; `variant` is one of torchvision's.
    Raises UserError without a network, with an altered file, or with nothing usable in `own`.
    """
    if name in TORCHVISION_SETS:
        return download_torchvision(name, destination, downloads, mirror, variant)
    if variant is not None:
        raise UserError(f"data.split = {variant}: {name} has no variants; set data.split: null")
    if name == "digits":
        return write_archive(destination, name, [str(digit) for digit in range(10)], _digits())
    if name == "folder":
        classes, files = _list_folder(own)
        return write_archive(destination, name, classes, _read_files(files))
    raise UserError(f"data.name = {name}: there is no such data set")


def _digits() -> Iterator[RawImage]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for index, (pixels, label) in enumerate(zip(images, digits.target, strict=True)):
        yield RawImage(UNSPLIT, str(label), f"{index:04d}.pgm", encode_array(pixels))


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
