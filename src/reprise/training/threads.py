"""`train.threads: auto`: how many CPU threads, measured once on real steps of this model, and from then on kept.

The number changes the last bits of a result, so it is written down under what it was measured for, and a later run of
the same model, batch and machine takes it from there.
"""

import json
import time
import timeit
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from reprise.runtime.atomic import publishing

STEPS = 3  # timed, after one to warm up


def resolve_threads(step: Callable[[], None], most: int, record: Path | None, key: str) -> int:
    """Return how many threads, from 1 to most, do the step fastest, and set torch to it.

    What the record (JSON, from key to number) already says for the key is taken; a new measurement is added to it, by
    one process at a time. A damaged record is made anew.
    """
    threads = _read(record).get(key) if record else _fastest(step, most)
    if record and threads is None:
        with publishing(record) as (partial,):
            known = _read(record)
            threads = known.get(key) or _fastest(step, most)  # another process may have measured meanwhile
            partial.write_text(json.dumps(known | {key: threads}, indent=2) + "\n", encoding="utf-8")
    assert threads
    torch.set_num_threads(threads)
    return threads


def _read(record: Path) -> dict[str, int]:
    """Return the numbers of a record that are whole and at least 1."""
    with suppress(FileNotFoundError, ValueError):
        known = json.loads(record.read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return {key: number for key, number in known.items() if type(number) is int and number > 0}
    return {}


def _fastest(step: Callable[[], None], most: int) -> int:
    """Return the number of threads, from 1 to most, with the shortest step."""

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        step()
        return min(timeit.repeat(step, timer=time.perf_counter, repeat=STEPS, number=1))

    return min(range(1, most + 1), key=seconds)
