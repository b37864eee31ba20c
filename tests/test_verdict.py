"""Families of tests, what a design can see, numbers as text, and the three verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.statistics.crossed import crossed_mean
from analysis.statistics.effects import effects
from analysis.statistics.family import joint_normals, max_t, smallest_p
from analysis.statistics.numbers import number, p_value, with_interval
from analysis.statistics.power import (
    critical_t,
    critical_t_of_normal,
    detectable,
    experiments_needed,
)
from analysis.statistics.verdict import Evidence, verdict
from tests.plain_statistics import plain_sign_flip_p

NAN = math.nan


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- families by joint sign flips


def plain_max_t(changes):
    """Step-down max-T by all patterns, one row and one pattern at a time."""
    rows, n = changes.shape
    patterns = [1 - 2 * np.array([(i >> k) & 1 for k in range(n)]) for i in range(2**n)]
    size = [abs((signs * row).sum()) / np.sqrt((row**2).sum()) for signs in patterns for row in changes]
    drawn = np.array(size).reshape(len(patterns), rows)
    observed, p, least = drawn[0], np.empty(rows), 0.0
    for place, row in enumerate(np.argsort(-observed)):
        rest = np.argsort(-observed)[place:]
        least = max(least, (drawn[:, rest].max(axis=1) >= observed[row] - 1e-9).mean())
        p[row] = least
    return p


def test_max_t_is_that_of_plain_loops_over_all_patterns(rng):
    changes = rng.normal(0.4, 1, (5, 9)) * np.array([[1], [100], [0.01], [1], [1]])
    np.testing.assert_allclose(max_t(changes)[0], plain_max_t(changes))


def test_one_row_has_the_p_of_its_own_sign_flips(rng):
    row = rng.normal(0.5, 1, 11)
    assert max_t(row[None])[0][0] == pytest.approx(plain_sign_flip_p(row))


def test_the_size_of_a_rows_scores_does_not_matter_but_copies_of_a_row_cost_nothing(rng):
    changes = rng.normal(0.6, 1, (4, 10))
    p = max_t(changes)[0]
    np.testing.assert_allclose(max_t(changes * [[1], [50], [1e-3], [7]])[0], p)
    np.testing.assert_allclose(max_t(np.repeat(changes, 3, axis=0))[0], np.repeat(p, 3))


def test_rows_that_are_zero_by_construction_or_missing_are_no_tests(rng):
    changes = np.stack([np.zeros(10), np.full(10, NAN), rng.normal(1, 1, 10)])
    p, _ = max_t(changes)
    assert np.isnan(p[:2]).all() and p[2] == max_t(changes[2:])[0][0]
    nothing, critical = max_t(changes[:2])
    assert np.isnan(nothing).all() and np.isnan(critical)


def test_six_experiments_can_reach_significance_in_a_family_of_24_and_five_cannot(rng):
    changes = rng.normal(size=(24, 6))
    changes[0] += 66
    p, critical = max_t(changes)
    assert p[0] == 2 / 64 == smallest_p(6) and (p[1:] > 0.05).all() and critical < np.sqrt(6)
    p, critical = max_t(changes[:, :5])
    assert p[0] == 2 / 32 == smallest_p(5) and np.isnan(critical)
    assert smallest_p(100) == 1 / 20_001


def test_random_patterns_agree_with_all_of_them_and_do_not_depend_on_chunks(rng, monkeypatch):
    changes = rng.normal(0.3, 1, (6, 13))
    exact, critical = max_t(changes)
    drawn, other = max_t(changes, n_patterns=8000)
    np.testing.assert_allclose(drawn, exact, atol=0.02)
    assert other == pytest.approx(critical, abs=0.05)
    monkeypatch.setattr("analysis.statistics.family._CHUNK", 999)
    np.testing.assert_array_equal(max_t(changes, n_patterns=8000)[0], drawn)


def test_the_critical_value_parts_significant_rows_from_the_others(rng):
    changes = rng.normal(0.5, 1, (30, 12))
    p, critical = max_t(changes)
    size = np.abs(changes.sum(axis=1)) / np.sqrt((changes**2).sum(axis=1))
    first = p == p.min()  # step-down: the largest row is judged by the critical value of the whole family
    assert ((size >= critical)[first] == (p < 0.05)[first]).all()


@pytest.mark.parametrize("experiments", [6, 12, 30])
def test_a_family_without_effects_has_one_in_at_most_a_twentieth_of_studies(experiments):
    rng, studies, found = np.random.default_rng(experiments), 500, 0
    for _ in range(studies):
        rows = rng.normal(size=(8, experiments)) + rng.normal(size=experiments)
        found += np.nanmin(max_t(rows, n_patterns=2000)[0]) < 0.05
    assert found / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


# ---------------------------------------------------------------- families of crossed estimates


def answers(rng, rows, experiments, k=32, pool=300):
    """Answers (R, E, K) of rows that share their sentences: fixed answers and coins, half of each."""
    shown = rng.random((experiments, pool)).argpartition(k, axis=1)[:, :k]
    fixed = rng.integers(2, size=(rows, pool))
    coins = rng.integers(2, size=(rows, experiments, k))
    return np.where(rng.random(coins.shape) < 0.5, fixed[:, shown], coins).astype(float), shown


@pytest.mark.parametrize("experiments", [6, 12, 30])
def test_a_family_of_fixed_answers_has_an_effect_in_at_most_six_percent_of_studies(experiments):
    """The null of the paper's design: every experiment asks about the same pool of sentences."""
    rng, studies, found, alone = np.random.default_rng(experiments), 300, 0, 0
    for _ in range(studies):
        one = crossed_mean(*answers(rng, 6, experiments), null=0.5, share=True)
        found += joint_normals(one.p, one.by_experiment, one.by_group, n_draws=4000)[0].min() < 0.05
        alone += one.p.min() < 0.05
    assert found / studies <= 0.06 + 2 * np.sqrt(0.05 * 0.95 / studies)
    assert alone / studies > 0.12  # without the family


