"""Better, worse, or no difference shown: what the answers of two models on the same images allow one to say.

One run each: McNemar's exact test of the two models. Several seeds each: the difference of the mean accuracies has to
exceed what seeds do (Welch's standard error over the runs) and what the choice of test images does, taken together.
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
from reprise.runtime.intervals import wilson

LEVEL = 0.05  # how often runs that are equally good may be told apart all the same
POWER = 0.8  # how often the smallest difference named is shown where it is real
FLOOR = 1e-12  # of a probability: the file has 6 digits, and a 0 among them is not an infinite loss

Word = Literal["better", "worse", "no difference shown"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Answers:
    """What two models said of the same N images.

    labels, base and head are class names (N,); base_of_label and head_of_label, the probabilities given to the label;
    base_confidence and head_confidence, to the class predicted.
    """

    labels: np.ndarray
    base: np.ndarray
    head: np.ndarray
    base_of_label: np.ndarray
    head_of_label: np.ndarray
    base_confidence: np.ndarray
    head_confidence: np.ndarray

    @property
    def base_right(self) -> np.ndarray:
        """(N,) bool."""
        return self.base == self.labels

    @property
    def head_right(self) -> np.ndarray:
        """(N,) bool."""
        return self.head == self.labels


@dataclass(frozen=True)
class Seeds:
    """Several runs each: accuracy by seed; the difference of their means with interval and p-value; what would show."""

    base: dict[int, float]
    head: dict[int, float]
    difference: float
    interval: Interval
    p: float
    detectable: float


@dataclass(frozen=True)
class Verdict:
    """The word and everything behind it. broken, fixed: images that only base, only head has right. Losses in nats."""

    word: Word
    images: int
    base_right: int
    head_right: int
    broken: int
    fixed: int
    interval: Interval
    p: float
    detectable: float
    base_loss: float
    head_loss: float
    loss_interval: Interval
    without_loss: int
    seeds: Seeds | None = None
    same_setting: bool = False

    @property
    def difference(self) -> float:
        """Head's accuracy less base's, of one run each."""
        return (self.head_right - self.base_right) / self.images

    @property
    def base_interval(self) -> Interval:
        """Wilson's, of the accuracy."""
        return wilson(self.base_right, self.images)

    @property
    def head_interval(self) -> Interval:
        """Wilson's, of the accuracy."""
        return wilson(self.head_right, self.images)


def judge(answers: Answers, seeds: Seeds | None = None, same_setting: bool = False) -> Verdict:
    """Return the verdict on the two models or, with seeds, on the two settings that they are runs of.

    same_setting: the two differ in nothing but the seed, so neither is better, however much the models differ.
    """
    base, head = answers.base_right, answers.head_right
    broken, fixed = int((base & ~head).sum()), int((head & ~base).sum())
    images = len(base)
    p = mcnemar(broken, fixed)
    losses = -np.log(np.maximum(np.stack([answers.base_of_label, answers.head_of_label]), FLOOR))
    word = _word(seeds.difference, seeds.p) if seeds else _word(fixed - broken, p)
    finite = np.isfinite(losses).all(axis=0)
    base_loss, head_loss = losses[:, finite].mean(axis=1) if finite.any() else (math.nan, math.nan)
    return Verdict(
        word="no difference shown" if same_setting else word,
        images=images,
        base_right=int(base.sum()),
        head_right=int(head.sum()),
        broken=broken,
        fixed=fixed,
        interval=accuracy_difference(broken, fixed, images),
        p=p,
        detectable=detectable(broken, fixed, images, POWER, LEVEL),
        base_loss=float(base_loss),
        head_loss=float(head_loss),
        loss_interval=mean_interval(losses[1, finite] - losses[0, finite]) if finite.any() else (math.nan, math.nan),
        without_loss=int((~finite).sum()),
        seeds=seeds,
        same_setting=same_setting,
    )


def over_seeds(base: dict[int, np.ndarray], head: dict[int, np.ndarray]) -> Seeds:
    """Compare settings by several runs: seed -> which of the same N images that run has right (N,) bool.

    Raises ValueError if neither has three runs.
    """
    means = [{seed: float(right.mean()) for seed, right in sorted(runs.items())} for runs in (base, head)]
    _, of_seeds, freedom = welch(list(means[0].values()), list(means[1].values()))
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
