"""Whether a model's confidence is its accuracy: one computation for metrics, the model's page and comparisons."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high]: their number, mean confidence and accuracy, in 0..1."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Mean confidence and accuracy in 0..1, NaN without images; the bins that hold images, lowest first."""

    confidence: float
    accuracy: float
    bins: list[Bin]

    @property
    def error(self) -> float:
        """Expected calibration error, in 0..1 (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""
        gaps = [each.images * abs(each.accuracy - each.confidence) for each in self.bins]
        return sum(gaps) / sum(each.images for each in self.bins) if gaps else math.nan


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int) -> Calibration:
    """Return the calibration of confidence (N,), float, and right (N,), bool, over so many bins of equal width.

    A bin includes its upper bound. Images whose confidence is not finite are left out.
    """
    known = np.isfinite(confidence)
    confidence, right = confidence[known].astype(np.float64), right[known]
    if not len(confidence):
        return Calibration(math.nan, math.nan, [])
    bin_of = bin_numbers(confidence, bins)
    filled = []
    for number in np.unique(bin_of).tolist():
        inside = bin_of == number
        mean, share = float(confidence[inside].mean()), float(right[inside].mean())
        filled.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), mean, share))
    return Calibration(float(confidence.mean()), float(right.mean()), filled)


def bin_numbers(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin (N,), from 0, of each confidence (N,), finite, in 0..1."""
    numbers: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int), 1, bins) - 1
    return numbers
