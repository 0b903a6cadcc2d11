"""Zip and tar archives, read in place and never unpacked as loose files.

What an archive says of itself is not trusted: names that lead outside, links, devices and giants are refused, and its
end has to be there.
"""

import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Self

from reprise.data.download.layouts import is_hidden, is_suffix
from reprise.data.formats.images import IMAGE_SUFFIXES, kind_of
from reprise.data.formats.raw import shown
from reprise.runtime.checksums import naming
from reprise.runtime.errors import OF_THE_DISK, UserError, reason

MOST_BYTES, MOST_CSV_BYTES = 256 << 20, 64 << 20  # of one member
MOST_RATIO, FREE_BYTES = 200, 16 << 20  # of unpacked to packed bytes, as images hardly shrink; from these bytes on
MOST_HEADER_BYTES = 1 << 20  # of a tar member's long name or attributes
# what damaged archives raise; NotImplementedError: compressed by a method that Python does not know; RecursionError: a
# member has thousands of headers
OF_DAMAGE: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, OSError, zlib.error)
OF_DAMAGE += (lzma.LZMAError, EOFError, struct.error, NotImplementedError, ValueError, OverflowError, RecursionError)


class DamagedArchiveError(UserError):
    """An archive that is cut short, altered, or none at all."""


class Files(NamedTuple):
    """A tree of files: its name in errors, the files' relative names, a function that reads the start of one of them.

    read: takes a name and the most bytes to return, -1 for all.
    """

    tree: str
    names: list[str]
    read: Callable[[str, int], bytes]


@contextmanager
def archive_files(path: Path, tree: str, scratch: Path) -> Iterator[Files]:
    """Open a .zip, .tar or .tar.gz, told apart by its first bytes.

    A .tar.gz waits unzipped in a nameless file in the folder `scratch`. Raises UserError for a member that is unsafe or
    cannot be used, and for an archive that unpacks to too much, DamagedArchiveError otherwise.
    """
    if not path.is_file():
        there = "is a folder, for which data.name is folder" if path.is_dir() else "does not exist"
        raise UserError(f"data.name = archive, but there is no archive {path} (it {there}); set data.path or data.url")
    with naming(path), path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            yield _zip_files(file, tree)
        elif head.startswith(b"\x1f\x8b"):
            with tempfile.TemporaryFile(dir=scratch) as tar:
                with _undamaged(tree), gzip.GzipFile(fileobj=file) as stream:
                    while chunk := stream.read(1 << 20):
                        tar.write(chunk)
                        _check_total(tar.tell(), file, tree)
                tar.seek(0)
                yield _tar_files(tar, tree)
        elif head[257:262] == b"ustar" or path.suffix.lower() == ".tar":
            yield _tar_files(file, tree)
        else:
            raise DamagedArchiveError(f"{tree}: {_unlike_an_archive(head)}; a .zip, .tar or .tar.gz is needed")


def _unlike_an_archive(head: bytes) -> str:
    """Describe what a file that begins with these bytes is instead of an archive."""
    if kind_of(head) == "HTML":
        return "an HTML page, not an archive (an error, or a page to log in on?)"
    return f"no archive (it begins with {head[:8]!r})" if head else "an empty file"


def _zip_files(file: BinaryIO, tree: str) -> Files:
    """List a zip file's members, to be read one by one. Raises UserError for an unsafe one, DamagedArchiveError."""
    with _undamaged(tree):
        archive = zipfile.ZipFile(file)
    infos: dict[str, zipfile.ZipInfo] = {}
    names = []
    for info in archive.infolist():
        name = _safe_name(_zip_name(info), tree)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{tree}: {shown(name)} is a link; pack the file itself")
        if not info.is_dir() and not is_hidden(name):
            names.append(name)
            _check_member(name, infos, info.file_size, tree)
            infos[name] = info
    _check_total(sum(info.file_size for info in infos.values()), file, tree)

    def read(name: str, most: int) -> bytes:
        if infos[name].flag_bits & 1:
            raise UserError(f"{tree}: {shown(name)} is encrypted; pack it again without a password")
        with _undamaged(tree, name), archive.open(infos[name]) as member:
            content = member.read(most)  # at most as long as declared, and of the declared CRC
            if most < 0 and len(content) != infos[name].file_size:
                raise EOFError("shorter than declared")
        return content

    return Files(tree, names, read)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; without the UTF-8 flag it is cp437 by the standard, but UTF-8 by many programs."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if info.create_system in (0, 10, 11) else name  # some of DOS and Windows


class _Header(tarfile.TarInfo):
    """A tar header; one that is damaged or missing is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None
        if header.size < 0 or (header.type in b"xgXLK" and header.size > MOST_HEADER_BYTES):
            raise tarfile.ReadError("absurd size in a header")
        return header


def _tar_files(file: IO[bytes], tree: str) -> Files:
    """Note where a tar's files lie. Raises UserError for an unsafe member, DamagedArchiveError without its end."""
    extents: dict[str, tuple[int, int]] = {}
    names = []
    with _undamaged(tree):
        tar = tarfile.TarFile(fileobj=file, tarinfo=_Header, encoding="utf-8")
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            name = _safe_name(member.name, tree)
            if member.issym() or member.islnk():
                raise UserError(f"{tree}: {shown(name)} is a link; pack the file itself (`tar -h --hard-dereference`)")
            if member.isdir() or is_hidden(name):
                continue
            if not member.isreg():
                raise UserError(f"{tree}: {shown(name)} is neither a file nor a folder; pack only those")
            if member.issparse():
                raise UserError(f"{tree}: {shown(name)} is packed as a sparse file; pack without `--sparse`")
            names.append(name)
            _check_member(name, extents, member.size, tree)
            extents[name] = (member.offset_data, member.size)

    def read(name: str, most: int) -> bytes:
        start, size = extents[name]
        file.seek(start)
        return file.read(size if most < 0 else min(most, size))

    return Files(tree, names, read)


def _safe_name(name: str, tree: str) -> str:
    """Return a member's name without `./`. Raises UserError if it leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:[\\/]", name):
        raise UserError(f"{tree}: the member {shown(name)} leads outside the archive; pack it with relative names")
    return "/".join(parts)


def _check_member(name: str, seen: Mapping[str, object], size: int, tree: str) -> None:
    """Raise UserError for a second member of its name, and a giant, if it is an image or a CSV by its suffix."""
    if not is_suffix(name, IMAGE_SUFFIXES | {".csv"}):
        return
    if name in seen:
        raise UserError(f"{tree}: two members are called {shown(name)}; pack it again with one")
    most = MOST_CSV_BYTES if is_suffix(name, {".csv"}) else MOST_BYTES
    if not 0 <= size <= most:
        raise UserError(f"{tree}: {shown(name)} unpacks to {size:,} bytes, more than {most:,}; remove it")


def _check_total(unpacked: int, file: BinaryIO, tree: str) -> None:
    """Raise UserError where an archive unpacks to more than images do."""
    packed = os.fstat(file.fileno()).st_size
    if unpacked > max(FREE_BYTES, packed * MOST_RATIO):
        raise UserError(
            f"{tree}: its {packed:,} bytes unpack to {unpacked:,} or more: a decompression bomb? If it is none, unpack "
            "it and set data.name: folder"
        )


@contextmanager
def _undamaged(tree: str, name: str = "") -> Iterator[None]:
    try:
        yield
    except OF_DAMAGE as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise  # other numbers, or none, come from impossible places and from bzip2
        tree += f", {shown(name)}" if name else ""
        raise DamagedArchiveError(f"{tree}: cut short or damaged ({reason(error)}); fetch or pack it again") from None
