"""Raw data of any source: one folder with `images.zip` and `source.json`.

Each member of the archive is an encoded image named `SPLIT/CLASS/FILE`, SPLIT being `train`, `val`, `test` or, where
the source has no splits of its own, `unsplit`. Members are stored uncompressed with a fixed date, so equal images give
equal bytes on every machine. DVC handles one large file 8 times faster than 10,000 small ones. Further columns of a CSV
are in `columns.json`, if there are any.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reprise.runtime.checksums import file_sha256, naming, read_sealed, reading, verify_file, write_sealed
from reprise.runtime.errors import UserError

UNSPLIT = "unsplit"
LONGEST_NAME = 4096  # bytes, as on Linux; a zip holds names of up to 65,535


@dataclass(frozen=True)
class RawImage:
    """One encoded image: its split, its class and its file name (unique within split and class).

    columns: its values of a CSV's further columns; all images of a data set have the same columns.
    """

    split: str
    class_name: str
    file_name: str
    encoded: bytes
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def member(self) -> str:
        """Name in the archive."""
        return f"{self.split}/{self.class_name}/{self.file_name}"


@dataclass(frozen=True)
class Source:
    """Content of `images.zip`: the data set's name, its classes in label order, the number of images; its SHA-256.

    columns: the names of those in `columns.json`. origin: `url` and `sha256` of what was downloaded, if anything was.
    """

    name: str
    classes: list[str]
    images: int
    sha256: str
    columns: list[str] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)


class Extent(NamedTuple):
    """Place of one image in the archive: the offset of its header, its size in bytes, its CRC-32."""

    header: int
    size: int
    crc: int


def write_archive(
    folder: Path, name: str, classes: Iterable[str], images: Iterable[RawImage], origin: Mapping[str, str] | None = None
) -> Source:
    """Write `images.zip`, `source.json` and, where the images have columns, `columns.json` into a new folder.

    Class names must be free of slashes, all names of NUL and of what UTF-8 cannot say. Raises UserError for two images
    of one name and for a name of more than LONGEST_NAME bytes or with a carriage return, OSError with the file's name
    where the disk is full.
    """
    folder.mkdir()
    path = folder / "images.zip"
    columns: dict[str, Mapping[str, str]] = {}
    with naming(path), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for image in images:
            if image.member in archive.NameToInfo:
                raise UserError(f"two images are called {shown(image.member)}; rename one")
            if "\r" in image.member:  # which no CSV of predictions would keep
                raise UserError(f"{shown(image.member)}: a carriage return in the name of a class or file; rename it")
            if len(image.member.encode()) > LONGEST_NAME:
                raise UserError(f"{shown(image.member[:80])}...: longer than {LONGEST_NAME:,} bytes; shorten the name")
            member = zipfile.ZipInfo(image.member)  # dated 1980-01-01
            member.external_attr = 0o644 << 16
            member.create_system = 3
            archive.writestr(member, image.encoded)
            if image.columns:
                columns[image.member] = image.columns
    names, count = list(next(iter(columns.values()), {})), len(archive.NameToInfo)
    source = Source(name, list(classes), count, file_sha256(path), names, dict(origin or {}))
    if columns:
        write_sealed(folder / "columns.json", {"images": columns})
    content = {key: value for key, value in asdict(source).items() if value or key not in ("columns", "origin")}
    write_sealed(folder / "source.json", content)
    return source


class RawArchive:
    """A raw folder: its `source`, and its `members` in the order of the archive, each with its extent.

    Raises UserError when the folder is missing, incomplete or altered: the checksum is verified first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "images.zip"
        with reading("raw data", "download"):
            self.source = Source(**read_sealed(folder / "source.json"))
            verify_file(self.path, self.source.sha256)
            with naming(self.path), zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
            self.members = {info.filename: Extent(info.header_offset, info.file_size, info.CRC) for info in infos}

    @cached_property
    def columns(self) -> dict[str, dict[str, str]]:
        """Return {member: {column: value}} of the CSV's further columns; empty if there are none."""
        if not self.source.columns:
            return {}
        with reading("raw data", "download"):
            images: dict[str, dict[str, str]] = read_sealed(self.folder / "columns.json")["images"]
        return images

    def placed(self) -> tuple[list[str], list[str]]:
        """Return split and class name of every member."""
        parts = [member.split("/", 2) for member in self.members]
        return [split for split, _, _ in parts], [class_name for _, class_name, _ in parts]

    def read(self, member: str) -> bytes:
        """Return one image's encoded bytes."""
        return next(read_images(self.path, [self.members[member]]))


def read_images(path: Path, extents: Iterable[Extent]) -> Iterator[bytes]:
    """Yield the encoded images at these places of an `images.zip`, without parsing it again.

    Raises UserError where the archive was altered, OSError with its name where it cannot be read.
    """
    with naming(path), path.open("rb") as file:
        for extent in extents:
            file.seek(extent.header + 26)
            name_and_extra = struct.unpack("<HH", file.read(4).ljust(4))
            file.seek(sum(name_and_extra), os.SEEK_CUR)
            encoded = file.read(extent.size)
            if len(encoded) != extent.size or zlib.crc32(encoded) != extent.crc:
                raise UserError(f"{path}: altered while it was read; `dvc repro --force download` makes it anew")
            yield encoded


def encode_array(pixels: np.ndarray) -> bytes:
    """Encode a uint8 array, (height, width) or (height, width, 3), as PGM or PPM."""
    height, width = pixels.shape[:2]
    kind = b"P5" if pixels.ndim == 2 else b"P6"
    return b"%s %d %d 255\n" % (kind, width, height) + np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()


def image_id(member: str) -> str:
    """Return an image's id in all later stages: its name in the archive, without `unsplit/`."""
    return member.removeprefix(f"{UNSPLIT}/")


def shown(name: str) -> str:
    """Return a name as one line of text: in quotes and escaped, if it holds a line break or the like."""
    return name if name.isprintable() else repr(name)
