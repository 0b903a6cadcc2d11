"""The statistics against published examples, scipy's own and simulation."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from reprise.comparison import statistics
from reprise.comparison.verdict import LEVEL, Seeds
from reprise.runtime.intervals import holm, mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_the_published_examples(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_of_nothing_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)
    assert statistics.mcnemar(0, 0) == 1.0
    assert holm([]) == []


def test_mcnemar_is_the_exact_binomial_test():
    # the example of 314 patients in statsmodels' manual
    assert statistics.mcnemar(121, 59) == pytest.approx(4.434e-06, rel=1e-3)
    assert statistics.mcnemar(0, 6) == 0.03125  # 2 / 2^6
    for one, other in [(0, 1), (3, 3), (4, 5), (10, 2), (0, 5), (300, 350), (7000, 7300)]:
        exact = stats.binomtest(one, one + other, 0.5).pvalue
        assert statistics.mcnemar(one, other) == statistics.mcnemar(other, one) == pytest.approx(exact, rel=1e-9)


def test_holm_corrects_step_by_step_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_welch_is_scipys_and_one_run_borrows_the_others_spread():
    one, other = [0.91, 0.93, 0.92, 0.95], [0.94, 0.96, 0.99]
    found = stats.ttest_ind(one, other, equal_var=False)
    error, freedom = statistics.welch(one, other)
    assert (np.mean(one) - np.mean(other)) / error == pytest.approx(found.statistic)
    assert freedom == pytest.approx(found.df)
    assert error == pytest.approx(np.hypot(np.std(one, ddof=1) / 2, np.std(other, ddof=1) / 3**0.5))
    error, freedom = statistics.welch([0.5], other)
    assert freedom == 2
    assert error == pytest.approx(np.std(other, ddof=1) * (1 + 1 / 3) ** 0.5)
    with pytest.raises(ValueError, match="no spread"):
        statistics.welch([1, 3], [2])


@pytest.mark.parametrize(
    ("images", "one", "other"),
    [(360, 0.02, 0.03)]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in ((1000, 0.05, 0.08), (250, 0.2, 0.1))],
)
def test_the_bootstrap_interval_of_the_accuracies_covers_the_truth(images, one, other):
    interval = cache(statistics.accuracy_difference)
    drawn = np.random.default_rng(1).multinomial(images, [one, other, 1 - one - other], size=2000).tolist()
    inside = [low <= other - one <= high for low, high in (interval(b, c, images) for b, c, _ in drawn)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_the_bootstrap_interval_of_a_mean_covers_the_truth():
    generator = np.random.default_rng(2)
    inside = []
    for _ in range(400):
        low, high = mean_interval(generator.gamma(3.0, size=150))
        inside.append(low <= 3 <= high)
    assert 0.93 <= np.mean(inside) <= 0.97


def test_no_disagreement_is_not_certainty():
    low, high = statistics.accuracy_difference(0, 0, 100)
    assert low < 0 < high
    assert statistics.accuracy_difference(3, 9, 100) == statistics.accuracy_difference(3, 9, 100)  # seeded


def test_models_that_are_equally_good_are_seldom_told_apart():
    generator = np.random.default_rng(3)
    for images, disagreement in ((360, 0.02), (360, 0.1), (2000, 0.05)):
        drawn = generator.multinomial(images, [disagreement / 2, disagreement / 2, 1 - disagreement], size=4000)
        assert np.mean([statistics.mcnemar(b, c) <= LEVEL for b, c in drawn[:, :2].tolist()]) <= LEVEL


@pytest.mark.parametrize(("base_runs", "head_runs"), [(5, 5), (3, 3), (2, 6), (1, 5)])
def test_settings_that_differ_only_in_seeds_are_seldom_told_apart(base_runs, head_runs):
    generator = np.random.default_rng(4)
    said = []
    for _ in range(800):
        ease = generator.normal(2, 2, size=300)  # of an image; each run has a skill of its own besides
        runs = [
            {seed: ease + generator.normal(0, 0.5) + generator.normal(size=300) > 0 for seed in range(count)}
            for count in (base_runs, head_runs)
        ]
        said.append(Seeds(*runs).p <= LEVEL)
    assert np.mean(said) <= LEVEL


@pytest.mark.parametrize(("broken", "fixed", "images"), [(3, 2, 360), (0, 0, 360), (40, 35, 1000), (300, 310, 10_000)])
def test_the_smallest_difference_named_is_shown_four_times_in_five(broken, fixed, images):
    least = statistics.detectable(broken, fixed, images)
    disagreement = max((broken + fixed) / images, least)
    parts = [(disagreement - least) / 2, (disagreement + least) / 2, 1 - disagreement]
    drawn = np.random.default_rng(5).multinomial(images, parts, size=3000)
    shown = np.mean([statistics.mcnemar(b, c) <= LEVEL and c > b for b, c in drawn[:, :2].tolist()])
    assert shown >= 0.78
    assert shown == pytest.approx(statistics.power(least, disagreement, images), abs=0.03)
    smaller = least - 1 / images
    assert statistics.power(smaller, max((broken + fixed) / images, smaller), images) < 0.8


def test_five_images_can_show_nothing():
    assert np.isnan(statistics.detectable(0, 0, 5))


def test_the_smallest_difference_of_means_is_shown_four_times_in_five():
    generator = np.random.default_rng(6)
    least = statistics.detectable_of_means(2**0.5, 18)  # two samples of ten, of standard deviation 10 ** 0.5
    one, other = generator.normal(0, 10**0.5, size=(2, 2000, 10)) + np.array([0, least])[:, None, None]
    assert 0.77 < np.mean(stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue <= LEVEL) < 0.84
