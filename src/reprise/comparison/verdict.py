"""The verdict on two models by their predictions for the same images: better, worse, or no difference shown.

Of one run each: McNemar's exact test of the two models. Of several seeds each: a t-test of the mean accuracies, whose
standard error combines that over the seeds (Welch's) and that over the test images.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from reprise.comparison import statistics
from reprise.runtime.intervals import mean_interval

LEVEL = 0.05  # of significance: how often runs that are equally good may be told apart all the same
POWER = 0.8  # how often the minimum detectable difference is shown where it is real
FLOOR = 1e-12  # of a probability: the file has 6 digits, and a 0 among them is not an infinite loss

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


class Seeds:
    """The comparison of two settings by several runs of each: the means of the accuracies.

    base, head: {seed: accuracy}. difference: of the means, with interval (95 %) and p. detectable: the minimum
    detectable difference.
    """

    def __init__(self, base: dict[int, np.ndarray], head: dict[int, np.ndarray]) -> None:
        """Take {seed: which of the same N images that run has right (N,) bool}.

        Raises ValueError if neither setting has three runs.
        """
        self.base, self.head = ({seed: float(runs[seed].mean()) for seed in sorted(runs)} for runs in (base, head))
        of_seeds, freedom = statistics.welch(list(self.base.values()), list(self.head.values()))
        differences = np.mean(list(head.values()), axis=0) - np.mean(list(base.values()), axis=0)
        self.difference = float(differences.mean())
        error = math.hypot(of_seeds, float(differences.std()) / math.sqrt(len(differences)))
        spread = error * float(stdtrit(freedom, 1 - LEVEL / 2))
        self.interval = self.difference - spread, self.difference + spread
        no_error = float(self.difference == 0)
        self.p = 2 * float(stdtr(freedom, -abs(self.difference) / error)) if error else no_error
        self.detectable = min(1.0, statistics.detectable_of_means(error, freedom, POWER, LEVEL))


class Verdict:
    """The verdict in a word, and everything behind it; pairs of values are base's and head's.

    right: images that are right; broken, fixed: images that only base, only head has right. difference: of the
    accuracies, with interval (95 %) and McNemar's p; detectable: the minimum detectable difference. loss: mean, in
    nats, with loss_interval (95 %) of the difference. without_loss: images with a probability that is not a number.
    """

    def __init__(self, answers: Answers, seeds: Seeds | None = None, same_setting: bool = False) -> None:
        """Judge the two models or, with seeds, the two settings that they are runs of.

        same_setting: the two differ in nothing but the seed, so neither is better, however much the models differ.
        """
        self.seeds, self.same_setting = seeds, same_setting
        base, head = answers.right
        self.right = int(base.sum()), int(head.sum())
        self.images, self.broken, self.fixed = len(base), int((base & ~head).sum()), int((head & ~base).sum())
        self.difference = (self.fixed - self.broken) / self.images
        self.interval = statistics.accuracy_difference(self.broken, self.fixed, self.images)
        self.p = statistics.mcnemar(self.broken, self.fixed)
        self.detectable = statistics.detectable(self.broken, self.fixed, self.images, POWER, LEVEL)
        judged = seeds or self
        shown = judged.p <= LEVEL and judged.difference != 0 and not same_setting
        self.word = "no difference shown" if not shown else "better" if judged.difference > 0 else "worse"
        losses = -np.log(np.maximum(answers.of_label, FLOOR))
        finite = np.isfinite(losses).all(axis=0)
        self.without_loss = int((~finite).sum())
        self.loss, self.loss_interval = (math.nan, math.nan), (math.nan, math.nan)
        if finite.any():
            self.loss = float(losses[0, finite].mean()), float(losses[1, finite].mean())
            self.loss_interval = mean_interval(losses[1, finite] - losses[0, finite])
