"""Confidence intervals of proportions and means, and the correction of p-values for multiple tests.

Resampling is seeded: equal values give equal bits.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

SEED = 20250101  # any number, always the same
RESAMPLES, FEWEST, WORK = 2_000, 200, 100_000_000  # fewer where more than WORK values would be drawn, for a second


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a proportion (Wilson, JASA 22, 1927), in 0..1; (0, 1) for no trials."""
    if not trials:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    center = successes + z2 / 2
    spread = math.sqrt(z2 * (successes * (trials - successes) / trials + z2 / 4))
    low = 0.0 if successes == 0 else (center - spread) / (trials + z2)
    high = 1.0 if successes == trials else (center + spread) / (trials + z2)
    return low, high


def mean_interval(values: np.ndarray, level: float = 0.95, of: Callable[..., Any] = np.asarray) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of values (N,), at a confidence level.

    of: the interval is that of a function of the mean, which gets the means of so many resamples (R,) and returns (R,);
    with values (N, K) it gets (R, K).
    """
    generator = np.random.default_rng(SEED)
    found: list[float] = []
    resamples = min(RESAMPLES, max(FEWEST, WORK // values.size))
    while left := resamples - len(found):
        size = min(left, max(1, 1_000_000 // values.size)), len(values)  # a part at a time, of 8 MB
        found += of(values[generator.integers(len(values), size=size)].mean(axis=1)).tolist()
    return middle(np.array(found), level)


def middle(resampled: np.ndarray, level: float) -> tuple[float, float]:
    """Return the quantiles between which the middle share `level` of resampled values (R,) lies."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values, in their order, corrected for multiple tests by Holm's step-down method.

    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
