"""`reprise benchmark`: the time of a prediction on this machine, on each runtime that can run the model."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from reprise.inference.predict import load_model
from reprise.runtime.errors import UserError

BATCHES = (1, 4, 16, 64, 256)
CALLS, SECONDS = 200, 2.0  # of one batch size: at most so many calls, and no longer than this after the first three


def measured(source: str) -> Iterator[str]:
    """Yield the lines of a table: milliseconds at batch 1 and the images/s of the best batch, of each runtime.

    Pixels go in, probabilities come out; nothing is decoded. Raises UserError where no runtime can run the model.
    """
    yield f"{'runtime':<8}{'p50 ms':>9}{'p99 ms':>9}{'images/s':>11}{'at batch':>10}"
    refusals = []
    for runtime in ("onnx", "torch"):
        try:
            model = load_model(source, runtime=runtime, exact=False)  # type: ignore[arg-type]
        except UserError as error:
            refusals.append(f"{runtime:<8} {error}")
            continue
        kept = model.card.preprocessing
        shape = (max(BATCHES), kept.image_size, kept.image_size, kept.channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        seconds = {size: timed(model.run, images[:size]) for size in BATCHES}
        p50, p99 = (1000 * np.percentile(seconds[1], share) for share in (50, 99))
        rates = {size: size / float(np.median(each)) for size, each in seconds.items()}
        best = max(rates, key=rates.__getitem__)
        yield f"{runtime:<8}{p50:>9.2f}{p99:>9.2f}{rates[best]:>11,.0f}{best:>10}"
    if len(refusals) == 2:
        raise UserError("\n".join(refusals))
    yield from refusals


def timed(run: Callable[[np.ndarray], object], images: np.ndarray) -> list[float]:
    """Return the seconds of each of several calls, after three that do not count."""
    for _ in range(3):
        run(images)
    seconds: list[float] = []
    while len(seconds) < CALLS and sum(seconds) < SECONDS:
        start = time.perf_counter()
        run(images)
        seconds.append(time.perf_counter() - start)
    return seconds
