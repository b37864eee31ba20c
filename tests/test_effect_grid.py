"""Effects of whole grids: equal to plain loops cell by cell, to scipy and to formulas by hand."""

from dataclasses import fields

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.grid import EffectGrid, combined_ci, effect_grid
from analysis.stats_fn import control_effect, control_precision
from tests import unchecked
from tests.plain_statistics import plain_bca, plain_d, plain_effect

NAN = np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def scores(rng, experiments, flips=2, cells=4, offset=0.0):
    """Return high and low (E, F, C), true d about 0.5, with an experiment effect shared by all trials."""
    shared = offset + rng.normal(size=(experiments, 1, 1))
    high, low = (shared + rng.normal(size=(experiments, flips, cells)) for _ in range(2))
    return high + 0.7, low


def assert_equals_the_plain_function(high, low, seed=3, n_boot=300):
    grid = effect_grid(high, low, seed=seed, n_boot=n_boot)
    for cell in range(high.shape[2]):
        plain = plain_effect(high[..., cell], low[..., cell], seed=seed, n_boot=n_boot)
        for name, expected in plain.items():
            np.testing.assert_allclose(
                getattr(grid, name)[cell], expected, rtol=1e-9, atol=1e-9, err_msg=f"{name} of cell {cell}"
            )
    return grid


# ---------------------------------------------------------------- against the plain functions


@pytest.mark.parametrize("flips", [1, 2, 3])
@pytest.mark.parametrize("experiments", [12, 40])  # p from all sign patterns, and from random ones
def test_a_grid_equals_the_plain_function_in_every_cell(rng, experiments, flips):
    grid = assert_equals_the_plain_function(*scores(rng, experiments, flips))
    assert np.isfinite([getattr(grid, field.name) for field in fields(EffectGrid)]).all()


def test_missing_trials_and_experiments_are_left_out_of_their_own_cell_only(rng):
    high, low = scores(rng, 24)
    high[rng.random(high.shape) < 0.1] = NAN
    low[rng.random(low.shape) < 0.1] = NAN
    high[:5, :, 0] = NAN  # cells that miss different experiments, and different numbers of them
    low[9:12, :, 1] = NAN
    high[20:, :, 2] = NAN
    low[0, 0, 3] = np.inf
    grid = assert_equals_the_plain_function(high, low)
    assert (grid.n_experiments[:3] <= [19, 21, 20]).all()
    assert (grid.n_trials + grid.n_dropped == 2 * 24 * 2).all()


def test_cells_with_equally_many_but_different_experiments_are_not_mixed(rng):
    high, low = scores(rng, 16, cells=2)
    high[0, :, 0] = high[7, :, 1] = NAN
    grid = assert_equals_the_plain_function(high, low)
    assert (grid.n_experiments == 15).all()


# whole numbers: the plain function tells equal resamples from the data by exact comparison, without tolerance
@pytest.mark.parametrize("flips", [1, 2])
@pytest.mark.parametrize("experiments", [0, 1, 2, 4])
def test_few_experiments_equal_the_plain_function(rng, experiments, flips):
    high, low = (rng.integers(9, size=(experiments, flips, 6)).astype(float) for _ in range(2))
    grid = assert_equals_the_plain_function(high, low)
    assert np.isnan(grid.p).all() == (experiments < 2)


@pytest.mark.parametrize("high", [0.3, 0.1])
def test_scores_without_variance_give_nan_as_the_plain_function_does(rng, high):
    low = np.full((12, 2, 2), 0.1)
    low[..., 1] = rng.normal(size=(12, 2))
    high = low + high  # differences are equal but for rounding; in cell 0 all scores are
    grid = assert_equals_the_plain_function(high, low)
    assert np.isnan(grid.d[0]) and np.isfinite(grid.d[1])
    assert np.isnan([grid.dz, grid.dz_low, grid.dz_high]).all()


