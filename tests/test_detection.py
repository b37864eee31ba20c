"""Thresholds at a false positive rate: by hand, their real rate, and detection rates that hold the truth."""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.detection import (
    at_threshold,
    ranked,
    smallest_fpr,
    threshold_at,
    threshold_limits,
)


def test_ranks_from_the_top_by_hand():
    scores = np.array([[3.0, 9.0, 5.0, 1.0]])
    assert [ranked(scores, rank).item() for rank in (1, 2, 4, 1.5, 2.25, 9.0)] == [9, 5, 1, 7, 4.5, 1]
    # beyond the largest: a tenth of 20 is two, whose mean lies 1.5 above the third
    beyond = ranked(np.arange(20.0), 0.5)
    assert beyond == pytest.approx(19 + 1.5 * np.log(2))


def test_the_threshold_is_numpys_weibull_quantile():
    scores = np.random.default_rng(0).normal(size=(5, 300))
    expected = np.quantile(scores, 0.99, axis=1, method="weibull")
    np.testing.assert_allclose(threshold_at(scores, 0.01), expected)


@pytest.mark.parametrize("n, fpr", [(300, 0.01), (99, 0.01), (49, 0.02), (600, 0.05)])
def test_new_negatives_exceed_the_threshold_as_often_as_said(n, fpr):
    scores = np.random.default_rng(n).normal(size=(4000, n))
    real = stats.norm.sf(threshold_at(scores, fpr)).mean()
    assert real == pytest.approx(fpr, rel=0.05)


def test_the_largest_score_with_one_percent_above_it_is_exceeded_more_often():
    scores = np.random.default_rng(3).normal(size=(4000, 300))
    assert stats.norm.sf(np.sort(scores, axis=1)[:, -4]).mean() == pytest.approx(4 / 301, rel=0.05)


def test_too_few_negatives_do_not_resolve_a_rate():
    assert (smallest_fpr(300), smallest_fpr(49)) == (0.01, 0.02)
    assert threshold_at(np.arange(49.0), smallest_fpr(49)) == 48
    with pytest.raises(ValueError, match="do not resolve"):
        threshold_at(np.arange(98.0), 0.01)


@pytest.mark.parametrize("n, name", [(100, "norm"), (300, "norm"), (300, "lognorm"), (600, "lognorm")])
def test_limits_hold_the_true_threshold_whatever_the_distribution(n, name):
    family = stats.lognorm(1) if name == "lognorm" else stats.norm()
    scores = family.rvs((2000, n), random_state=np.random.default_rng(n))
    low, high = threshold_limits(scores, 0.01)
    assert ((low <= family.isf(0.01)) & (family.isf(0.01) <= high)).mean() == pytest.approx(0.95, abs=0.025)
    assert (low < threshold_at(scores, 0.0101)).all() and (threshold_at(scores, 0.01) < high).all()


def test_an_interval_is_widened_by_what_the_threshold_may_be():
    negative = np.random.default_rng(1).normal(size=300)
    low, high = threshold_limits(negative, 0.01)
    there = threshold_at(negative, 0.01)
    value, down, up = at_threshold(lambda t: (1 - t / 10, 1 - t / 10 - 0.03, 1 - t / 10 + 0.04), negative)
    assert value == pytest.approx(1 - there / 10)
    assert down == pytest.approx(value - np.hypot(0.03, (high - there) / 10))
    assert up == pytest.approx(value + np.hypot(0.04, (there - low) / 10))


def test_the_detection_rate_of_new_sentences_is_held():
    rng, hits, studies = np.random.default_rng(2), 0, 500
    truth = stats.norm.sf(stats.norm.isf(0.01) - 2)
    for _ in range(studies):
        positive = rng.normal(2, 1, 300)

        def share(threshold, positive=positive):
            return stats.binomtest(int((positive > threshold).sum()), 300)

        def ends(threshold):
            found = share(threshold)  # noqa: B023
            return found.statistic, *found.proportion_ci(method="wilson")

        _, low, high = at_threshold(ends, rng.normal(size=300))
        hits += low <= truth <= high
    assert 0.93 <= hits / studies <= 0.985
