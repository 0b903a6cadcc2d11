"""The verdict on two models by their predictions for the same images: better, worse, or no difference shown.

Of one run each: McNemar's exact test of the two models. Of several seeds each: a t-test of the mean accuracies, whose
standard error combines that over the seeds (Welch's) and that over the test images.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from reprise.comparison.statistics import (
    accuracy_difference,
    detectable,
    mcnemar,
    mean_interval,
    shown_by_means,
    welch,
)

LEVEL = 0.05  # of significance: how often runs that are equally good may be told apart all the same
POWER = 0.8  # how often the minimum detectable difference is shown where it is real
FLOOR = 1e-12  # of a probability: the file has 6 digits, and a 0 among them is not an infinite loss

Word = Literal["better", "worse", "no difference shown"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """The predictions of two models, base and head, for the same N images.

    labels (N,) and predicted (2, N): class names. of_label (2, N): the probability of the label. confidence (2, N): the
    probability of the predicted class.
    """

    labels: np.ndarray
    predicted: np.ndarray
    of_label: np.ndarray
    confidence: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which images base, and which head has right: (2, N) bool."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Seeds:
    """Several runs of each setting: {seed: accuracy}, and the difference of the means with its 95 % interval and p.

    detectable: the minimum detectable difference.
    """

    base: dict[int, float]
    head: dict[int, float]
    difference: float
    interval: Interval
    p: float
    detectable: float


@dataclass(frozen=True)
class Verdict:
    """The verdict in a word, and everything behind it; pairs of values are base's and head's.

    right: images that are right; broken, fixed: images that only base, only head has right. loss: mean, in nats.
    interval: of the difference of the accuracies, as loss_interval of the losses, 95 %. without_loss: images with a
    probability that is not a number.
    """

    word: Word
    images: int
    right: tuple[int, int]
    broken: int
    fixed: int
    interval: Interval
    p: float
    detectable: float
    loss: tuple[float, float]
    loss_interval: Interval
    without_loss: int
    seeds: Seeds | None = None
    same_setting: bool = False

    @property
    def difference(self) -> float:
        """Head's accuracy minus base's, of one run each."""
        return (self.fixed - self.broken) / self.images


def judge(answers: Answers, seeds: Seeds | None = None, same_setting: bool = False) -> Verdict:
    """Return the verdict on the two models or, with seeds, on the two settings that they are runs of.

    same_setting: the two differ in nothing but the seed, so neither is better, however much the models differ.
    """
    base, head = answers.right
    broken, fixed = int((base & ~head).sum()), int((head & ~base).sum())
    images, p = len(base), mcnemar(broken, fixed)
    losses = -np.log(np.maximum(answers.of_label, FLOOR))
    word = _word(seeds.difference, seeds.p) if seeds else _word(fixed - broken, p)
    finite = np.isfinite(losses).all(axis=0)
    mean, interval = (math.nan, math.nan), (math.nan, math.nan)
    if finite.any():
        mean, interval = losses[:, finite].mean(axis=1), mean_interval(losses[1, finite] - losses[0, finite])
    return Verdict(
        word="no difference shown" if same_setting else word,
        images=images,
        right=(int(base.sum()), int(head.sum())),
        broken=broken,
        fixed=fixed,
        interval=accuracy_difference(broken, fixed, images),
        p=p,
        detectable=detectable(broken, fixed, images, POWER, LEVEL),
        loss=(float(mean[0]), float(mean[1])),
        loss_interval=interval,
        without_loss=int((~finite).sum()),
        seeds=seeds,
        same_setting=same_setting,
    )


def over_seeds(base: dict[int, np.ndarray], head: dict[int, np.ndarray]) -> Seeds:
    """Compare settings by several runs: seed -> which of the same N images that run has right (N,) bool.

    Raises ValueError if neither has three runs.
    """
    means = [{seed: float(right.mean()) for seed, right in sorted(runs.items())} for runs in (base, head)]
    of_seeds, freedom = welch(list(means[0].values()), list(means[1].values()))
    differences = np.mean(list(head.values()), axis=0) - np.mean(list(base.values()), axis=0)
    difference = float(differences.mean())
    error = math.hypot(of_seeds, float(differences.std()) / math.sqrt(len(differences)))
    spread = error * float(stdtrit(freedom, 1 - LEVEL / 2))
    return Seeds(
        base=means[0],
        head=means[1],
        difference=difference,
        interval=(difference - spread, difference + spread),
        p=2 * float(stdtr(freedom, -abs(difference) / error)) if error else float(difference == 0),
        detectable=min(1.0, shown_by_means(error, freedom, POWER, LEVEL)),
    )


def _word(difference: float, p: float) -> Word:
    if p > LEVEL or difference == 0:
        return "no difference shown"
    return "better" if difference > 0 else "worse"