def test_an_undefined_tenth_of_the_resamples_takes_the_interval_away():
    high, low = np.zeros((2, 12, 1, 3))
    high[:1, 0, 0] = 1  # 35 % of the resamples do not draw the only experiment that moves
    high[:2, 0, 1] = 1  # 11 %
    high[:3, 0, 2] = 1  # 3 %
    grid = effect_grid(high, low)
    plain = [control_effect(high[..., cell], low[..., cell]).dz_low for cell in range(3)]
    assert np.isnan(grid.dz_low).tolist() == np.isnan(plain).tolist() == [True, True, False]
    assert np.isfinite(grid.dz).all()


@pytest.mark.parametrize("offset", [1e-3, 1e3, 1e6])
def test_squares_do_not_cancel_far_from_zero(rng, offset):
    high, low = scores(rng, 30, offset=offset)
    grid, centred = effect_grid(high, low, n_boot=200), effect_grid(high - offset, low - offset, n_boot=200)
    for name in ("d", "d_low", "d_high", "dz", "dz_low", "dz_high"):
        np.testing.assert_allclose(getattr(grid, name), getattr(centred, name), rtol=1e-7, atol=1e-8)


def test_results_do_not_depend_on_the_chunks_or_on_the_other_cells(rng, monkeypatch):
    high, low = scores(rng, 20, cells=7)
    whole, one = effect_grid(high, low, n_boot=200), effect_grid(high[..., 4:5], low[..., 4:5], n_boot=200)
    monkeypatch.setattr("analysis.statistics.grid._CHUNK", 601)
    parts = effect_grid(high, low, n_boot=200)
    for field in fields(EffectGrid):
        np.testing.assert_allclose(getattr(parts, field.name), getattr(whole, field.name), atol=1e-12)
        np.testing.assert_allclose(getattr(one, field.name), getattr(whole, field.name)[4:5], atol=1e-12)


def test_without_intervals_everything_else_is_the_same(rng):
    high, low = scores(rng, 20)
    whole, fast = effect_grid(high, low, n_boot=100), effect_grid(high, low, intervals=False)
    for field in fields(EffectGrid):
        expected = NAN if field.name.endswith(("_low", "_high")) else getattr(whole, field.name)
        np.testing.assert_array_equal(getattr(fast, field.name), np.broadcast_to(expected, (4,)))


@pytest.mark.parametrize("experiments", [2, 3, 4, 5])
def test_intervals_do_not_depend_on_rounding_where_many_resamples_equal_the_data(rng, experiments):
    """With 2 experiments, half of the resamples are the data in another order; BCa counts those as ties."""
    high, low = scores(rng, experiments, cells=50)
    whole, scaled = (effect_grid(high * unit, low * unit, n_boot=500) for unit in (1, 0.37))
    for name in ("d_low", "d_high", "dz_low", "dz_high"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(whole, name), rtol=1e-6)


# ---------------------------------------------------------------- against scipy and by hand


def test_d_and_its_standard_error_by_hand():
    high, low = np.array([[3.0, 4], [5, NAN]]), np.array([[0.0, 1], [2, 99]])  # the pair with 99 is dropped
    grid = effect_grid(high[..., None], low[..., None])
    assert grid.d == pytest.approx(3.0)  # means 4 and 1, both variances 1
    assert grid.d_se == pytest.approx(np.sqrt(6 / 9 + 9 / 12))
    assert np.isnan(grid.dz)  # all three differences are 3
    assert (grid.n_experiments, grid.n_trials, grid.n_dropped) == (2, 6, 2)


def test_d_and_dz_are_scipys_t_statistics_over_root_n(rng):
    high, low = scores(rng, 15)
    grid, n = effect_grid(high, low, intervals=False), 30
    high, low = high.reshape(n, 4), low.reshape(n, 4)
    np.testing.assert_allclose(grid.d, stats.ttest_ind(high, low).statistic * np.sqrt(2 / n))
    np.testing.assert_allclose(grid.dz, stats.ttest_rel(high, low).statistic / np.sqrt(n))
    np.testing.assert_allclose(grid.d_se, np.sqrt(2 * n / n**2 + grid.d**2 / (4 * n)))


