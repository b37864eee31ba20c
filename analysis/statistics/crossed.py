"""Means over experiments and sentences at once: intervals and tests that hold for new sentences.

Every experiment shows some of the same pool of sentences, so that two experiments are not independent: a
sentence that is easy is easy in all of them. Resampling experiments alone gives the accuracy on these
sentences; after 100 experiments its "95 %" interval holds the accuracy on new ones half of the time.

Shape letters: C cells, E experiments, K values of an experiment, G sentence groups. NaN: missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from analysis.statistics.intervals import MIN_EXPERIMENTS, share_ends, t_p, t_reach, tail_freedom
from analysis.statistics.moments import ratio


@dataclass(frozen=True)
class Estimates:
    """Estimates of C cells; every field but the last two is (C,)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    """95 % interval for new experiments and new sentences; NaN with fewer than 6 experiments."""
    p: np.ndarray
    """Two-sided, against ``null``; NaN with fewer than 6 experiments."""
    error: np.ndarray
    """Standard error."""
    df: np.ndarray
    """Its degrees of freedom."""
    between: np.ndarray
    """Part of the squared error that falls with the number of experiments."""
    shared: np.ndarray
    """Part of the squared error that stays, since experiments show the same sentences."""
    n_experiments: np.ndarray
    n_groups: np.ndarray
    n_values: np.ndarray
    by_experiment: Float[np.ndarray, "C E"]
    by_group: Float[np.ndarray, "C G"]
    """What each experiment and each sentence group adds to value minus truth."""


def crossed_mean(
    values: Float[np.ndarray, "C E K"],
    groups: Int[np.ndarray, "C E K"] | Int[np.ndarray, "E K"] | None = None,
    *,
    null: float = 0.0,
    share: bool = False,
) -> Estimates:
    """Return the mean of each cell, experiments weighing the same, with its two-way interval.

    The squared error has two parts (Cameron, Gelbach & Miller 2011; Moretti & Owen's pigeonhole model): the
    spread of the experiments' means, which falls with E, and the products of different experiments' values
    of one sentence group, which does not. Student's t has the degrees of freedom of their sum (Satterthwaite
    1946): E - 1 where experiments decide, the number of groups where sentences do; fewer with heavy tails.

    Assumptions: experiments, and sentence groups, are draws that do not depend on each other; values may
    have any distribution. Example of one cell, E = 2, K = 2, all groups different but that 0 is shown twice:

        values  [[1, 0], [1, 1]]    groups [[0, 1], [0, 2]]    mean of the means .5 and 1 is .75
        away, over E K = 4          [[.0625, -.1875], [.0625, .0625]]
        by experiment [-.125, .125]            between = 2 / (2 - 1) * 2 * .125^2 = .0625
        by group [.125, -.1875, .0625]         shared = 3 / (3 - 1) * 2 * .0625 * .0625 = .0117

    Simulated coverage: docs/statistics.md.

    Args:
        values: NaN where missing; they count within their experiment.
        groups: of the sentence behind each value, numbers from 0; None: all sentences are different.
        null: what the p-value tests.
        share: the values are shares of 0 to 1 such as right answers: the interval is made in logits.

    Raises:
        ValueError: the shapes do not fit.
    """
    values, groups = _checked(values, groups)
    known = np.isfinite(values)
    per_experiment = known.sum(axis=2)
    n = (per_experiment > 0).sum(axis=1)
    weights = np.where(known, 1 / (np.maximum(per_experiment, 1) * np.maximum(n, 1)[:, None])[..., None], 0.0)
    value = np.where(n > 0, (np.where(known, values, 0.0) * weights).sum(axis=(1, 2)), np.nan)
    away = np.where(known, values - value[:, None, None], 0.0) * weights  # (C, E, K)
    by_experiment = away.sum(axis=2)
    between = n * ratio((by_experiment**2).sum(axis=1), n - 1)
    by_group, shared, n_groups, n_shared = _group_sums(away, known, groups)
    shared = np.maximum(shared, 0.0)
    df = _freedom(between, shared, tail_freedom(by_experiment, n), n_shared)
    error = np.where(n >= 2, np.sqrt(between + shared), np.nan)
    counts = {"n_experiments": n, "n_groups": n_groups, "n_values": known.sum(axis=(1, 2))}
    low, high, p = _conclude(value, error, df, n, null, share)
    parts = {"between": between, "shared": shared, "by_experiment": by_experiment, "by_group": by_group}
    return Estimates(value=value, low=low, high=high, p=p, error=error, df=df, **parts, **counts)


