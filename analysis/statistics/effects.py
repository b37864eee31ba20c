"""How far true scores follow the wanted ones: effects whose intervals hold for new experiments and sentences.

Shape letters: E experiments, F matched pairs of an experiment (label flips), C cells, U units. NaN stands for
a missing trial, and a result is NaN where the data do not define it.

A unit is an experiment, or all experiments whose test sentences are of one group: what is particular to a
sentence would make them agree. Without a unit, every sum is the whole less the unit's own: no resampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.special import gammaln

from analysis.statistics.intervals import MIN_EXPERIMENTS, MIN_UNITS, jackknife_error, t_reach
from analysis.statistics.moments import Moments, Sums, d_of, dz_of, experiment_sums, ratio
from analysis.statistics.signflips import sign_flip_ps


@dataclass(frozen=True)
class Effects:
    """The effect of wanting high over wanting low in each cell; every field is (C,)."""

    d: np.ndarray
    """Unpaired Cohen's d, one trial a sample."""
    d_hedges: np.ndarray
    """d without the part that it is too large by with few experiments."""
    d_low: np.ndarray
    d_high: np.ndarray
    """95 % interval around ``d_hedges``; NaN with fewer than 6 experiments or 4 units."""
    d_error: np.ndarray
    """Standard error of d."""
    dz: np.ndarray
    """Effect of the matched pairs, in standard deviations of their differences."""
    dz_hedges: np.ndarray
    dz_low: np.ndarray
    dz_high: np.ndarray
    dz_error: np.ndarray
    d_paper: np.ndarray
    """The paper's d: the F pairs of an experiment are added first, one experiment is one sample."""
    d_paper_low: np.ndarray
    d_paper_high: np.ndarray
    change: np.ndarray
    """Mean of high minus low."""
    change_low: np.ndarray
    change_high: np.ndarray
    change_error: np.ndarray
    df: np.ndarray
    """Degrees of freedom of ``change_error``."""
    p: np.ndarray
    """Two-sided sign-flip test of the change, the signs of whole units flipped."""
    n_units: np.ndarray
    n_experiments: np.ndarray
    """Experiments with at least one complete pair."""
    n_trials: np.ndarray
    """Trials that count, two in a pair."""
    n_dropped: np.ndarray
    """Trials left out because one of their pair is NaN, two in a pair."""


def effects(
    high: Float[np.ndarray, "E F C"],
    low: Float[np.ndarray, "E F C"],
    groups: Int[np.ndarray, "E C"] | Int[np.ndarray, " E"] | None = None,
    seed: int = 0,
) -> Effects:
    """Return how far true scores follow the wanted ones, in every cell.

    Intervals are a jackknife over units with Student's t, around Hedges' corrected value, as wide as the
    plain value's times the same correction: J (d +- t error). The correction (Hedges 1981) has the degrees of
    freedom of the deviation that d is measured in, so that it is right also where the pairs of an experiment
    repeat each other. Simulated coverage: docs/statistics.md.

    Args:
        high, low: scores when high / low was wanted, NaN where missing.
        groups: of the test sentence of each experiment; None: all are different.
        seed: of the sign patterns.

    Raises:
        ValueError: the shapes do not fit.
    """
    high, low = _checked(high, low)
    complete = np.isfinite(high) & np.isfinite(low)
    labels = unit_labels(groups, high.shape[0], high.shape[2])
    pairs = Pairs(high, low, labels)
    added = Pairs(high.sum(axis=1, keepdims=True), low.sum(axis=1, keepdims=True), labels)
    d, dz, change, paper = pairs.d(), pairs.dz(), pairs.change(), added.d()
    n_pairs = complete.sum(axis=(0, 1))
    return Effects(
        d.plain, d.value, d.low, d.high, d.error,
        dz.plain, dz.value, dz.low, dz.high, dz.error,
        paper.plain, paper.low, paper.high,
        change.value, change.low, change.high, change.error, change.df,
        sign_flip_ps(pairs.unit_changes(), seed=seed),
        n_units=pairs.present.sum(axis=1), n_experiments=pairs.n_experiments,
        n_trials=2 * n_pairs, n_dropped=2 * (~complete).sum(axis=(0, 1)),
    )  # fmt: skip


