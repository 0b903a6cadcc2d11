"""Confidence intervals, tests and power, for two runs on the same test images.

Resampling is seeded: the same counts give the same interval, to the last bit.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import bdtr, stdtrit

from reprise.runtime.intervals import SEED, middle

RESAMPLES = 10_000


def mcnemar(broken: int, fixed: int) -> float:
    """Return the two-sided exact McNemar p-value for two models on the same images.

    broken: images that only the first model has right; fixed: images that only the second has right. Under the null
    hypothesis, broken is binomial (broken + fixed, 1/2) (McNemar, Psychometrika 12, 1947).
    """
    return min(1.0, 2 * float(bdtr(min(broken, fixed), broken + fixed, 0.5)))


def accuracy_difference(broken: int, fixed: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Return the bootstrap interval, at a confidence level, of second minus first accuracy of two models, in -1..1.

    broken: images that only the first model has right; fixed: images that only the second has right; images: all.
    Images are resampled with both models' answers. Half an image is added to each of the four outcomes (Agresti and
    Min, Statistics in Medicine 24, 2005): without any disagreement, plain resampling would give an interval of no
    width.
    """
    one, other = (broken + 0.5) / (images + 2), (fixed + 0.5) / (images + 2)
    drawn = np.random.default_rng(SEED).multinomial(images, [one, other, 1 - one - other], size=RESAMPLES)
    return middle((drawn[:, 1] - drawn[:, 0]) / images, level)


def power(difference: float, disagreement: float, images: int, level: float = 0.05) -> float:
    """Return the power of `mcnemar`: the chance that it finds a true difference of two accuracies significant.

    difference: of the accuracies, in 0..1; disagreement: the share of images that only one of the models has right, at
    least the difference; images: their number; level: of significance.
    """
    disagreeing = np.arange(images + 1)
    chance = np.diff(bdtr(disagreeing, images, disagreement), prepend=0.0)
    most = _critical(images, level)
    wins = np.where(most >= 0, bdtr(np.maximum(most, 0), disagreeing, (1 - difference / disagreement) / 2), 0.0)
    return float(chance @ wins)


@cache
def _critical(images: int, level: float) -> np.ndarray:
    """Return the largest `min(broken, fixed)` that is significant, for 0 to `images` disagreeing images; -1: none is.

    Each disagreeing image raises it by one or not at all.
    """
    found = [-1]
    for disagreeing in range(1, images + 1):
        found.append(found[-1] + (2 * bdtr(found[-1] + 1, disagreeing, 0.5) <= level))
    return np.array(found)


def detectable(broken: int, fixed: int, images: int, wanted: float = 0.8, level: float = 0.05) -> float:
    """Return the minimum detectable difference of two accuracies: the smallest that has the wanted power; nan if none.

    wanted: power, in 0..1. The models are taken to disagree as often as observed or, if the difference requires more,
    as often as that.
    """
    observed = (broken + fixed) / images

    def shown(count: int) -> bool:
        return power(count / images, max(observed, count / images), images, level) >= wanted

    if not shown(images):
        return math.nan
    low, high = 0, images
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high / images


def welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return standard error and degrees of freedom of the difference of two means, as in Welch's t-test.

    Welch, Biometrika 34, 1947. The variance of one or two values is a poor estimate, so such a sample is given the
    other's. Raises ValueError if both samples have fewer than three values.
    """
    samples = [np.asarray(sample, dtype=float) for sample in (one, other)]
    variances = [float(sample.var(ddof=1)) if len(sample) > 2 else None for sample in samples]
    known = [variance for variance in variances if variance is not None]
    if not known:
        raise ValueError("two samples of fewer than three values have no spread")
    parts = [(known[0] if own is None else own) / len(sample) for own, sample in zip(variances, samples, strict=True)]
    error = math.sqrt(sum(parts))
    if len(known) == 1:
        freedom = float(max(map(len, samples)) - 1)
    elif error == 0:
        freedom = float(sum(map(len, samples)) - 2)
    else:
        freedom = error**4 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True))
    return error, freedom


def detectable_of_means(error: float, freedom: float, wanted: float = 0.8, level: float = 0.05) -> float:
    """Return the minimum detectable difference of two means: the smallest that has the wanted power.

    error, freedom: from `welch`; level: of significance, two-sided.
    """
    return error * float(stdtrit(freedom, 1 - level / 2) + stdtrit(freedom, wanted))
