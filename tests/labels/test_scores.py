"""Confident learning finds labels that are planted wrong, and counts them as its authors define it."""

import numpy as np
import pytest

from reprise.labels.scores import Scores
from reprise.runtime.intervals import wilson


def test_an_image_counts_as_the_likeliest_class_whose_threshold_it_reaches():
    # the thresholds are 0.5, 0.55, 0.9: the second image reaches that of 1, the third none, the fourth that of 0
    first, second = [0.9, 0.3, 0.3, 0.5, 0.4, 0.05], [0.1, 0.7, 0.1, 0.5, 0.6, 0.05]
    scores = Scores(np.array([0, 0, 0, 1, 1, 2]), np.stack([first, second, [0, 0, 0.6, 0, 0, 0.9]], axis=1))
    assert scores.counted.tolist() == [0, 1, -1, 0, 1, 2]
    assert scores.suspicious.tolist() == [False, True, False, True, False, False]
    assert scores.score.tolist() == [0.9, 0.3, 0.3, 0.5, 0.6, 0.9]
    # of 3 images with label 0 two are counted, one of them as 1; both labels 1 are, one as 0
    assert scores.mixed() == [(0, 1, 1.5, 0.5, *wilson(1, 2)), (1, 0, 1.0, 0.5, *wilson(1, 2))]


def test_what_reaches_half_of_no_threshold_is_unlike_any_class_and_a_class_without_images_is_never_suggested():
    probabilities = np.array([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.2, 0.2, 0.6]])
    scores = Scores(np.array([0, 0, 1, 1]), probabilities)
    assert scores.unlike.tolist() == [False, False, False, True]  # thresholds 0.9, 0.55, none
    assert scores.counted.tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize("kind", ["random", "confusion"])
def test_planted_labels_come_first_and_their_share_lies_in_the_interval(kind):
    random, classes = np.random.default_rng(0), 5
    true = np.arange(2000) % classes
    wrong = random.permutation(2000) < 100
    noisy = np.where(wrong, (true + (1 if kind == "confusion" else random.integers(1, classes, 2000))) % classes, true)
    logits = random.normal(size=(2000, classes)) + 5 * np.eye(classes)[true]  # a model that has learned the truth
    scores = Scores(noisy, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    assert wrong[np.argsort(scores.score)[:100]].mean() >= 0.95
    assert (scores.counted == true)[scores.suspicious].mean() >= 0.95
    if kind == "confusion":
        for label, real, _, _, low, high in scores.mixed()[:classes]:
            assert real == (label - 1) % classes
            assert low <= wrong[noisy == label].mean() <= high
