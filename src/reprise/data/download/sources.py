"""Where raw images come from: a data set bundled with scikit-learn, torchvision's data sets, the user's own folder
or archive.

A source is a function that yields `RawImage`s; `download` picks it by name and writes the archive. Array data sets are
stored as PGM/PPM: a header and the pixels, the same bytes with every version of every library.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reprise.data.download.archives import DamagedArchiveError, Files
from reprise.data.download.containers import archive_files, folder_files
from reprise.data.download.fetch import fetch
from reprise.data.download.layouts import Placed, lay_out
from reprise.data.download.torchvision_sets import TORCHVISION_SETS, download_torchvision
from reprise.data.formats.raw import UNSPLIT, RawImage, Source, encode_array, shown, write_archive
from reprise.params.schema import SourceParams
from reprise.runtime.checksums import file_sha256
from reprise.runtime.errors import UserError


def download(source: SourceParams, destination: Path, downloads: Path, root: Path = Path()) -> Source:
    """Bring one data set in, as a raw archive in the new folder `destination`.

    `downloads` keeps what was fetched, so that an interrupted or repeated download does not fetch it again. root: what
    `source.path` is relative to. Raises UserError without a network, with an altered file, or with nothing usable.
    """
    if source.name in TORCHVISION_SETS:
        return download_torchvision(source.name, destination, downloads, source.mirror, source.split)
    for key, given in {"split": source.split, "mirror": source.mirror}.items():
        if given is not None:
            raise UserError(f"data.{key} = {given}: {source.name} has none to choose from; set data.{key}: null")
    if source.name == "digits":
        return write_archive(destination, source.name, [str(digit) for digit in range(10)], _digits())
    if source.name == "folder":
        return _own_images("folder", folder_files(root / source.path), destination)
    return _own_archive(source, root / source.path, destination, downloads)


def _digits() -> Iterator[RawImage]:
    """Read the file that scikit-learn ships, 64 pixels of 0 to 16 and a label a row: importing it takes a second."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    table = np.loadtxt(Path(package.submodule_search_locations[0], "datasets/data/digits.csv.gz"), delimiter=",")
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for index, (pixels, label) in enumerate(zip(images, table[:, 64].astype(int), strict=True)):
        yield RawImage(UNSPLIT, str(label), f"{index:04d}.pgm", encode_array(pixels))


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


def _own_archive(source: SourceParams, path: Path, destination: Path, downloads: Path) -> Source:
    url, sha256 = source.url, source.sha256
    if url is None:
        with archive_files(path, str(path), destination.parent) as files:
            if sha256 is not None and (seen := file_sha256(path)) != sha256.lower():
                raise UserError(f"{path}: its SHA-256 is {seen}, not {sha256}; correct data.sha256, or fetch it again")
            return _own_images("archive", files, destination)
    fetched = fetch(url, sha256, downloads)
    try:
        with archive_files(fetched.path, url, destination.parent) as files:
            return _own_images("archive", files, destination, {"url": url, "sha256": fetched.sha256})
    except DamagedArchiveError:
        fetched.path.unlink(missing_ok=True)  # the next try fetches it anew
        raise
