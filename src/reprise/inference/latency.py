"""`reprise benchmark`: the time of a prediction on this machine, on each runtime that can run the model."""

import time
from collections.abc import Callable

import numpy as np

from reprise.inference.predict import load_model
from reprise.runtime.errors import UserError

BATCHES = (1, 4, 16, 64, 256)
CALLS, SECONDS = 200, 0.5  # of one batch size: at most so many calls, and no more after so long


def table(source: str) -> list[str]:
    """Return the lines of a table: milliseconds at batch 1 and the images/s of the best batch, for each runtime.

    Pixels go in, probabilities come out; nothing is decoded. Raises UserError where no runtime can run the model.
    """
    load_model(source, exact=False)
    lines = [f"{'runtime':<8}{'p50 ms':>9}{'p99 ms':>9}{'images/s':>11}{'at batch':>10}"]
    for runtime in ("onnx", "torch"):
        try:
            model = load_model(source, runtime=runtime, exact=False)
        except UserError as error:
            lines.append(f"{runtime:<8}{error}")
            continue
        kept = model.card.preprocessing
        shape = (BATCHES[-1], kept.image_size, kept.image_size, kept.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        seconds = {size: timed(model.run, images[:size]) for size in BATCHES}
        p50, p99 = (1000 * np.percentile(seconds[1], share) for share in (50, 99))
        rate, best = max((size / float(np.median(each)), size) for size, each in seconds.items())
        lines.append(f"{runtime:<8}{p50:>9.2f}{p99:>9.2f}{rate:>11,.0f}{best:>10}")
    return lines


def timed(run: Callable[[np.ndarray], object], images: np.ndarray) -> list[float]:
    """Return the seconds of each of several calls, after three that do not count."""
    times = [time.perf_counter()]
    while len(times) < 5 or (len(times) < CALLS and times[-1] < times[0] + SECONDS):
        run(images)
        times.append(time.perf_counter())
    return np.diff(times)[3:].tolist()
