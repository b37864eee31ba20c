"""Slow and plain versions of the statistics, one cell and one resample at a time, to test the fast ones."""

import itertools

import numpy as np
from scipy.special import ndtr, ndtri

NAN = np.nan


def plain_d(high, low):
    """Cohen's d of two samples of any shape, NaN left out."""
    high, low = (part[np.isfinite(part)] for part in (np.ravel(high), np.ravel(low)))
    if min(len(high), len(low)) < 2:
        return NAN
    square = ((high - high.mean()) ** 2).sum() + ((low - low.mean()) ** 2).sum()
    return _over(high.mean() - low.mean(), np.sqrt(square / (len(high) + len(low) - 2)), high)


def plain_dz(diff):
    """d_z of differences of any shape, NaN left out."""
    diff = np.ravel(diff)[np.isfinite(np.ravel(diff))]
    return _over(diff.mean(), diff.std(ddof=1), diff) if len(diff) > 1 else NAN


def _over(top, bottom, values):
    """top / bottom; NaN where ``bottom`` is what rounding leaves of equal values."""
    return top / bottom if bottom > 1e-12 * np.abs(values).max() else NAN


def plain_bca(statistic, *data, n_boot, seed, level=0.95):
    """BCa interval of ``statistic(*data)``: whole rows of the data are drawn together."""
    n = len(data[0])
    if n < 2:
        return NAN, NAN
    drawn = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    values = np.array([statistic(*(part[rows] for part in data)) for rows in drawn])
    pulls = np.array([statistic(*(np.delete(part, i, axis=0) for part in data)) for i in range(n)])
    pulls, whole = pulls.mean() - pulls, statistic(*data)
    values = values[np.isfinite(values)]
    if len(values) < 0.9 * n_boot:
        return NAN, NAN
    same = np.isclose(values, whole, rtol=1e-12, atol=1e-12 * np.sqrt(np.nan_to_num((pulls**2).sum())))
    below = ((values < whole) & ~same).sum() + same.sum() / 2
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if 0 < below < len(values) and (pulls**2).sum() > 0:
        bias, skew = ndtri(below / len(values)), (pulls**3).sum() / (6 * (pulls**2).sum() ** 1.5)
        z = bias + ndtri(tails)
        tails = ndtr(bias + z / (1 - skew * z))
    return tuple(np.quantile(values, tails))


def plain_sign_flip_p(diff, n_perm=10_000, seed=0):
    """Two-sided sign-flip p of (n,) differences, NaN left out; all patterns if there are at most n_perm."""
    diff = diff[np.isfinite(diff)]
    n = len(diff)
    if n < 2:
        return NAN
    reach = abs(diff.sum()) - 1e-12 * np.abs(diff).sum()
    if 2**n <= n_perm:
        return np.mean([abs(np.dot(signs, diff)) >= reach for signs in itertools.product((1, -1), repeat=n)])
    bits = np.random.default_rng(seed).integers(2, size=(n_perm, n))
    return (1 + sum(abs(np.dot(1 - 2 * row, diff)) >= reach for row in bits)) / (1 + n_perm)


def plain_effect(high, low, seed=0, n_boot=2000):
    """The fields of an Effect of one cell (E, F), as a dict."""
    complete = np.isfinite(high) & np.isfinite(low)
    kept = complete.any(axis=1)
    high, low = (np.where(complete, part, NAN)[kept] for part in (high, low))
    pairs = int(complete.sum())
    d, ends = plain_d(high, low), plain_bca(plain_d, high, low, n_boot=n_boot, seed=seed)
    dz_ends = plain_bca(plain_dz, high - low, n_boot=n_boot, seed=seed)
    return {
        "d": d, "d_low": ends[0], "d_high": ends[1],
        "d_se": np.sqrt(2 / pairs + d**2 / (4 * pairs)) if pairs > 1 else NAN,
        "dz": plain_dz(high - low), "dz_low": dz_ends[0], "dz_high": dz_ends[1],
        "p": plain_sign_flip_p(np.nansum(high - low, axis=1), seed=seed),
        "n_experiments": kept.sum(), "n_trials": 2 * pairs, "n_dropped": 2 * (~complete).sum(),
    }  # fmt: skip
