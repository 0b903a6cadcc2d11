"""Worker processes that share one job, with the same result as one process; none of them outlives its parent.

Each worker holds the reading end of a pipe whose writing end only the parent has. When the parent closes it, on an
error, or dies, even by kill -9, the worker sees the end of the pipe and exits.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from reprise.runtime.errors import UserError

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # as the builtin `map` with one iterable
MOST = 8
WAY_OUT = "close other programs, or use fewer processes: `taskset -c 0 dvc repro` uses one"


@contextmanager
def spread(workers: int) -> Iterator[Map]:
    """Yield a `map` over this many processes, at most MOST; 1 means this process. On an error the workers end at once.

    The function must belong to a module. Workers import the main script, which needs its `if __name__ == "__main__"`.
    Raises UserError if a worker is killed or memory runs out, and whatever the function raises.
    """
    try:
        if workers == 1:
            yield map
        else:
            with _pool(min(workers, MOST)) as pool:
                yield pool.map
    except BrokenProcessPool:
        own = 'In a script of your own: all it does has to stand under `if __name__ == "__main__":`'
        raise UserError(f"a worker process was killed, most likely because memory ran out; {WAY_OUT}. {own}") from None
    except MemoryError:
        raise UserError(f"memory ran out; {WAY_OUT}") from None


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")  # everywhere alike; a forked process with threads may hang
    reader, writer = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _tie_to_parent, (reader,))
    with reader, writer:
        try:
            yield pool
        except BaseException:
            writer.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _tie_to_parent(pipe: Connection) -> None:
    def exit_with_parent() -> None:
        pipe.poll(None)  # nothing is ever sent: this returns when the writing end is gone
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=exit_with_parent, daemon=True).start()
