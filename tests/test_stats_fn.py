"""Effect sizes, intervals, tests and accuracies: against scipy, numbers checked by hand, and simulations."""

import numpy as np
import pytest
from scipy import stats

from analysis import stats_fn as sf
from analysis.statistics.moments import dz_of, moments
from analysis.statistics.signflips import sign_flip_ps
from tests.plain_statistics import plain_effect, plain_sign_flip_p

NAN = np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def row_dz(x):
    return dz_of(moments(x.reshape(len(x), -1)))


def row_means(x):
    return x.reshape(len(x), -1).mean(axis=1)


# ---------------------------------------------------------------- effect sizes


def test_cohens_d_of_numbers_checked_by_hand():
    # means 4 and 1, both variances 1, so that the pooled deviation is 1
    assert sf.cohens_d(np.array([3.0, 4, 5]), np.array([0.0, 1, 2])) == pytest.approx(3.0)
    # means 4 and 2; sums of squares 2 and 8, over 3 + 2 - 2 degrees of freedom
    assert sf.cohens_d(np.array([3.0, 4, 5]), np.array([0.0, 4])) == pytest.approx(2 / np.sqrt(10 / 3))


def test_cohens_d_is_the_t_statistic_over_root_n(rng):
    high, low = rng.normal(0.5, 1, 12), rng.normal(0, 2, 30)
    t = stats.ttest_ind(high, low).statistic
    assert sf.cohens_d(high, low) == pytest.approx(t * np.sqrt(1 / 12 + 1 / 30))


def test_paired_dz_is_the_paired_t_over_root_n(rng):
    high, low = rng.normal(0.5, 1, 25), rng.normal(0, 1, 25)
    t = stats.ttest_rel(high, low).statistic
    assert sf.paired_dz(high - low) == pytest.approx(t / 5)


def test_missing_trials_are_left_out_of_effects():
    assert sf.cohens_d(np.array([3.0, NAN, 4, 5]), np.array([0.0, 1, 2, NAN])) == pytest.approx(3.0)
    assert sf.paired_dz(np.array([1.0, NAN, 3.0])) == pytest.approx(2 / np.sqrt(2))


@pytest.mark.parametrize("diff", [[], [1.0], [1.0, NAN], [0.1, 0.1, 0.1], [0.0, 0.0]])
def test_an_effect_without_two_samples_or_variance_is_nan(diff):
    diff = np.array(diff)
    assert np.isnan(sf.paired_dz(diff))
    assert np.isnan(sf.cohens_d(diff, -diff))


def test_standard_error_of_d_by_hand():
    assert sf.cohens_d_se(2.0, 8, 8) == pytest.approx(np.sqrt(16 / 64 + 4 / 32))
    assert np.isnan(sf.cohens_d_se(2.0, 1, 8)) and np.isnan(sf.cohens_d_se(NAN, 8, 8))


def test_standard_error_of_d_is_the_spread_of_d_over_simulations(rng):
    d = [sf.cohens_d(rng.normal(0.8, 1, 50), rng.normal(0, 1, 50)) for _ in range(2000)]
    assert np.std(d) == pytest.approx(sf.cohens_d_se(0.8, 50, 50), rel=0.06)  # 2000 draws: 1.6 % error


@pytest.mark.parametrize(
    "call",
    [
        lambda: sf.cohens_d(np.zeros((2, 2)), np.zeros(2)),
        lambda: sf.paired_dz(np.array(1.0)),
        lambda: sf.control_effect(np.zeros((3, 2)), np.zeros((2, 2))),
        lambda: sf.neural_difference_cosine(np.zeros((3, 2)), np.zeros(3)),
        lambda: sf.benjamini_hochberg(np.array([0.5, 1.5])),
        lambda: sf.sign_flip_p(np.zeros((3, 2))),
        lambda: sf.bootstrap_ci(row_means, np.zeros(3), np.zeros(2)),
        lambda: sf.bootstrap_ci(row_means, np.zeros(3), level=95),
        lambda: sf.bootstrap_ci(row_means, np.zeros(3), clusters=np.zeros(2)),
        lambda: sf.mean_ci(np.array(1.0)),
        lambda: sf.report_metrics(np.zeros((2, 3)), np.zeros((3, 2))),
        lambda: sf.report_metrics(np.full((2, 3), 7.0), np.zeros((2, 3))),
        lambda: sf.majority_baseline(np.full((2, 3), 2)),
    ],
)
def test_wrong_shapes_and_values_are_refused(call):
    with pytest.raises(ValueError):
        call()


