"""Errors that a user can cause end in one clear line and a non-zero exit; bugs keep their traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HINTS = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "free some space and run it again",
    errno.EIO: "the disk or its connection fails: see the system's log, then restore the file and run it again",
}


class UserError(Exception):
    """Something that the user can put right; the message says what, where, what is allowed and the way out."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError` or a full or failing disk into one line and exit code 1, Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in HINTS:
            raise
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror}; {HINTS[error.errno]}")
    except KeyboardInterrupt:
        sys.exit(130)
