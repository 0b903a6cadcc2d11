"""Confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021): which labels the probabilities contradict.

A class's threshold is the mean probability that its own images get for it. An image counts as of the likeliest class
among those whose threshold it reaches. Images by given and by counted class are the confident joint; its rows, scaled
to the number of images of each given class, estimate how the labels are mixed up.
"""

from collections import Counter

import numpy as np

from reprise.runtime.intervals import wilson

UNLIKE = 0.5  # of a class's threshold


class Scores:
    """The scores of N images from probabilities of models that have not seen them.

    score: the probability of the given label (N,), the lower the worse; counted: the class that an image counts as,
    int64 (N,), or -1; suspicious: it counts as another class than its label says, bool (N,); unlike: it reaches not
    even half of any class's threshold, bool (N,). agreed: the share of images
    whose likeliest class is the label; the lower, the more suggestions are the models' own errors.
    """

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Take labels, int64 (N,), and probabilities (N, K)."""
        self.labels, self.probabilities, classes = labels, probabilities, probabilities.shape[1]
        self.score = probabilities[np.arange(len(labels)), labels]
        images, sums = np.bincount(labels, minlength=classes), np.bincount(labels, self.score, classes)
        thresholds = np.where(images > 0, sums / np.maximum(images, 1), np.inf)
        reached = np.where(probabilities >= thresholds, probabilities, -1)
        self.counted = np.where(reached.max(axis=1) < 0, -1, reached.argmax(axis=1))
        self.suspicious: np.ndarray = (self.counted >= 0) & (self.counted != labels)
        self.agreed = float((probabilities.argmax(axis=1) == labels).mean())
        self.unlike: np.ndarray = np.all(probabilities < UNLIKE * thresholds, axis=1)

    def mixed(self) -> list[tuple[int, int, float, float, float, float]]:
        """Return the pairs of classes that are mixed up: label, real class, images, share, low, high; the most first.

        images: how many with that label are estimated to be of the other class; share: of all with that label, with its
        95 % interval (Wilson's).
        """
        images, sure = Counter(self.labels.tolist()), self.counted >= 0
        joint = Counter(zip(self.labels[sure].tolist(), self.counted[sure].tolist(), strict=True))
        totals = Counter(self.labels[sure].tolist())
        parts = ((*pair, number / totals[pair[0]], wilson(number, totals[pair[0]])) for pair, number in joint.items())
        rows = [(a, b, part * images[a], part, *interval) for a, b, part, interval in parts if a != b]
        return sorted(rows, key=lambda row: -row[2])
