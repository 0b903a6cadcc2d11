"""Errors that a user can cause end in one clear line and a non-zero exit; bugs keep their traceback."""

import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from reprise.runtime.signals import Stopped, StopSignals, stop_with_parent

# errors of a disk and of what lies on it, each with the way out
OF_THE_DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and run it again"),
    errno.EFBIG: "the file system or a limit (`ulimit -f`) allows no larger file: use another disk, or raise it",
    errno.EIO: "the disk or its connection fails: see the system's log, then restore the file and run it again",
    errno.EROFS: "make the file system writable and run it again",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "look at its owner and rights"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "something else is in the way there: move it"),
}


class UserError(Exception):
    """Something that the user can put right; the message says what, where, what is allowed and the way out."""


def brief(text: str, most: int = 80) -> str:
    """Return text for one line of a message: no control characters, the rest of a long one left out."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:most])
    return shown if len(text) <= most else f"{shown}... ({len(text):,} characters)"


def first(items: Sequence[str], most: int, between: str = ", ") -> str:
    """Return the first items and the number of the others: "a, b and 3 more"; `between` stands between two items."""
    more = f"{between.replace(',', '')}and {len(items) - most:,} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for one line of a message: the first few, each in brief, and the number of the others."""
    return first([brief(name, 40) for name in names], most)


def reason(error: BaseException) -> str:
    """Return an error's message in one line; its name, if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the names that are spelled most like a word, whatever their case; the nearest first."""
    spelled = {name.lower(): name for name in known}
    return [spelled[name] for name in difflib.get_close_matches(word.lower(), spelled, most)]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user or a disk can cause into one line on stderr and exit code 1, a signal into exit code 128 + n.

    As a stage of DVC (which sets DVC_STAGE for its commands), the process also ends when DVC has died; as a further
    process of a training, when the one that has started it has.
    """
    if "DVC_STAGE" in os.environ or int(os.environ.get("LOCAL_RANK", 0)):
        stop_with_parent()
    try:
        with StopSignals():
            yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit("error: out of memory; run it with less beside it, or lower data.image_size or the batch size")
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        sys.exit(f"error: {error.filename or 'the disk'}: {error.strerror}; {OF_THE_DISK[error.errno]}")
    except Stopped as stopped:
        with suppress(OSError):  # nobody may be reading any more
            print(f"stopped by {stopped.name}; run the same command again", file=sys.stderr)
        raise