# ---------------------------------------------------------------- resampling


def test_bootstrap_ci_is_scipys_bca_interval(rng):
    x = rng.exponential(size=40)
    ours = sf.bootstrap_ci(lambda x: x.std(axis=1), x, n_boot=9999)
    theirs = stats.bootstrap((x,), np.std, method="BCa", n_resamples=9999, rng=1).confidence_interval
    np.testing.assert_allclose(ours, theirs, rtol=0.03)


def test_bootstrap_ci_covers_the_true_effect(rng):
    draws, hits = 300, 0
    for seed in range(draws):
        low, high = sf.bootstrap_ci(row_dz, rng.normal(0.5, 1, 60), n_boot=200, seed=seed)
        hits += low <= 0.5 <= high
    # three binomial deviations, and the 2 % that 200 resamples of 60 values cost
    assert 0.93 - 3 * np.sqrt(0.95 * 0.05 / draws) <= hits / draws <= 0.99


def test_bootstrap_ci_keeps_pairs_together(rng):
    x = rng.normal(size=30)
    low, high = sf.bootstrap_ci(lambda a, b: row_means(a - b), x, x - 1)
    assert low == pytest.approx(1) and high == pytest.approx(1)


def test_bootstrap_over_clusters_is_as_wide_as_over_their_means(rng):
    centre = rng.normal(size=30)
    clusters = np.repeat(np.arange(30), 4)
    copies = centre[clusters]  # four copies of one value bring no further information
    order = rng.permutation(120)
    wide = sf.bootstrap_ci(row_means, copies[order], clusters=clusters[order])
    np.testing.assert_allclose(wide, sf.bootstrap_ci(row_means, centre), atol=1e-12)
    narrow = sf.bootstrap_ci(row_means, copies)
    assert np.diff(narrow) < 0.6 * np.diff(wide)


def test_unequal_clusters_are_drawn_whole(rng):
    clusters = np.array([0, 1, 1, 1, 2])
    x = np.array([0.0, 5, 5, 5, 0])
    seen = []

    def record(x):
        seen.append(np.isfinite(x).sum(axis=1))
        return np.nanmean(x, axis=1)

    low, high = sf.bootstrap_ci(record, x, clusters=clusters, n_boot=500)
    assert set(seen[0]) == {3, 5, 7, 9}  # 0, 1, 2 or 3 draws of the cluster of three
    assert low >= 0 and high == 5


def test_bootstrap_ci_is_nan_with_one_sample_or_an_undefined_statistic():
    assert np.isnan(sf.bootstrap_ci(row_means, np.array([1.0]))).all()
    assert np.isnan(sf.bootstrap_ci(row_dz, np.array([1.0, 1.0, 1.0]))).all()
    assert np.isnan(sf.bootstrap_ci(row_dz, np.array([1.0, 2.0]))).all()  # half of the resamples do not vary


def test_bootstrap_ci_does_not_depend_on_how_it_is_chunked(rng, monkeypatch):
    x = rng.normal(size=(20, 3))
    whole = sf.bootstrap_ci(row_means, x, n_boot=300)
    monkeypatch.setattr("analysis.statistics.resampling._CHUNK", 100)
    assert sf.bootstrap_ci(row_means, x, n_boot=300) == pytest.approx(whole)


def test_mean_ci_of_many_columns_leaves_nan_out(rng):
    values = rng.normal(2, 1, (200, 3))
    values[5:, 1] = NAN
    values[1:, 2] = NAN
    got = sf.mean_ci(values)
    assert got.n.tolist() == [200, 5, 1]
    np.testing.assert_allclose(got.mean, [values[:, 0].mean(), values[:5, 1].mean(), values[0, 2]])
    half = 1.96 / np.sqrt(200)
    assert got.high[0] - got.mean[0] == pytest.approx(half, rel=0.15)
    assert got.mean[0] - got.low[0] == pytest.approx(half, rel=0.15)
    assert np.isfinite(got.low[1]) and np.isnan(got.low[2]) and np.isnan(got.high[2])


def test_mean_ci_keeps_the_shape_of_one_experiment(rng):
    mean, low, high, n = sf.mean_ci(rng.normal(size=(6, 2, 3)))
    assert mean.shape == low.shape == high.shape == n.shape == (2, 3)
    assert (low < mean).all() and (mean < high).all()
    assert sf.mean_ci(np.array([1.0, 2, 3])).mean == 2
    assert np.isnan(sf.mean_ci(np.empty((0, 2))).mean).all()