def combined_effect(
    high: Float[np.ndarray, "E F C"],
    low: Float[np.ndarray, "E F C"],
    combine: Callable[[np.ndarray], np.ndarray],
    groups: Int[np.ndarray, " E"] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a function of the d of several cells with its 95 % interval.

    The cells share their experiments, and a unit is left out of all of them at once: their d move together,
    as they do in the data.

    Args:
        high, low: scores when high / low was wanted, NaN where missing.
        combine: takes d (S, C) of S sets of data, NaN where undefined, and returns (S, ...), such as
            ``lambda d: np.abs(d).mean(axis=1)``. It treats every set on its own.
        groups: as for ``effects``, the same in all cells.

    Returns:
        The value, and the low and high end of its interval, each of the shape of ``combine`` without S;
        the ends are NaN with fewer than 6 experiments or 4 units.

    Raises:
        ValueError: the shapes do not fit.
    """
    high, low = _checked(high, low)
    pairs = Pairs(high, low, unit_labels(groups, high.shape[0], high.shape[2]))
    value = np.asarray(combine(d_of(pairs.high.whole(), pairs.low.whole())[None])[0])
    left_out = combine(d_of(pairs.high.without(), pairs.low.without()).T)  # (U, ...)
    flat = left_out.reshape(len(left_out), -1).T  # (M, U)
    present = np.broadcast_to(pairs.present.any(axis=0), flat.shape)
    found = _interval(value.reshape(-1), flat, present, np.asarray(pairs.n_experiments.max(initial=0)))
    return value, found.low.reshape(value.shape), found.high.reshape(value.shape)


# ---------------------------------------------------------------- units


def unit_labels(groups: np.ndarray | None, experiments: int, cells: int) -> Int[np.ndarray, "C E"]:
    """Return the unit of each experiment: the number of the first experiment of the same group.

    Raises:
        ValueError: groups are not (E,) or (E, C).
    """
    if groups is None:
        return np.broadcast_to(np.arange(experiments), (cells, experiments))
    groups = np.asarray(groups)
    if groups.shape not in ((experiments,), (experiments, cells)):
        raise ValueError(
            f"groups have shape {groups.shape}: give ({experiments},) or ({experiments}, {cells})"
        )
    columns = groups.T if groups.ndim == 2 else groups[None]
    first = (columns[:, :, None] == columns[:, None, :]).argmax(axis=2)
    return np.broadcast_to(first, (cells, experiments))


class _UnitSums(Sums):
    """Sums over the values of each unit; see ``Sums`` for their meaning."""

    def whole(self) -> Moments:
        """Return the moments (C,) of all units."""
        return Moments(*(part[:, 0] for part in self.moments(np.ones((self.n.shape[1], 1)))))

    def without(self) -> Moments:
        """Return the moments (C, U) without each unit: the sums of the others."""
        others = (part.sum(axis=1, keepdims=True) - part for part in (self.n, self.total, self.squares))
        return self.around_centre(*others)

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sums of squares (C,) of the units' means, and of the values around these means."""
        of_means = np.nan_to_num(ratio(self.total**2, self.n)).sum(axis=1)
        mean = np.nan_to_num(ratio(self.total.sum(axis=1) ** 2, self.n.sum(axis=1)))
        return np.maximum(of_means - mean, 0.0), np.maximum(self.squares.sum(axis=1) - of_means, 0.0)


@dataclass(frozen=True)
class _Found:
    """A statistic of C cells."""

    plain: np.ndarray
    value: np.ndarray
    """Corrected; the interval is around it."""
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    df: np.ndarray


class Pairs:
    """The complete pairs of each cell as sums over units, from which every effect and its error follow."""

    def __init__(self, high: np.ndarray, low: np.ndarray, labels: Int[np.ndarray, "C E"]) -> None:
        """Take (E, F, C) scores, NaN where missing."""
        high, low = (part.transpose(2, 0, 1) for part in (high, low))  # (C, E, F)
        complete = np.isfinite(high) & np.isfinite(low)
        parts = (high, low, high - low, high + low)
        self.high, self.low, self.changes, self.levels = (
            _gather(experiment_sums(part, complete), labels) for part in parts
        )
        self.present = self.high.n > 0
        """(C, U) units that count."""
        self.n_experiments = complete.any(axis=2).sum(axis=1)

    def unit_changes(self) -> Float[np.ndarray, "C U"]:
        """Return the sum of high minus low of each unit, NaN where it has no pair."""
        sums = self.changes
        return np.where(self.present, sums.n * np.nan_to_num(sums.centre) + sums.total, np.nan)

    def d(self) -> _Found:
        """Return Cohen's d: the mean change in standard deviations of a score."""
        freedom = self._freedom(self.changes, self.levels)
        left_out = d_of(self.high.without(), self.low.without())
        return _interval(
            d_of(self.high.whole(), self.low.whole()), left_out, self.present, self.n_experiments, freedom
        )

    def dz(self) -> _Found:
        """Return d_z: the mean change in standard deviations of a change."""
        freedom = self._freedom(self.changes)
        return _interval(
            dz_of(self.changes.whole()),
            dz_of(self.changes.without()),
            self.present,
            self.n_experiments,
            freedom,
        )

    def change(self) -> _Found:
        """Return the mean change."""
        mean, left_out = self.changes.whole().mean, self.changes.without().mean
        return _interval(mean, left_out, self.present, self.n_experiments)

    def _freedom(self, *parts: _UnitSums) -> np.ndarray:
        """Return the degrees of freedom (C,) of the sum of the parts' variances (Satterthwaite 1946).

        A part has units - 1 degrees between units and values - units within them; changes and levels of the
        same pairs do not depend on each other.
        """
        units, values = self.present.sum(axis=1), self.high.n.sum(axis=1)
        whole, bottom = np.zeros(len(units)), np.zeros(len(units))
        for part in parts:
            # a change or level has twice the variance of a score, in every part alike
            for square, freedom in zip(part.spread(), (units - 1, values - units), strict=True):
                whole = whole + square
                bottom = bottom + np.nan_to_num(ratio(square**2, freedom))
        return ratio(whole**2, bottom)


def _gather(sums: Sums, labels: Int[np.ndarray, "C E"]) -> _UnitSums:
    """Return the sums of experiments (C, E) as sums of the units that they belong to."""
    cells, experiments = labels.shape
    place = (labels + experiments * np.arange(cells)[:, None]).ravel()

    def add(part: np.ndarray) -> np.ndarray:
        return np.bincount(place, part.ravel(), cells * experiments).reshape(cells, experiments)

    return _UnitSums(add(sums.n), sums.centre, add(sums.total), add(sums.squares))


def _interval(
    plain: np.ndarray,
    left_out: np.ndarray,
    present: np.ndarray,
    n_experiments: np.ndarray,
    freedom: np.ndarray | None = None,
) -> _Found:
    """Return a jackknife interval, times Hedges' correction for ``freedom``."""
    error, df = jackknife_error(left_out, present)
    correction = np.ones(plain.shape) if freedom is None else hedges_correction(freedom)
    enough = (n_experiments >= MIN_EXPERIMENTS) & (present.sum(axis=1) >= MIN_UNITS)
    reach = np.where(enough, t_reach(df) * error, np.nan)
    low, high = correction * (plain - reach), correction * (plain + reach)
    return _Found(plain, correction * plain, low, high, error, df)


def hedges_correction(df: ArrayLike) -> np.ndarray:
    """Return what an effect in estimated standard deviations must be multiplied by (Hedges 1981).

    The exact one, gamma(df / 2) / (sqrt(df / 2) gamma((df - 1) / 2)), is near 1 - 3 / (4 df - 1). NaN where
    df is not above 1.
    """
    df = np.asarray(df, dtype=np.float64)
    df = np.where(df > 1, df, np.nan)
    return np.asarray(np.exp(gammaln(df / 2) - np.log(np.sqrt(df / 2)) - gammaln((df - 1) / 2)))


def _checked(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high, low = np.asarray(high, dtype=np.float64), np.asarray(low, dtype=np.float64)
    if high.shape != low.shape or high.ndim != 3:
        raise ValueError(f"scores have shapes {high.shape} and {low.shape}: give (E, F, C) and (E, F, C)")
    return high, low
