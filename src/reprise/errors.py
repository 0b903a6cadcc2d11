"""Errors that a user can cause end in one clear line and a non-zero exit; bugs keep their traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """Something that the user can put right; the message says what, where, what is allowed and the way out."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError` or a full disk into one line on stderr and exit code 1, Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        sys.exit(f"error: {error.filename or 'writing'}: {error.strerror}; free some space and run it again")
    except KeyboardInterrupt:
        sys.exit(130)
