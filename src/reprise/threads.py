"""`train.threads: auto`: how many CPU threads, measured once on real steps of this model, and from then on kept.

The number changes the last bits of a result, so it is written down under what it was measured for, and a later run of
the same model, batch and machine takes it from there.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import reprise.torchvision_repair  # noqa: F401

import torch

from reprise.publish import publishing

STEPS = 3  # timed, after one to warm up


def settle_threads(step: Callable[[], None], most: int, record: Path | None, key: str) -> int:
    """Return how many threads, from 1 to most, do the step fastest, and set torch to it.

    What the record (JSON, from key to number) already says for the key is taken; a new measurement is added to it.
    """
    known: dict[str, int] = {}
    if record is not None and record.exists():
        known = json.loads(record.read_text(encoding="utf-8"))
    if key not in known:
        known[key] = _fastest(step, most)
        if record is not None:
            with publishing(record) as (partial,):
                partial.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    torch.set_num_threads(known[key])
    return known[key]


def _fastest(step: Callable[[], None], most: int) -> int:
    seconds = {}
    for threads in range(1, most + 1):
        torch.set_num_threads(threads)
        step()
        times = []
        for _ in range(STEPS):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
        seconds[threads] = min(times)
    return min(seconds, key=lambda threads: seconds[threads])
