"""Errors that a user can cause end in one clear line and a non-zero exit; bugs keep their traceback."""

import difflib
import errno
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

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


def visible(text: str) -> str:
    """Return text as a terminal shows it: lines stay, other controls and what has no width are written as escapes."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def say(text: str, file: TextIO | None = None) -> None:
    """Print text for a person, whatever the names in it hold."""
    print(visible(text), file=file or sys.stdout, flush=True)


def brief(text: str, most: int = 80) -> str:
    """Return text for one line of a message: no control characters, the rest of a long one left out."""
    shown = visible(text[:most]).replace("\n", "\\n")
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
            try:
                yield
            finally:
                sys.stdout.flush()
    except UserError as error:
        sys.exit("error: " + visible(str(error)).replace("\n", "\n  "))
    except MemoryError:
        sys.exit("error: out of memory; run it with less beside it, or lower data.image_size or the batch size")
    except BrokenPipeError:  # whoever read the output, as `head` does, has seen enough
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
                continue
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes it once more at its end
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        name = visible(str(error.filename or "the disk"))
        sys.exit(f"error: {name}: {error.strerror}; {OF_THE_DISK[error.errno]}")
    except Stopped as stopped:
        with suppress(OSError):  # nobody may be reading any more
            print(f"stopped by {stopped.name}; run the same command again", file=sys.stderr)
        raise
