"""Effects with intervals for new experiments and sentences: by loops, by hand, coverage."""

from dataclasses import fields

import numpy as np
import pytest
from scipy import stats
from scipy.special import gamma

from analysis.statistics.effects import Pairs, combined_effect, effects, hedges_correction, unit_labels
from tests.plain_statistics import plain_d, plain_dz, plain_sign_flip_p

NAN = np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def scores(rng, experiments, flips=2, cells=4, d=0.7, offset=0.0):
    """High and low (E, F, C) with an experiment effect shared by all trials."""
    shared = offset + rng.normal(size=(experiments, 1, cells))
    slope = rng.normal(scale=0.5, size=(experiments, 1, cells))
    noise = rng.normal(scale=0.7, size=(2, experiments, flips, cells))
    return shared + slope + noise[0] + d / 2, shared - slope + noise[1] - d / 2


def plain_interval(statistic, high, low, units, correction):
    """Jackknife over units and t, as slowly as it can be said."""
    names = sorted(set(units.tolist()))
    whole = statistic(high, low)
    without = np.array([statistic(high[units != name], low[units != name]) for name in names])
    n, pulls = len(names), without - without.mean()
    error = np.sqrt((n - 1) / n * (pulls**2).sum())
    kurtosis = (pulls**4).mean() / (pulls**2).mean() ** 2 * (n + 1) / (n - 1)
    reach = stats.t.ppf(0.975, np.clip(2 * (n - 1) / max(kurtosis - 1, 1e-9), 3, n - 1)) * error
    return correction * (whole - reach), correction * (whole + reach), error


STATISTICS = {
    "d": plain_d, "dz": lambda high, low: plain_dz(high - low),
    "change": lambda high, low: np.nanmean(high - low),
}  # fmt: skip


