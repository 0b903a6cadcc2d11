"""Checksums of files, and sealed JSON: what is read is what was written, or the altered file is named.

A sealed document is a JSON object whose last entry, `checksum`, is the SHA-256 of the rest; it holds the checksums of
the files beside it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from reprise.runtime.errors import UserError


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; read, not mapped, so that a failing disk is an OSError."""
    return _digest(path, "sha256")


def verify_file(path: Path, sha256: str) -> None:
    """Raise ValueError, with the file's name, if it is not the one with this checksum."""
    if file_sha256(path) != sha256:
        raise ValueError(f"{path}: altered since it was written")


def md5_listing(path: Path) -> dict[str, str]:
    """Return {relative path: MD5} of a folder's files, {"": MD5} of a file, {} where there is nothing.

    Hidden files and `__pycache__`, which .dvcignore excludes, are left out. Several files are hashed at a time.
    """
    if path.is_file():
        return {"": _md5(path)}
    files = []
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    with ThreadPoolExecutor() as threads:
        return {
            file.relative_to(path).as_posix(): md5 for file, md5 in zip(files, threads.map(_md5, files), strict=True)
        }


def listing_md5(listing: Mapping[str, str]) -> str:
    """Return DVC's name for what `md5_listing` describes: a file's MD5, or the MD5 of a folder's listing and `.dir`."""
    if "" in listing:
        return listing[""]
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with suppress(FileNotFoundError):  # removed meanwhile, or a link to nothing
        return _digest(path, "md5")
    return "missing"


def _digest(path: Path, algorithm: str) -> str:
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed document."""
    with naming(path):
        path.write_text(_seal(content), encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote. Raises ValueError, with the file's name, if a bit of it differs."""
    with naming(path):
        encoded = path.read_bytes()
    with suppress(ValueError, KeyError, TypeError):
        content: dict[str, Any] = json.loads(encoded)
        del content["checksum"]
        if encoded == _seal(content).encode():
            return content
    raise ValueError(f"{path}: altered since it was written, or written by another version")


def _seal(content: dict[str, Any]) -> str:
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=2) + "\n"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError the file's name, which those of reading and writing lack."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def reading(what: str, stage: str) -> Iterator[None]:
    """Turn a missing, unreadable or altered file into a UserError that names it and the stage that makes it again."""
    anew = f"`dvc repro --force {stage}` makes it anew (under runs/data: remove its folder)"
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no {what} there; run `dvc repro {stage}`") from None
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); {anew}") from None
    except ValueError as error:
        raise UserError(f"{error}; {anew}") from None
