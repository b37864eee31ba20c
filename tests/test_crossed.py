"""Means over experiments and sentences: by hand, against plain loops, and coverage for new sentences."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis.statistics.crossed import auroc_values, crossed_mean
from analysis.statistics.intervals import jackknife_error, share_ends, t_p, t_reach, tail_freedom
from tests import unchecked

NAN = np.nan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- by hand and by loops


def test_the_example_of_the_docstring():
    found = crossed_mean(np.array([[[1.0, 0], [1, 1]]]), np.array([[0, 1], [0, 2]]))
    assert found.value == 0.75 and found.between == 0.0625
    assert found.shared == pytest.approx(1.5 * 2 * 0.0625**2)
    assert (found.n_experiments, found.n_groups, found.n_values) == (2, 3, 4)
    np.testing.assert_allclose(found.by_group, [[0.125, -0.1875, 0.0625]])


def test_without_shared_sentences_it_is_the_t_test_of_the_experiments_means(rng):
    values = rng.normal(0.3, 1, (5, 9, 4))
    found, means = crossed_mean(values), values.mean(axis=2)
    np.testing.assert_allclose(found.error, means.std(axis=1, ddof=1) / 3)
    t = stats.ttest_1samp(means, 0, axis=1)
    np.testing.assert_allclose(found.value / found.error, t.statistic)
    assert (found.shared == 0).all() and (found.df <= 8).all() and (found.df > 2).all()
    np.testing.assert_allclose(found.p, 2 * stats.t.sf(np.abs(t.statistic), found.df))
    np.testing.assert_allclose(found.high, found.value + stats.t.ppf(0.975, found.df) * found.error)


def plain_parts(values, groups):
    """The two parts of the squared error of one cell (E, K), value by value."""
    experiments, size = len(values), (np.isfinite(values)).sum(axis=1)
    value = np.mean([np.nanmean(row) for row in values])
    away = {
        (e, k): (values[e, k] - value) / (experiments * size[e])
        for e in range(experiments) for k in range(values.shape[1]) if np.isfinite(values[e, k])
    }  # fmt: skip
    rows = [sum(part for (e, _), part in away.items() if e == one) for one in range(experiments)]
    pairs = [
        a * b for (e, k), a in away.items() for (f, m), b in away.items()
        if e != f and groups[e, k] == groups[f, m]
    ]  # fmt: skip
    n = len({groups[place] for place in away})
    return experiments / (experiments - 1) * np.sum(np.square(rows)), n / (n - 1) * sum(pairs)


def test_both_parts_of_the_error_are_those_of_plain_loops_with_values_missing(rng):
    values, groups = rng.normal(size=(3, 7, 5)), rng.integers(8, size=(3, 7, 5))
    values += np.take_along_axis(rng.normal(size=(3, 8)), groups.reshape(3, -1), axis=1).reshape(3, 7, 5)
    values[rng.random(values.shape) < 0.2] = NAN
    found = crossed_mean(values, groups)
    for cell in range(3):
        between, shared = plain_parts(values[cell], groups[cell])
        assert found.between[cell] == pytest.approx(between)
        assert found.shared[cell] == pytest.approx(max(shared, 0))


def test_a_cell_does_not_depend_on_the_others_and_an_experiment_without_values_is_left_out(rng):
    values, groups = rng.normal(size=(4, 8, 3)), rng.integers(20, size=(8, 3))
    values[2, 5] = NAN
    whole = crossed_mean(values, groups)
    alone = crossed_mean(np.delete(values[2:3], 5, axis=1), np.delete(groups, 5, axis=0))
    for name in ("value", "low", "high", "p", "error", "df", "n_experiments", "n_groups", "n_values"):
        np.testing.assert_allclose(getattr(whole, name)[2:3], getattr(alone, name), err_msg=name)


def test_below_six_experiments_there_is_a_value_but_no_interval_and_no_p(rng):
    found = crossed_mean(rng.normal(size=(2, 5, 4)))
    assert np.isfinite(found.value).all()
    assert np.isnan([found.low, found.high, found.p]).all()
    assert np.isfinite(crossed_mean(rng.normal(size=(2, 6, 4))).low).all()


def test_always_right_has_the_interval_and_p_of_as_many_coins_as_experiments():
    found = crossed_mean(
        np.stack([np.ones((8, 5)), np.zeros((8, 5)), np.full((8, 5), 0.5)]), null=0.5, share=True
    )
    np.testing.assert_allclose(found.low, [0.025 ** (1 / 8), 0, 0.5])
    np.testing.assert_allclose(found.high, [1, 1 - 0.025 ** (1 / 8), 0.5])
    np.testing.assert_allclose(found.p, [2 / 2**8, 2 / 2**8, 1])
    exact = stats.binomtest(8, 8).proportion_ci(method="exact")
    assert found.low[0] == pytest.approx(exact.low)


def test_intervals_of_shares_stay_between_0_and_1(rng):
    right = (rng.random((50, 6, 4)) < 0.93).astype(float)
    found = crossed_mean(right, share=True)
    assert (found.low >= 0).all() and (found.high <= 1).all()
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="give"):
        unchecked(crossed_mean)(np.zeros(shape), np.zeros((3, 4), int))


# ---------------------------------------------------------------- parts


def test_the_jackknife_of_a_mean_is_its_standard_error(rng):
    x = rng.normal(size=(3, 12))
    left_out = (x.sum(axis=1, keepdims=True) - x) / 11
    error, df = jackknife_error(left_out, np.ones((3, 12), bool))
    np.testing.assert_allclose(error, x.std(axis=1, ddof=1) / np.sqrt(12))
    present = np.arange(12) < 7
    part = jackknife_error(np.where(present, left_out, 99.0), np.broadcast_to(present, (3, 12)))[0]
    np.testing.assert_allclose(part, jackknife_error(left_out[:, :7], np.ones((3, 7), bool))[0])


def test_heavy_tails_leave_fewer_degrees_of_freedom(rng):
    n = np.full(200, 50)
    center = lambda x: x - x.mean(axis=1, keepdims=True)  # noqa: E731
    normal, heavy = (
        tail_freedom(center(x), n) for x in (rng.normal(size=(200, 50)), rng.standard_t(3, (200, 50)))
    )
    assert 35 < normal.mean() <= 49 and heavy.mean() < 0.6 * normal.mean()
    assert tail_freedom(np.zeros((1, 6)), np.array([6])) == 5


def test_t_reach_and_p_are_scipys():
    assert t_reach(7.0) == pytest.approx(stats.t.ppf(0.975, 7))
    assert t_p(-2.0, 0.8, 7.0) == pytest.approx(2 * stats.t.sf(2.5, 7))
    assert t_p(0.0, 0.0, 7.0) == 1 and np.isnan(t_p(1.0, 0.0, 7.0)) and np.isnan(t_reach(NAN))


def test_ends_of_a_share_are_symmetric_in_logits_and_nan_at_its_bounds():
    low, high = share_ends(0.8, 0.05, 2.0)
    away = 2 * 0.05 / 0.16
    assert (np.log(low / (1 - low)), np.log(high / (1 - high))) == pytest.approx(
        (np.log(4) - away, np.log(4) + away)
    )
    assert np.isnan(share_ends(1.0, 0.0, 2.0)).all()


def test_auroc_values_have_the_auroc_as_mean_with_ties(rng):
    positive, negative = rng.integers(5, size=(4, 6)) + 1.0, rng.integers(5, size=(4, 9)) + 0.0
    one, zero = auroc_values(positive, negative)
    labels = np.repeat([1, 0], [6, 9])
    expected = [roc_auc_score(labels, np.concatenate(pair)) for pair in zip(positive, negative, strict=True)]
    np.testing.assert_allclose(np.concatenate([one, zero], axis=1).mean(axis=1), expected)
    np.testing.assert_allclose(one.mean(axis=1), expected)


def test_the_error_of_an_auroc_is_delongs(rng):
    """One experiment a sentence: DeLong's variance is that of placements, of each class by itself."""
    positive, negative = rng.normal(1, 1, 200), rng.normal(0, 1, 300)
    one, zero = auroc_values(positive, negative)
    found = crossed_mean(np.concatenate([one, zero])[None, :, None], share=True)
    placements = (one - found.value) * 200 / 500, (zero - found.value) * 300 / 500
    delong = placements[0].var(ddof=1) / 200 + placements[1].var(ddof=1) / 300
    assert found.error[0] == pytest.approx(np.sqrt(delong), rel=0.01)