def test_mean_ci_of_equal_values_has_no_width():
    mean, low, high, _ = sf.mean_ci(np.full((9, 1), 0.1))
    assert low == mean == high


def test_sign_flip_p_counts_all_patterns_of_a_few_differences():
    assert sf.sign_flip_p(np.array([1.0, 1, 1])) == 2 / 8  # only +++ and --- reach a sum of 3
    assert sf.sign_flip_p(np.array([3.0, 1, -1])) == 6 / 8  # |sum| >= 3: all but 3 - 1 - 1 and its opposite
    assert sf.sign_flip_p(np.array([1.0, NAN, 1, 1])) == 2 / 8
    assert sf.sign_flip_p(np.zeros(4)) == 1
    assert np.isnan(sf.sign_flip_p(np.array([1.0, NAN])))


@pytest.mark.parametrize("n", [9, 40])
def test_sign_flip_p_is_scipys_permutation_test(rng, n):
    diff = rng.normal(0.4, 1, n)
    options = {"permutation_type": "samples", "n_resamples": 9999, "rng": 1}
    theirs = stats.permutation_test((diff,), lambda x, axis: x.mean(axis=axis), vectorized=True, **options)
    noise = 1e-12 if n == 9 else 4 * np.sqrt(2 * theirs.pvalue / 9999)
    assert sf.sign_flip_p(diff) == pytest.approx(theirs.pvalue, abs=noise)


def test_many_cells_have_the_p_of_each_whatever_is_missing_and_however_they_are_chunked(rng, monkeypatch):
    diff = rng.normal(0.3, 1, (9, 16))
    diff[:4, 5:] = NAN  # 5 differences: all patterns; 15 or 16: random ones
    diff[4:7, 3] = NAN
    diff[7] = NAN
    expected = [plain_sign_flip_p(row, n_perm=500, seed=2) for row in diff]
    np.testing.assert_array_equal(sign_flip_ps(diff, n_perm=500, seed=2), expected)
    monkeypatch.setattr("analysis.statistics.signflips._CHUNK", 33)
    np.testing.assert_array_equal(sign_flip_ps(diff, n_perm=500, seed=2), expected)


def test_sign_flip_p_is_never_zero():
    assert sf.sign_flip_p(np.full(50, 1.0) + np.arange(50), n_perm=999) == 1 / 1000


