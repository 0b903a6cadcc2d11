"""Atomic, exclusive writes: outputs appear whole or not at all, and one process at a time writes them.

They are written under a private name beside the target, synced, then renamed into place. A process that dies half-way
leaves the old output (or none) under the final name, never a part of the new one. An exclusive `flock`, which the
kernel releases however its holder dies, keeps a second process waiting until the first is through.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from reprise.runtime.errors import UserError
from reprise.runtime.signals import StopSignals


@contextmanager
def publishing(*targets: Path, check: Callable[[], None] = lambda: None) -> Iterator[list[Path]]:
    """Yield one private path per target; when the block ends without an error, they become the targets.

    The block creates each private path as a file or as a folder. On an error all of them are removed and the targets
    stay as they were. A folder replaces a folder whole. Everything that decides the content belongs inside the block:
    it starts once no other process is writing the same targets. check: called just before the renames; it raises if
    nothing may be published. Raises UserError where a file or a link would replace a folder.
    """
    partials = [target.with_name(f".{target.name}.partial") for target in targets]
    replaced = [target.with_name(f".{target.name}.replaced.partial") for target in targets]
    with ExitStack() as locks:
        for target in sorted(targets):
            target.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(Lock(target))
        for leftover in partials + replaced:  # of a killed process: whoever held the lock is gone
            remove(leftover)
        try:
            yield partials
            _sync(path for partial in partials for path in [*partial.rglob("*"), partial])
            check()
            with StopSignals(deferred=True):  # all of them, or none
                _swap(targets, partials, replaced)
        except BaseException as error:
            for partial in partials:
                remove(partial)
            if isinstance(error, OSError) and error.filename is None:  # those of writing do not say where
                error.filename = str(targets[0].parent)
            raise


def _swap(targets: Sequence[Path], partials: Sequence[Path], replaced: Sequence[Path]) -> None:
    """Rename the partials to the targets; on an error the folders that made way come back."""
    for partial, target in zip(partials, targets, strict=True):
        if _is_folder(target) and not _is_folder(partial):
            raise UserError(f"{target}: a folder, where a file is to be; move it away")
    try:
        for partial, target, old in zip(partials, targets, replaced, strict=True):
            if _is_folder(target) or (_is_folder(partial) and os.path.lexists(target)):
                target.rename(old)
            partial.replace(target)
    except BaseException:
        for target, old in zip(targets, replaced, strict=True):
            if os.path.lexists(old) and not os.path.lexists(target):
                old.rename(target)
        raise
    for old in replaced:
        remove(old)
    _sync({target.parent for target in targets})


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


class Lock:
    """Exclusive `flock` on `.NAME.lock` beside a target: held from `acquire` to `release`, or to the process's end.

    Prints on stderr which process it waits for. Raises UserError on a file system without such locks.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.lock")
        self.lock = FileLock(self.path, thread_local=False, fallback_to_soft=False, poll_interval=0.02)

    def acquire(self, wait: bool = True) -> bool:
        """Take the lock; return False, without it, if another process has it and `wait` is false."""
        try:
            try:
                self.lock.acquire(blocking=False)
            except Timeout:
                if not wait:
                    return False
                with suppress(FileNotFoundError):  # released this very moment
                    holder = self.path.read_text() or "another"
                    print(f"waiting for process {holder.strip()}, which is at work on {self.target}", file=sys.stderr)
                self.lock.acquire()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be locked ({error.strerror}); use a file system with locks") from None
        with suppress(OSError):  # on a full disk it has no name
            self.path.write_text(f"{os.getpid()}\n")
        return True

    def release(self) -> None:
        """Release the lock. Its file is removed before that: who waits for it notices and makes a new one."""
        self.path.unlink(missing_ok=True)
        self.lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, if it is there."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