def never_wrong(n: np.ndarray, level: float = 0.95) -> np.ndarray:
    """Return the lower end for a share of 1 in all of n experiments: the share^n that is (1 - level) / 2.

    Without a single failure the data have no spread; this is Clopper and Pearson's end for n trials, each
    experiment counted as one.
    """
    return ((1 - level) / 2) ** ratio(1.0, n)


def _conclude(
    value: np.ndarray, error: np.ndarray, df: np.ndarray, n: np.ndarray, null: float, share: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ends of the interval and the p-value."""
    reach, p = t_reach(df), t_p(value - null, error, df)
    # equal values differ from the null as often as all signs are equal, at best
    p = np.where((error == 0) & (value != null), 2.0 ** (1 - n.astype(np.float64)), p)
    low, high = value - reach * error, value + reach * error
    if share:
        same, (low, high) = error == 0, share_ends(value, error, reach)
        low = np.where(value >= 1, never_wrong(n), np.where(value <= 0, 0.0, np.where(same, value, low)))
        high = np.where(
            value <= 0, 1 - never_wrong(n), np.where(value >= 1, 1.0, np.where(same, value, high))
        )
    enough = n >= MIN_EXPERIMENTS
    low, high, p = (np.where(enough, part, np.nan) for part in (low, high, p))
    return low, high, p


def _freedom(
    between: np.ndarray, shared: np.ndarray, df_between: np.ndarray, n_shared: np.ndarray
) -> np.ndarray:
    """Return Satterthwaite's degrees of freedom of between + shared."""
    whole = between + shared
    parts = ratio(between**2, df_between) + np.where(shared > 0, shared**2 / np.maximum(n_shared - 1, 1), 0.0)
    return np.where(whole > 0, ratio(whole**2, parts), df_between)


def _group_sums(
    away: np.ndarray, known: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return sums (C, G) by group, the products of different experiments within groups (C,), and how many
    groups there are (C,), and are met by several experiments (C,)."""
    cells, experiments, _ = away.shape
    size = int(groups.max(initial=-1)) + 1
    cell = np.arange(cells)[:, None, None]
    place = (cell * size + groups)[known]
    by_group = np.bincount(place, away[known], cells * size).reshape(cells, size)
    # a group that one experiment shows twice: its own products are part of that experiment's spread
    inner = place * experiments + np.broadcast_to(np.arange(experiments)[:, None], away.shape)[known]
    met, member = np.unique(inner, return_inverse=True)
    within = np.bincount(member, away[known], len(met))
    owner = met // experiments
    own = np.bincount(owner // max(size, 1), within**2, cells)
    meetings = np.bincount(owner, minlength=cells * size).reshape(cells, size)
    n_groups, n_shared = (meetings > 0).sum(axis=1), (meetings > 1).sum(axis=1)
    shared = n_groups * ratio((by_group**2).sum(axis=1) - own, n_groups - 1)
    return by_group, np.where(n_shared > 0, shared, 0.0), n_groups, n_shared


def _checked(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 3:
        raise ValueError(f"values have shape {values.shape}: give (C, E, K)")
    if groups is None:
        groups = np.arange(values.shape[1] * values.shape[2]).reshape(values.shape[1:])
    groups = np.asarray(groups)
    if groups.shape not in (values.shape, values.shape[1:]) or (groups < 0).any():
        raise ValueError(f"groups have shape {groups.shape}: give numbers from 0, {values.shape[1:]} of them")
    return values, np.broadcast_to(groups, values.shape)


def auroc_values(
    positive: Float[np.ndarray, "*C P"], negative: Float[np.ndarray, "*C N"]
) -> tuple[Float[np.ndarray, "*C P"], Float[np.ndarray, "*C N"]]:
    """Return one value for each score, whose mean over all is the AUROC, for ``crossed_mean``.

    A positive's placement is the share of negatives below it, a negative's that of positives above it; ties
    count half (DeLong, DeLong & Clarke-Pearson 1988). A sentence moves the AUROC by its placement's distance
    from it: the values are AUROC + w (placement - AUROC), with w = (P + N) / P and (P + N) / N.
    """
    p, n = positive.shape[-1], negative.shape[-1]
    ranks = rankdata(np.concatenate([positive, negative], axis=-1), axis=-1)
    above = (ranks[..., :p] - rankdata(positive, axis=-1)) / n
    below = 1 - (ranks[..., p:] - rankdata(negative, axis=-1)) / p
    whole = above.mean(axis=-1, keepdims=True)
    return whole + (p + n) / p * (above - whole), whole + (p + n) / n * (below - whole)
