"""Data with a known truth, drawn thousands of times: intervals hold the truth 95 % of the time, p is uniform.

A draw is a cell of the grid. All cells of a grid share their resamples, which alone moves a coverage by
0.5 points (2,000 resamples); coverages are therefore means over 1,000 draws for each of 4 seeds.
"""

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.grid import combined_ci, effect_grid
from analysis.statistics.resampling import mean_ci

DRAWS, SEEDS, FLIPS = 1000, range(4), 2
SHARED, SLOPE, NOISE = 0.5, 0.2, 0.3
"""Variances of what a score is made of: its experiment, how far its experiment follows the wish, the rest."""


def draw(rng, d, experiments, cells):
    """Return high and low (E, F, C) with the true effects ``d``; every score has variance 1."""

    def normal(variance, flips=1):
        return rng.normal(scale=np.sqrt(variance), size=(experiments, flips, cells))

    shared, slope = normal(SHARED), normal(SLOPE)
    high, low = (shared + side * (d / 2 + slope) + normal(NOISE, FLIPS) for side in (1, -1))
    return high, low


def coverage(low, high, truth):
    return ((low <= truth) & (truth <= high)).mean(axis=0)


def effect_coverage(rng, d, experiments, gap=0.0):
    """Return how often the intervals of d and of d_z hold the truth."""
    dz, rows = d / np.sqrt(4 * SLOPE + 2 * NOISE), []
    for seed in SEEDS:
        high, low = draw(rng, d, experiments, DRAWS)
        high[rng.random(high.shape) < gap] = np.nan
        found = effect_grid(high, low, seed=seed)
        rows.append([coverage(found.d_low, found.d_high, d), coverage(found.dz_low, found.dz_high, dz)])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize("experiments, bias", [(8, 0.15), (40, 0.03), (100, 0.02)])
def test_effects_are_right_on_average_but_too_large_with_few_experiments(experiments, bias):
    """As known of d: by the share 3 / (4 df - 1) for independent samples (Hedges 1981)."""
    high, low = draw(np.random.default_rng(1), 1.0, experiments, 4 * DRAWS)
    found = effect_grid(high, low, intervals=False)
    for mean in (found.d.mean(), found.dz.mean() * np.sqrt(4 * SLOPE + 2 * NOISE)):
        assert 1 - 0.01 < mean < 1 + bias


@pytest.mark.parametrize("d", [0.0, 0.5, 1.0])
def test_intervals_of_effects_hold_the_true_effect(d):
    covered = effect_coverage(np.random.default_rng(int(10 * d)), d, experiments=40)
    assert (covered >= 0.93).all() and (covered <= 0.97).all()


def test_intervals_hold_the_true_effect_if_trials_are_missing():
    covered = effect_coverage(np.random.default_rng(2), 0.5, experiments=60, gap=0.3)
    assert (covered >= 0.93).all() and (covered <= 0.97).all()


def test_intervals_of_few_experiments_hold_the_truth_less_often():
    """What a quick run can claim: with 8 experiments, 95 % intervals hold the truth in about 90 %."""
    covered = effect_coverage(np.random.default_rng(8), 0.5, experiments=8)
    assert (covered >= 0.88).all() and (covered <= 0.94).all()


def test_the_large_sample_error_is_too_small_if_trials_of_an_experiment_repeat_each_other():
    """Why intervals draw experiments: the paper's standard error takes the F trials as independent."""
    high, low = (part[:, [0, 0]] for part in draw(np.random.default_rng(3), 0.5, 40, DRAWS))
    found = effect_grid(high, low)
    assert np.std(found.d) == pytest.approx(np.sqrt((4 * SLOPE + 2 * NOISE) / 40), rel=0.15)
    reach = 1.96 * found.d_se
    assert coverage(found.d - reach, found.d + reach, 0.5) < 0.9
    assert coverage(found.d_low, found.d_high, 0.5) > 0.92


@pytest.mark.parametrize("experiments", [20, 40])
def test_p_is_uniform_without_an_effect(experiments):
    high, low = draw(np.random.default_rng(experiments), 0.0, experiments, DRAWS)
    p = effect_grid(high, low, intervals=False).p
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0.035 <= (p < 0.05).mean() <= 0.065


def test_p_finds_a_true_effect_as_often_as_the_t_test():
    high, low = draw(np.random.default_rng(5), 0.5, 20, DRAWS)
    t = stats.ttest_1samp((high - low).mean(axis=1), 0).pvalue
    found = (effect_grid(high, low, intervals=False).p < 0.05).mean()
    assert found > 0.4 and found == pytest.approx((t < 0.05).mean(), abs=0.02)


def test_the_interval_of_the_mean_holds_the_true_report_gain():
    """Gain: right predictions of 16 in two label assignments, less those of the majority baseline."""
    rng, covered = np.random.default_rng(6), []
    for seed in SEEDS:
        skill = rng.beta(7, 3, size=(40, DRAWS))  # experiments differ; 0.7 on average
        right = rng.binomial(16, skill, size=(FLIPS, 40, DRAWS)).mean(axis=0) / 16
        gain = mean_ci(right - rng.binomial(16, 0.5, size=(40, DRAWS)) / 16, seed=seed)
        covered.append(coverage(gain.low, gain.high, 0.2))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_precision_and_group_means_hold_the_truth():
    """With E = 100, as in the paper. The true d are not 0: the mean of |d| of true zeros is never 0."""
    d, rng = np.array([1.0, 0.5, 0.5, -0.4, 0.6]), np.random.default_rng(7)

    def statistics(d):
        size = np.abs(d)
        group = size[:, 1:].mean(axis=1)
        return np.stack([size[:, 0] / group, size[:, 0] / size.mean(axis=1), group], axis=1)

    ends = [
        combined_ci(*draw(rng, d, 100, len(d)), statistics, seed=seed, n_boot=1000)[1:]
        for seed in range(2 * DRAWS)
    ]
    covered = coverage(*np.array(ends).swapaxes(0, 1), [1 / 0.5, 1 / 0.6, 0.5])
    assert (covered >= 0.93).all() and (covered <= 0.97).all()
