"""Sources of raw images: scikit-learn's digits, torchvision's data sets, the user's own folder or archive.

`download` writes the images of a source, chosen by name, into one raw archive. Array data sets are stored as PGM/PPM: a
header and the pixels, the same bytes with every version of every library.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reprise.data.download.archives import DamagedArchiveError, Files, archive_files
from reprise.data.download.fetch import fetch
from reprise.data.download.layouts import Placed, expected, is_hidden, lay_out
from reprise.data.download.torchvision_sets import TORCHVISION_SETS, download_torchvision, variant_arguments
from reprise.data.formats.raw import UNSPLIT, RawImage, Source, encode_array, shown, write_archive
from reprise.params.schema import SourceParams
from reprise.runtime.checksums import file_sha256
from reprise.runtime.errors import UserError, say


def download(source: SourceParams, destination: Path, downloads: Path, root: Path = Path()) -> Source:
    """Bring one data set in, as a raw archive in the new folder `destination`.

    `downloads` keeps what was fetched, so that an interrupted or repeated download does not fetch it again. root: what
    `source.path` is relative to. Raises UserError without a network, with an altered file, or with nothing usable.
    """
    check_source(source)
    if source.name in TORCHVISION_SETS:
        return download_torchvision(source.name, destination, downloads, source.mirror, source.split)
    if source.name == "digits":
        return write_archive(destination, source.name, [str(digit) for digit in range(10)], _digits())
    if source.name == "folder":
        return _own_images("folder", folder_files(root / source.path), destination)
    return _own_archive(source, root / source.path, destination, downloads)


def check_source(source: SourceParams) -> None:
    """Raise UserError for a variant or a mirror that the data set does not have."""
    if source.name in TORCHVISION_SETS:
        variant_arguments(source.name, source.mirror, source.split)
        return
    for key, given in {"split": source.split, "mirror": source.mirror}.items():
        if given is not None:
            raise UserError(f"data.{key} = {given}: {source.name} has none to choose from; set data.{key}: null")


def _digits() -> Iterator[RawImage]:
    """Read the file that scikit-learn ships, 64 pixels of 0 to 16 and a label a row: importing it takes a second."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    table = np.loadtxt(Path(package.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for index, (pixels, label) in enumerate(zip(images, table[:, 64].astype(int), strict=True)):
        yield RawImage(UNSPLIT, str(label), f"{index:04d}.pgm", encode_array(pixels))


def folder_files(folder: Path) -> Files:
    """List a folder, hidden files left out. Raises UserError if there is none, and for what DVC would not follow."""
    if not folder.is_dir():
        there = "is a file, for which data.name is archive" if folder.exists() else "does not exist"
        raise UserError(f"data.name = folder, but there is no folder {folder} (it {there}); {expected(str(folder))}")
    names: list[str] = []
    unlisted: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unlisted.append):
        for path in (Path(parent, name) for name in folders):
            if path.is_symlink():
                raise UserError(
                    f"{shown(str(path))} is a symbolic link, behind which DVC does not look; copy the folder, or make "
                    f"{folder} itself the link"
                )
        folders[:] = [name for name in folders if not is_hidden(name)]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if not is_hidden(name)]
    if unlisted:
        raise unlisted[0]
    if not names:
        raise UserError(
            f"data.name = folder, but {folder} holds no images; {expected(str(folder))} "
            "(a queued or --temp experiment sees the folder once it is handed to DVC, see README)"
        )

    def read(name: str, most: int) -> bytes:
        path = folder / name
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise OSError(0, "not a file", str(path))
        with path.open("rb") as file:
            return file.read(most)

    return Files(str(folder), names, read)


def _own_archive(source: SourceParams, path: Path, destination: Path, downloads: Path) -> Source:
    url, sha256, origin = source.url, source.sha256, None
    if url is not None:
        path, seen = fetch(url, sha256, downloads)
        origin = {"url": url, "sha256": seen}
    try:
        with archive_files(path, url or str(path), destination.parent) as files:
            if url is None and sha256 is not None and (seen := file_sha256(path)) != sha256.lower():
                raise UserError(f"{path}: its SHA-256 is {seen}, not {sha256}; correct data.sha256, or fetch it again")
            return _own_images("archive", files, destination, origin)
    except DamagedArchiveError:
        if url is not None:
            path.unlink(missing_ok=True)  # the next try fetches it anew
        raise


def _own_images(name: str, files: Files, destination: Path, origin: dict[str, str] | None = None) -> Source:
    images, notes = lay_out(files.names, files.read, files.tree)
    for note in notes:
        say(f"download: {note}", file=sys.stderr)
    classes = sorted({image.class_name for image in images})
    return write_archive(destination, name, classes, _read_files(files, images), origin)


def _read_files(files: Files, images: list[Placed]) -> Iterator[RawImage]:
    unreadable = []
    for image in tqdm(images, "read", unit=" images", unit_scale=True, leave=False, disable=None):
        try:
            encoded = files.read(image.name, -1)
        except OSError as error:
            unreadable.append(f"{shown(f'{files.tree}/{image.name}')}: {error.strerror}")
            continue
        yield RawImage(image.split, image.class_name, image.file_name, encoded, image.columns)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise UserError(f"{len(unreadable)} images cannot be read; replace or remove them:\n  {listed}")