def test_equal_rows_keep_their_p_and_unrelated_rows_pay_for_each_other(rng):
    parts = rng.normal(size=(1, 10)), rng.normal(size=(1, 40))
    same = joint_normals(np.full(5, 0.02), *(np.repeat(part, 5, axis=0) for part in parts))[0]
    np.testing.assert_allclose(same, 0.02, atol=0.003)
    apart = joint_normals(np.full(5, 0.02), np.eye(5), np.zeros((5, 3)))[0]
    np.testing.assert_allclose(apart, 1 - 0.98**5, atol=0.006)


def test_a_row_without_p_is_no_test_and_no_row_gets_a_smaller_p(rng):
    p = np.array([0.001, NAN, 0.3])
    adjusted, critical = joint_normals(p, rng.normal(size=(3, 8)), rng.normal(size=(3, 9)))
    assert np.isnan(adjusted[1]) and (adjusted[[0, 2]] >= p[[0, 2]]).all()
    assert stats.norm.isf(0.025) <= critical <= stats.norm.isf(0.0125) + 0.03


# ---------------------------------------------------------------- power


def test_a_detectable_effect_is_found_in_eighty_percent_of_studies():
    rng, units = np.random.default_rng(4), 20
    wanted = detectable(1 / np.sqrt(units), units - 1, stats.t.ppf(0.975, units - 1))
    assert wanted == pytest.approx(0.66, abs=0.005)  # G*Power: 20 pairs, two-sided .05, power .8
    found = effects(rng.normal(wanted, 1, (units, 1, 3000)), np.zeros((units, 1, 3000))).p < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_a_detectable_effect_in_a_family_is_found_in_eighty_percent_of_families():
    rng, units, hits = np.random.default_rng(5), 12, []
    for _ in range(400):
        changes = rng.normal(size=(8, units))
        _, critical = max_t(changes, n_patterns=4096)
        changes[0] += detectable(1 / np.sqrt(units), units - 1, critical_t(critical, units))
        hits.append(max_t(changes, n_patterns=4096)[0][0] < 0.05)
    assert np.mean(hits) == pytest.approx(0.8, abs=0.06)


def test_critical_values_on_the_scale_of_t(rng):
    x = rng.normal(0.5, 1, 15)
    size = x.sum() / np.sqrt((x**2).sum())
    assert critical_t(size, 15) == pytest.approx(stats.ttest_1samp(x, 0).statistic)
    assert np.isnan(critical_t(4.0, 15)) and np.isnan(detectable(1.0, 5, critical_t(NAN, 6)))
    assert critical_t_of_normal(stats.norm.ppf(0.975), 9) == pytest.approx(stats.t.ppf(0.975, 9))