# ---------------------------------------------------------------- coverage for new sentences


def right_answers(rng, cells, experiments, sentence_sd, skill=0.6, k=32, pool=600, group=2):
    """Answers (C, E, K) to sentences of a pool in pairs, whose difficulty is the same in all experiments."""
    hard = rng.normal(scale=sentence_sd, size=(cells, pool // group))
    rows = rng.random((cells, experiments, pool)).argpartition(k, axis=2)[..., :k] // group
    chance = skill + np.take_along_axis(hard, rows.reshape(cells, -1), axis=1).reshape(rows.shape)
    chance += rng.normal(scale=0.05, size=(cells, experiments, 1))
    return (rng.random(rows.shape) < chance).astype(float), rows


@pytest.mark.parametrize("sentence_sd", [0, 0.15, 0.3])
@pytest.mark.parametrize("experiments", [6, 12, 30])
def test_intervals_hold_the_accuracy_on_new_sentences(experiments, sentence_sd):
    rng, truth = np.random.default_rng(experiments), 0.6
    if sentence_sd == 0.3:  # chances are cut at 0 and 1
        far = truth + np.random.default_rng(1).normal(scale=np.hypot(0.3, 0.05), size=10**6)
        truth = np.clip(far, 0, 1).mean()
    found = [
        crossed_mean(*right_answers(rng, 100, experiments, sentence_sd), null=0.5, share=True)
        for _ in range(8)
    ]
    covered = np.concatenate([(one.low <= truth) & (truth <= one.high) for one in found]).mean()
    assert 0.93 - 0.02 <= covered <= 0.985 + 0.005  # 800 draws: two standard errors


def test_answers_that_depend_on_the_sentence_alone_are_no_effect_of_experiments():
    """A fixed answer to each sentence, right or wrong by chance: 30 experiments agree, sentences do not."""
    rng, pool, k = np.random.default_rng(2), 600, 200
    fixed = rng.integers(2, size=(150, pool)).astype(float)
    rows = rng.random((150, 30, pool)).argpartition(k, axis=2)[..., :k]
    values = np.take_along_axis(fixed, rows.reshape(150, -1), axis=1).reshape(rows.shape)
    crossed, alone = crossed_mean(values, rows, null=0.5), crossed_mean(values, null=0.5)
    assert (crossed.p < 0.05).mean() <= 0.08
    assert (alone.p < 0.05).mean() > 0.4  # what experiments alone would say