def test_sign_flip_p_is_uniform_under_the_null(rng):
    p = [sf.sign_flip_p(rng.standard_t(3, 25), n_perm=400, seed=seed) for seed in range(400)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_benjamini_hochberg_is_scipys_and_leaves_nan_out(rng):
    p = rng.uniform(size=20) ** 2
    np.testing.assert_allclose(sf.benjamini_hochberg(p), stats.false_discovery_control(p))
    got = sf.benjamini_hochberg(np.array([0.01, NAN, 0.04]))
    np.testing.assert_allclose(got, [0.02, NAN, 0.04])  # two tests: 0.01 * 2 / 1 and 0.04 * 2 / 2
    assert np.isnan(sf.benjamini_hochberg(np.array([NAN]))).all()


# ---------------------------------------------------------------- control


def test_control_effect_is_one_cell_of_the_grid_with_missing_trials(rng):
    high, low = rng.normal(0.5, 1, (9, 2)), rng.normal(size=(9, 2))
    high[0, 1] = low[3] = NAN
    effect, plain = sf.control_effect(high, low, n_boot=300), plain_effect(high, low, n_boot=300)
    assert {name: getattr(effect, name) for name in plain} == pytest.approx(plain)
    assert isinstance(effect.d, float) and isinstance(effect.n_trials, int)


def test_control_effect_recovers_a_planted_effect(rng):
    shared = rng.normal(size=(100, 2))  # the pair's own level, which pairing removes
    high = shared + rng.normal(0.5, 0.5, (100, 2))
    low = shared + rng.normal(-0.5, 0.5, (100, 2))
    effect = sf.control_effect(high, low)
    d, dz = 1 / np.sqrt(1.25), 1 / np.sqrt(0.5)
    assert effect.d_low < d < effect.d_high and effect.d == pytest.approx(d, abs=0.2)
    assert effect.dz_low < dz < effect.dz_high and effect.dz == pytest.approx(dz, abs=0.3)
    assert effect.p == 1 / 10_001
    assert (effect.n_experiments, effect.n_trials, effect.n_dropped) == (100, 400, 0)
    assert effect.d_se == pytest.approx(sf.cohens_d_se(effect.d, 200, 200))
    swapped = sf.control_effect(low, high)
    assert swapped.d == pytest.approx(-effect.d) and swapped.dz == pytest.approx(-effect.dz)


def test_control_effect_drops_incomplete_pairs_and_counts_them():
    high = np.array([[1.0, 2.0], [NAN, 3.0], [NAN, 4.0]])
    low = np.array([[0.0, 0.0], [9.0, 1.0], [0.0, NAN]])  # complete differences: 1, 2 and 2
    effect = sf.control_effect(high, low)
    assert effect.dz == pytest.approx(sf.paired_dz(np.array([1.0, 2, 2])))
    assert effect.d == pytest.approx(sf.cohens_d(np.array([1.0, 2, 3]), np.array([0.0, 0, 1])))
    assert (effect.n_experiments, effect.n_trials, effect.n_dropped) == (2, 6, 6)
    assert effect.p == 2 / 4  # two experiments have four sign patterns


def test_the_flips_of_an_experiment_do_not_count_as_independent(rng):
    change = rng.normal(0.3, 1, (40, 1))
    twice = np.repeat(change, 2, axis=1)  # two flips with one result bring no further information
    single, doubled = sf.control_effect(change, 0 * change), sf.control_effect(twice, 0 * twice)
    assert doubled.p == pytest.approx(single.p)
    width = single.dz_high - single.dz_low
    assert doubled.dz_high - doubled.dz_low == pytest.approx(width, rel=0.1)
    assert (single.n_trials, doubled.n_trials) == (80, 160)


def test_control_effect_without_data_is_nan_not_zero():
    for scores in (np.empty((0, 2)), np.full((5, 2), NAN), np.ones((1, 1))):
        effect = sf.control_effect(scores, scores)
        assert np.isnan([effect.d, effect.d_se, effect.d_low, effect.dz, effect.dz_high, effect.p]).all()


def test_control_precision_by_hand():
    assert sf.control_precision(-3.0, np.array([1.0, -2.0, NAN])) == 2
    assert np.isnan(sf.control_precision(1.0, np.array([])))
    assert np.isnan(sf.control_precision(1.0, np.array([0.0, NAN])))


def test_neural_difference_cosine_by_hand():
    diff = np.array([[3.0, 8.0], [3.0, 0.0], [NAN, 0.0]])  # mean (3, 4)
    assert sf.neural_difference_cosine(diff, np.array([2.0, 0.0])) == pytest.approx(0.6)
    assert np.isnan(sf.neural_difference_cosine(diff[2:], np.array([2.0, 0.0])))
    assert np.isnan(sf.neural_difference_cosine(diff, np.zeros(2)))


# ---------------------------------------------------------------- report


def test_report_metrics_by_hand():
    p1 = np.array([[0.5, 0.9, NAN], [0.5, 0.2, 0.25]])
    labels = np.array([[1, 1, 1], [0, 1, 0]])
    got = sf.report_metrics(p1, labels)
    np.testing.assert_allclose(got["accuracy"], [0.5, 0.5, 1])
    np.testing.assert_allclose(got["cross_entropy"], [np.log(2), -np.log([0.9, 0.2]).mean(), -np.log(0.75)])
    np.testing.assert_allclose(got["balanced_accuracy"], [0.5, NAN, NAN])  # later one label is missing
    np.testing.assert_allclose(got["majority"], [0.5, 0.5, 0.75])
    assert got["n"].tolist() == [2, 2, 1]


def test_a_certain_wrong_answer_costs_a_finite_cross_entropy():
    got = sf.report_metrics(np.array([[1.0, 1.0]]), np.array([[1, 0]]))
    np.testing.assert_allclose(got["cross_entropy"], [0, -np.log(1e-12)])


def test_balanced_accuracy_ignores_how_common_a_label_is():
    labels = np.array([[1], [1], [1], [0]])
    always_one = np.full((4, 1), 0.9)
    assert sf.balanced_accuracy(always_one, labels) == 0.5
    assert sf.report_metrics(always_one, labels)["accuracy"] == 0.75


def test_majority_baseline_by_hand():
    # before each position: nothing (0.5), 1 (right), 11 (wrong), 110 -> 1 (wrong), 1100 is a tie (0.5)
    np.testing.assert_allclose(sf.majority_baseline(np.array([[1, 1, 0, 0, 1]])), [0.5, 1, 0, 0, 0.5])
