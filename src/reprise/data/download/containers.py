"""Trees of files that images are read from: a folder, or an archive, told apart by its first bytes."""

import gzip
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reprise.data.download.archives import DamagedArchiveError, Files, tar_files, zip_files
from reprise.data.download.layouts import expected, is_hidden
from reprise.data.formats.raw import shown
from reprise.runtime.checksums import naming
from reprise.runtime.errors import UserError


def folder_files(folder: Path) -> Files:
    """List a folder, hidden files left out. Raises UserError if there is none, and for what DVC would not follow."""
    if not folder.is_dir():
        there = "is a file, for which data.name is archive" if folder.exists() else "does not exist"
        raise UserError(f"data.name = folder, but there is no folder {folder} (it {there}); {expected(str(folder))}")
    names = []
    for parent, folders, files in os.walk(folder):
        for name in folders:
            if Path(parent, name).is_symlink():
                raise UserError(
                    f"{shown(str(Path(parent, name)))} is a symbolic link, behind which DVC does not look; copy the "
                    f"folder, or make {folder} itself the link"
                )
        folders[:] = [name for name in folders if not is_hidden(name)]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in files if not is_hidden(name)]
    if not names:
        raise UserError(
            f"data.name = folder, but {folder} holds no images; {expected(str(folder))} "
            "(a queued or --temp experiment sees the folder once it is handed to DVC, see README)"
        )
    return Files(str(folder), names, lambda name: (folder / name).read_bytes())


@contextmanager
def archive_files(path: Path, where: str, scratch: Path) -> Iterator[Files]:
    """Open a .zip, .tar or .tar.gz, known by its first bytes.

    A .tar.gz, which can only be read from front to back, is gone through once; its images wait in one nameless file in
    the folder `scratch`. Raises UserError for a member that is unsafe or cannot be used, DamagedArchiveError otherwise.
    """
    if not path.is_file():
        there = "is a folder, for which data.name is folder" if path.is_dir() else "does not exist"
        raise UserError(f"data.name = archive, but there is no archive {path} (it {there}); set data.path or data.url")
    with naming(path), path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            yield zip_files(file, where)
        elif head.startswith(b"\x1f\x8b"):
            with tempfile.TemporaryFile(dir=scratch) as spool, gzip.GzipFile(fileobj=file) as stream:
                yield tar_files(stream, where, spool)
        elif head[257:262] == b"ustar" or path.suffix.lower() == ".tar":
            yield tar_files(file, where, None)
        else:
            raise DamagedArchiveError(
                f"{where}: {unlike_an_archive(head)}; data.name = archive needs .zip, .tar or .tar.gz"
            )


def unlike_an_archive(head: bytes) -> str:
    """Say what a file that begins like this is instead."""
    if looks_like_html(head):
        return "an HTML page, not an archive (an error, or a page to log in on?)"
    return f"no archive (it begins with {head[:8]!r})" if head else "an empty file"


def looks_like_html(head: bytes) -> bool:
    """Say whether a file that begins like this is a page; no archive begins with `<`."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")
