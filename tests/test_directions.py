"""The cosine of a mean change: unbiased by noise, its parts by loops, coverage."""

import itertools

import numpy as np
import pytest

from analysis.statistics.directions import _across, cosine_interval
from analysis.stats_fn import neural_difference_cosine
from tests import unchecked

NAN = np.nan


def moved(rng, experiments, cosine, size, dim=64, skewed=False):
    """Changes (E, D) whose true mean has this length and this cosine with the first coordinate."""
    noise = (rng.gamma(4, size=(experiments, dim)) - 4) / 2 if skewed else rng.normal(size=(experiments, dim))
    mean = np.zeros(dim)
    mean[:2] = size * cosine, size * np.sqrt(1 - cosine**2)
    return noise + mean


def axis(dim=64):
    return 3.0 * np.eye(dim)[0]  # its length does not matter


def test_the_value_is_that_of_products_of_different_experiments():
    changes = moved(np.random.default_rng(0), 7, 0.8, 3.0)
    pairs = [changes[i] @ changes[j] for i, j in itertools.permutations(range(7), 2)]
    found = cosine_interval(changes, axis())
    assert found.value == pytest.approx(changes[:, 0].mean() / np.sqrt(np.mean(pairs)))
    assert found.low < found.value < found.high and found.n_experiments == 7


def test_noise_does_not_shrink_the_cosine_as_it_shrinks_that_of_the_mean():
    rng = np.random.default_rng(1)
    studies = [moved(rng, 12, 0.9, 3.0, dim=576) for _ in range(200)]
    plain = np.median([neural_difference_cosine(study, axis(576)) for study in studies])
    unbiased = np.median([cosine_interval(study, axis(576)).value for study in studies])
    assert plain < 0.5 and unbiased == pytest.approx(0.9, abs=0.04)


def test_the_squared_length_and_its_variance_are_right_on_average():
    rng, n, cosine, size = np.random.default_rng(2), 10, 0.6, 2.0
    across = []
    for _ in range(3000):
        changes = moved(rng, n, cosine, size)[:, 1:]
        across.append(_across(changes @ changes.T))
    square, noise, slope = np.array(across).T
    truth = size**2 * (1 - cosine**2)
    assert square.mean() == pytest.approx(truth, abs=0.04)
    assert noise.mean() == pytest.approx(2 * 63 / (n * (n - 1)), rel=0.03)  # S is the identity
    # a part is not negative, so that their mean is a little too large
    assert square.var() < (noise + slope).mean() < 1.3 * square.var()


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("experiments", [6, 12, 30, 100])
@pytest.mark.parametrize("cosine, size", [(1.0, 2.0), (0.7, 2.0), (0.7, 5.0), (0.3, 5.0), (0.0, 2.0)])
def test_intervals_hold_the_true_cosine(cosine, size, experiments, skewed):
    rng, studies = np.random.default_rng([experiments, int(10 * cosine), skewed]), 400
    hits = 0
    for _ in range(studies):
        found = cosine_interval(moved(rng, experiments, cosine, size, skewed=skewed), axis())
        hits += found.low <= cosine <= found.high
    assert 0.93 - 0.025 <= hits / studies <= 0.985 + 0.015  # two standard errors and a half of 400 studies


def test_what_did_not_move_has_any_cosine():
    rng = np.random.default_rng(3)
    found = [cosine_interval(moved(rng, 12, 0.0, 0.0), axis()) for _ in range(100)]
    wide = [one.low < -0.8 and one.high > 0.8 for one in found]
    assert np.mean(wide) > 0.6
    assert np.mean([one.low < 0 < one.high for one in found]) > 0.9
    assert 0.3 < np.mean([np.isnan(one.value) for one in found]) < 0.7


def test_the_other_direction_has_the_opposite_cosine():
    changes = moved(np.random.default_rng(4), 9, 0.8, 3.0)
    there, back = cosine_interval(changes, axis()), cosine_interval(-changes, axis())
    assert there[:3] == pytest.approx((-back.value, -back.high, -back.low))


def test_rows_with_nan_and_few_experiments():
    changes = moved(np.random.default_rng(5), 9, 0.8, 3.0)
    changes[[1, 4]] = NAN
    found = cosine_interval(changes, axis())
    assert found == pytest.approx(cosine_interval(np.delete(changes, [1, 4], axis=0), axis()))
    few = cosine_interval(changes[:6], axis())
    assert few.n_experiments == 4 and np.isfinite(few.value) and np.isnan([few.low, few.high]).all()
    assert np.isnan(cosine_interval(changes[:1], axis()).value)
    assert np.isnan(cosine_interval(changes, 0 * axis()).value)


def test_changes_of_one_test_sentence_are_one():
    changes = moved(np.random.default_rng(6), 8, 0.8, 3.0)
    twice = cosine_interval(np.repeat(changes, 2, axis=0), axis(), np.repeat(np.arange(8), 2))
    once = cosine_interval(changes, axis())
    assert twice[:3] == pytest.approx(once[:3]) and twice.n_experiments == 16


def test_changes_without_noise_have_an_interval_without_width():
    found = cosine_interval(np.tile([3.0, 4.0, 0.0], (8, 1)), np.array([1.0, 0, 0]))
    assert found[:3] == pytest.approx((0.6, 0.6, 0.6), abs=1e-6)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"give \(E, D\) and \(D,\)"):
        unchecked(cosine_interval)(np.zeros((6, 3)), np.zeros(4))
