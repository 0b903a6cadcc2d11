"""The statistics against published examples, scipy's own and simulation."""

import pytest

from reprise.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_the_published_examples(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_of_nothing_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)
