"""Confidence intervals of proportions, and the correction of p-values for multiple tests."""

import math
from collections.abc import Sequence
from statistics import NormalDist


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