def test_p_is_scipys_exact_permutation_test_of_paired_samples(rng):
    high, low = scores(rng, 8)
    for cell, p in enumerate(effect_grid(high, low, intervals=False).p):
        pairs = high[..., cell].sum(axis=1), low[..., cell].sum(axis=1)
        exact = stats.permutation_test(
            pairs, lambda a, b, axis: (a - b).mean(axis=axis), vectorized=True,
            permutation_type="samples", n_resamples=np.inf,
        )  # fmt: skip
        assert p == pytest.approx(exact.pvalue)


# ---------------------------------------------------------------- functions of several d


def mean_size(d):
    return np.abs(d).mean(axis=1)


def precision(d):
    return np.abs(d[:, 0]) / np.abs(d[:, 1:]).mean(axis=1)


@pytest.mark.parametrize("combine", [mean_size, precision])
@pytest.mark.parametrize("share_missing", [0, 0.1])
def test_combined_ci_is_the_bootstrap_of_the_combined_effects(rng, combine, share_missing):
    high, low = scores(rng, 20)
    gaps = rng.random(high.shape) < share_missing
    high[gaps] = low[gaps] = NAN
    plain = plain_bca(
        lambda h, w: combine(np.array([[plain_d(h[..., c], w[..., c]) for c in range(4)]]))[0],
        high, low, seed=5, n_boot=400,
    )  # fmt: skip
    value, *ends = combined_ci(high, low, combine, seed=5, n_boot=400)
    assert value == pytest.approx(combine(effect_grid(high, low, intervals=False).d[None])[0])
    np.testing.assert_allclose(ends, plain, rtol=1e-9)


def test_combined_ci_of_one_cell_is_the_interval_of_its_d(rng):
    high, low = scores(rng, 20)
    grid, (d, d_low, d_high) = effect_grid(high, low), combined_ci(high, low, lambda d: d)
    np.testing.assert_allclose((d, d_low, d_high), (grid.d, grid.d_low, grid.d_high), rtol=1e-9)


def test_combined_ci_keeps_the_shape_of_the_statistic_and_its_chunks_do_not_matter(rng, monkeypatch):
    high, low = scores(rng, 20)
    both = lambda d: np.abs(d[:, :, None]) / np.abs(d[:, None])  # noqa: E731
    whole = combined_ci(high, low, both, n_boot=50)
    assert [part.shape for part in whole] == [(4, 4)] * 3
    np.testing.assert_allclose([np.diag(part) for part in whole], 1)
    monkeypatch.setattr("analysis.statistics.grid._CHUNK", 28)
    np.testing.assert_allclose(combined_ci(high, low, both, n_boot=50), whole)


def test_combined_ci_is_narrower_than_independent_cells_if_they_move_together(rng):
    high, low = scores(rng, 30, cells=1)
    twice = np.repeat(high, 2, axis=2), np.repeat(low, 2, axis=2)
    difference = combined_ci(*twice, lambda d: d[:, 0] - d[:, 1])
    np.testing.assert_allclose(difference, 0, atol=1e-12)


def test_combined_precision_is_the_plain_one_and_without_two_experiments_has_no_interval(rng):
    high, low = scores(rng, 3)
    high[1:] = NAN
    d = effect_grid(high, low).d
    value, *ends = combined_ci(high, low, precision)
    assert value == pytest.approx(control_precision(d[0], d[1:]))
    assert np.isnan(ends).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: unchecked(effect_grid)(np.zeros((3, 2)), np.zeros((3, 2))),
        lambda: unchecked(effect_grid)(np.zeros((3, 2, 4)), np.zeros((3, 2, 5))),
        lambda: effect_grid(np.zeros((3, 2, 4)), np.zeros((3, 2, 4)), n_boot=0),
        lambda: unchecked(combined_ci)(np.zeros((3, 2)), np.zeros((3, 2)), mean_size),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="give"):
        call()