def test_as_many_experiments_as_said_decide_in_eighty_percent_of_studies():
    rng = np.random.default_rng(6)
    n = experiments_needed(0.5, between=1 / 10, shared=0.0, n=10, bound=0.2)
    found = stats.ttest_1samp(rng.normal(0.5, 1, (4000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03) and n == 34
    n = experiments_needed(0.0, between=1 / 10, shared=0.0, n=10, bound=0.4)
    x = rng.normal(0, 1, (4000, n))
    reach = stats.t.ppf(0.975, n - 1) * x.std(axis=1, ddof=1) / np.sqrt(n)
    inside = (np.abs(x.mean(axis=1)) + reach < 0.4).mean()
    assert 0.55 < inside < 0.85  # 80 % for each of the two ends


def test_shared_sentences_can_make_any_number_of_experiments_too_few():
    assert experiments_needed(0.1, 0.01, 0.01, 12, bound=0.2) is None
    assert experiments_needed(0.1, 0.01, 0.0, 12, bound=0.05) > 12
    assert experiments_needed(NAN, 0.01, 0.0, 12, bound=0.05) is None


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "numbers, text",
    [
        ((0.51, 0.2, 0.8), "0.51 [0.20, 0.80]"),
        ((0.0031, 0.0012, 0.005), "0.0031 [0.0012, 0.0050]"),
        ((0.004, 0.002, 0.5), "0.004 [0.002, 0.500]"),
        ((0.0003, -0.4, 0.5), "0.00 [-0.40, 0.50]"),
        ((-0.001, -0.4, 0.5), "0.00 [-0.40, 0.50]"),
        ((66.0, 60.0, 70.0), "66.00 [60.00, 70.00]"),
        ((0.0, 0.0, 0.0), "0 [0, 0]"),
        ((0.0031, NAN, NAN), "0.0031"),
        ((NAN, NAN, NAN), "-"),
    ],
)
def test_intervals_as_text(numbers, text):
    assert with_interval(*numbers) == text


def test_what_is_not_zero_never_reads_as_zero():
    for size in 10.0 ** -np.arange(0, 9):
        assert float(number(1.234 * size)) > 0
        ends = (
            with_interval(1.234 * size, 0.2 * size, 3 * size)
            .replace("[", "")
            .replace("]", "")
            .replace(",", "")
        )
        assert all(float(part) > 0 for part in ends.split())
    assert number(0.0) == "0" and number(-1e-30, digits=2) == "0.00"


def test_p_values_keep_the_digits_that_matter():
    assert [p_value(p) for p in (0.0004, 0.0316, 0.04996, 0.5, NAN)] == [
        "<0.001",
        "0.032",
        "0.04996",
        "0.500",
        "-",
    ]


# ---------------------------------------------------------------- verdicts


def evidence(**more):
    return Evidence(**{
        "value": 0.3, "low": -0.2, "high": 0.8, "p": 0.2, "experiments": 12, "bound": 0.2, "detectable": 0.9,
        "needed": 40, **more,
    })  # fmt: skip


@pytest.mark.parametrize(
    "case, kind, text, sentence",
    [
        (dict(low=0.1, p=0.01), "effect", "effect", "effect: d = 0.30 [0.10, 0.80], p = 0.010"),
        (
            dict(value=0.0031, low=0.0012, high=0.005, p=1e-5), "effect", "effect smaller than 0.20",
            "effect smaller than 0.20: d = 0.0031 [0.0012, 0.0050], p < 0.001",
        ),
        (
            dict(value=0.01, low=-0.1, high=0.12), "no effect", "no effect larger than 0.20",
            "no effect larger than 0.20: d = 0.01 [-0.10, 0.12]; 0.90 would have been seen (80 % power)",
        ),
        (
            dict(), "undecided", "undecided (40 experiments would decide)",
            "undecided: d = 0.30 [-0.20, 0.80]; 40 experiments would decide; "
            "0.90 would have been seen (80 % power)",
        ),
        (
            dict(needed=None), "undecided", "undecided",
            "undecided: d = 0.30 [-0.20, 0.80]; more experiments on these sentences would not decide; "
            "0.90 would have been seen (80 % power)",
        ),
        (
            dict(experiments=4, low=NAN, high=NAN), "undecided", "undecided (40 experiments would decide)",
            "undecided: d = 0.30; 4 experiments, an interval needs 6",
        ),
        (
            dict(smallest_p=2 / 32), "undecided", "undecided (40 experiments would decide)",
            "undecided: d = 0.30 [-0.20, 0.80]; this design cannot reach p < 0.05: its smallest p is 0.062",
        ),
        (
            dict(low=NAN, high=NAN, p=NAN), "undecided", "undecided (40 experiments would decide)",
            "undecided: d = 0.30; the data do not define an interval",
        ),
    ],
)  # fmt: skip
def test_each_verdict_and_its_sentence(case, kind, text, sentence):
    found = verdict(evidence(**case))
    assert (found.kind, found.text, found.sentence) == (kind, text, sentence)


def test_a_significant_p_without_family_or_interval_is_no_effect_claim():
    assert verdict(evidence(p=0.05)).kind == "undecided"
    assert verdict(evidence(p=NAN, low=0.1)).kind == "undecided"


def test_no_effect_is_wrong_in_at_most_a_twentieth_of_studies_with_an_effect_as_large_as_the_bound():
    rng, bound = np.random.default_rng(7), 0.2
    for experiments in (6, 12, 30, 100):
        high = rng.normal(bound, 0.5, (experiments, 2, 2000))
        found = effects(high, rng.normal(0, 0.5, high.shape))
        wrong = np.maximum(-found.change_low, found.change_high) < bound
        assert wrong.mean() <= 0.05
