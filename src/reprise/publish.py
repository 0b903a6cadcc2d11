"""Outs appear whole or not at all: written under a private name beside the target, synced, then renamed into place.

A process that dies half-way leaves the old out (or none) under the final name, never a part of the new one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publishing(*targets: Path) -> Iterator[list[Path]]:
    """Yield one private path per target; when the block ends without an error, they become the targets.

    The block creates each private path as a file or as a folder. On an error all of them are removed and the targets
    stay as they were. A folder replaces a folder whole: what the old one held beside is gone.
    """
    partials = [target.with_name(f".{target.name}.{os.getpid()}.partial") for target in targets]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        for partial in target.parent.glob(f".{target.name}.*.partial"):
            if not _is_running(partial.name.split(".")[-2]):
                _remove(partial)
    try:
        yield partials
        for partial in partials:
            _sync(partial)
        for partial, target in zip(partials, targets, strict=True):
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            partial.replace(target)
        for folder in {target.parent for target in targets}:
            _sync_one(folder)
    except BaseException:
        for partial in partials:
            _remove(partial)
        raise


def _is_running(pid: str) -> bool:
    """Say whether another process, whose private path this is, still lives."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


def _sync(path: Path) -> None:
    if path.is_dir():
        for entry in path.rglob("*"):
            _sync_one(entry)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