@pytest.mark.parametrize("flips", [1, 2, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_effects_equal_plain_loops_with_trials_missing(rng, flips, grouped):
    high, low = scores(rng, 14, flips)
    high[rng.random(high.shape) < 0.1] = NAN
    low[2, :, 1] = NAN
    groups = rng.integers(11, size=(14, 4)) if grouped else None
    found = effects(high, low, groups)
    for cell in range(4):
        one, other = high[..., cell], low[..., cell]
        complete = np.isfinite(one) & np.isfinite(other)
        kept = complete.any(axis=1)
        one, other = (np.where(complete, part, NAN)[kept] for part in (one, other))
        units = (groups[:, cell] if grouped else np.arange(14))[kept]
        for name, statistic in STATISTICS.items():
            correction = (
                1.0
                if name == "change"
                else getattr(found, f"{name}_hedges")[cell] / getattr(found, name)[cell]
            )
            expected = (statistic(one, other), *plain_interval(statistic, one, other, units, correction))
            got = [getattr(found, f"{name}{end}")[cell] for end in ("", "_low", "_high", "_error")]
            np.testing.assert_allclose(got, expected, rtol=1e-8, err_msg=f"{name} of cell {cell}")
        sums = np.array([np.nansum((one - other)[units == unit]) for unit in dict.fromkeys(units.tolist())])
        assert found.p[cell] == pytest.approx(plain_sign_flip_p(sums), abs=1e-3)
        counts = kept.sum(), 2 * complete.sum(), 2 * (~complete).sum(), len(sums)
        assert counts == tuple(
            getattr(found, name)[cell] for name in ("n_experiments", "n_trials", "n_dropped", "n_units")
        )


def test_hedges_correction_is_the_exact_one_and_that_of_a_paired_t_with_one_pair(rng):
    assert hedges_correction(10.0) == pytest.approx(gamma(5) / (np.sqrt(5) * gamma(4.5)))
    assert hedges_correction(200.0) == pytest.approx(1 - 3 / 799, abs=1e-5)
    assert np.isnan(hedges_correction(np.array([1.0, 0.5]))).all()
    high, low = scores(rng, 8, flips=1)
    found = effects(high, low)
    np.testing.assert_allclose(found.dz_hedges / found.dz, hedges_correction(7.0))


def test_the_corrected_effect_is_right_on_average_where_the_plain_one_is_too_large():
    rng = np.random.default_rng(1)
    for d in (0.5, 2.0):
        found = effects(*scores(rng, 6, cells=4000, d=d))
        truth = d / np.sqrt(1 + 0.25 + 0.49)
        assert abs(found.d_hedges.mean() / truth - 1) < 0.04 < found.d.mean() / truth - 1
        truth = d / np.sqrt(4 * 0.25 + 2 * 0.49)
        assert abs(found.dz_hedges.mean() / truth - 1) < 0.04 < found.dz.mean() / truth - 1


def test_the_papers_d_adds_the_pairs_of_an_experiment_first(rng):
    high, low = scores(rng, 9)
    high[3, 0, 0] = NAN  # the experiment has no sum in this cell
    found = effects(high, low)
    kept = np.delete(np.arange(9), 3)
    expected = plain_d(high[kept].sum(axis=1)[:, 0], low[kept].sum(axis=1)[:, 0])
    assert found.d_paper[0] == pytest.approx(expected)
    assert found.d_paper[1] == pytest.approx(plain_d(high.sum(axis=1)[:, 1], low.sum(axis=1)[:, 1]))
    assert found.d_paper_low[1] < found.d_paper[1] < found.d_paper_high[1]


def test_experiments_with_the_same_test_sentence_are_one_unit():
    labels = unit_labels(np.array([[5, 1], [7, 1], [5, 2], [7, 1]]), 4, 2)
    np.testing.assert_array_equal(labels, [[0, 1, 0, 1], [0, 0, 2, 0]])
    np.testing.assert_array_equal(unit_labels(None, 3, 2), [[0, 1, 2]] * 2)
    with pytest.raises(ValueError, match="give"):
        unit_labels(np.zeros(3), 4, 2)


def test_copies_of_an_experiment_tell_nothing_new_if_they_share_their_sentence(rng):
    high, low = scores(rng, 20)
    once = effects(high, low)
    twice = effects(np.repeat(high, 2, axis=0), np.repeat(low, 2, axis=0), np.repeat(np.arange(20), 2))
    for name in ("change_low", "change_high", "p", "n_units"):
        np.testing.assert_allclose(getattr(twice, name), getattr(once, name), atol=2e-3)
    as_if_new = effects(np.repeat(high, 2, axis=0), np.repeat(low, 2, axis=0))
    assert (as_if_new.change_error < 0.75 * once.change_error).all()


@pytest.mark.parametrize("offset", [1e3, 1e6])
def test_squares_do_not_cancel_far_from_zero(rng, offset):
    high, low = scores(rng, 30, offset=offset)
    far, near = effects(high, low), effects(high - offset, low - offset)
    for name in ("d", "d_low", "d_high", "dz", "dz_low", "dz_high"):
        np.testing.assert_allclose(getattr(far, name), getattr(near, name), rtol=1e-6, atol=1e-7)


def test_few_experiments_or_no_variance_have_no_interval(rng):
    found = effects(*scores(rng, 5))
    assert np.isfinite(found.d).all() and np.isnan([found.d_low, found.dz_high, found.change_low]).all()
    same = np.full((8, 2, 1), 0.1)
    found = effects(same + 0.3, same)
    assert np.isnan([found.d, found.dz, found.d_low, found.dz_low]).all()
    assert found.change == pytest.approx(0.3) and found.p == 2 / 2**8
    empty = effects(same * NAN, same)
    values = [getattr(empty, field.name) for field in fields(empty) if not field.name.startswith("n_")]
    assert np.isnan(values).all()


# ---------------------------------------------------------------- functions of several d


def test_a_combined_effect_is_the_plain_jackknife_of_the_combination(rng):
    high, low = scores(rng, 12)
    high[rng.random(high.shape) < 0.1] = NAN
    precision = lambda d: np.abs(d[:, 0]) / np.abs(d[:, 1:]).mean(axis=1)  # noqa: E731

    def plain(high, low):
        each = [np.isfinite(high[..., c]) & np.isfinite(low[..., c]) for c in range(4)]
        d = [plain_d(high[..., c][ok], low[..., c][ok]) for c, ok in enumerate(each)]
        return precision(np.array([d]))[0]

    value, low_end, high_end = combined_effect(high, low, precision)
    expected = plain_interval(plain, high, low, np.arange(12), 1.0)
    np.testing.assert_allclose([value, low_end, high_end], [plain(high, low), *expected[:2]], rtol=1e-9)


def test_a_combination_keeps_its_shape(rng):
    both = lambda d: d[:, :, None] - d[:, None]  # noqa: E731
    parts = combined_effect(*scores(rng, 10), both)
    assert [part.shape for part in parts] == [(4, 4)] * 3
    np.testing.assert_allclose([np.diag(part) for part in parts], 0, atol=1e-12)


# ---------------------------------------------------------------- coverage


def drawn(rng, kind, shape):
    """Numbers of mean 0 and variance 1: normal, or with a skewness of 1."""
    return rng.normal(size=shape) if kind == "normal" else (rng.gamma(4, size=shape) - 4) / 2


def study(rng, kind, d, experiments, cells, sentence_sd, pool=300):
    """High and low of variance 1 as of a study: level, slope and noise; sentences that move a slope."""
    part = lambda variance, flips=1: np.sqrt(variance) * drawn(rng, kind, (experiments, flips, cells))  # noqa: E731
    groups = rng.integers(pool, size=(experiments, cells))
    sentences = sentence_sd * drawn(rng, kind, (pool, cells))
    slope = part(0.2) + np.take_along_axis(sentences, groups, axis=0)[:, None]
    shared, noise = part(0.5), 0.3 - sentence_sd**2
    high, low = (shared + side * (d / 2 + slope) + part(noise, 2) for side in (1, -1))
    return high, low, groups


@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("experiments", [6, 12, 30, 100])
@pytest.mark.parametrize("d", [0.0, 0.5, 2.0])
def test_intervals_hold_the_true_effect_for_new_sentences(kind, experiments, d):
    """2,000 studies, their sentences with a standard deviation of 0.15: two standard errors are 1 point."""
    rng = np.random.default_rng([experiments, int(10 * d), kind == "normal"])
    high, low, groups = study(rng, kind, d, experiments, 2000, 0.15)
    pairs = Pairs(high, low, unit_labels(groups, experiments, 2000))
    truth = {"d": d, "dz": d / np.sqrt(4 * (0.2 + 0.0225) + 2 * (0.3 - 0.0225)), "change": d}
    for name, true in truth.items():
        found = getattr(pairs, name)()
        known = np.isfinite(found.low)
        covered = ((found.low <= true) & (true <= found.high))[known].mean()
        assert known.mean() > 0.99 and 0.93 - 0.01 <= covered <= 0.985 + 0.005, (name, covered)


def test_p_holds_its_level_if_experiments_share_test_sentences():
    high, low, groups = study(np.random.default_rng(3), "normal", 0.0, 12, 2000, 0.3, pool=10)
    alone, grouped = effects(high, low), effects(high, low, groups)
    assert (grouped.p < 0.05).mean() < 0.06 < (alone.p < 0.05).mean()
