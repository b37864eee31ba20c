"""Tables of control: effects with their uncertainty, how specific they are, and where the states move.

Shape letters as in ``analysis.tables.series``. The independent sample is the experiment everywhere: intervals
resample experiments, and p values flip the signs of whole experiments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from analysis.axes.names import LR, axis_order, pc, pc_number
from analysis.statistics.grid import EffectGrid, combined_ci, effect_grid
from analysis.statistics.moments import nanmean
from analysis.statistics.resampling import bca_interval, mean_ci, times_drawn
from analysis.tables.read import ControlData
from analysis.tables.rows import Row, mean_known, with_q
from analysis.tables.series import ControlSeries

EFFECT_FIELDS = ("d", "d_low", "d_high", "d_se", "dz", "dz_low", "dz_high", "p")
GROUPS = {"LR": (LR,), "early PCs": (*map(pc, (1, 2, 4, 8)),), "late PCs": (*map(pc, (32, 128, 512)),)}
"""Axes whose effects are averaged in the figure over layers."""


# ---------------------------------------------------------------- effects


def control_table(data: ControlData, seed: int = 0) -> list[Row]:
    """Return one row per axis, layer, levels, mode and N: the effect on the targeted axis.

    Keys: axis, layer, levels, mode, n, d (unpaired Cohen's d, high minus low), d_low, d_high (95 % bootstrap
    CI), d_se (large-sample standard error, all trials taken as independent), dz, dz_low, dz_high (paired), p
    (sign flips over experiments), experiments, trials (in complete pairs), recorded and missing (trials),
    empty and cut (replies), copy_rate (mean over replies; NaN when inactive), q (Benjamini-Hochberg over the
    rows of this table).
    """
    return with_q([row for series in data.series for row in _series_rows(series, seed)])


def _series_rows(series: ControlSeries, seed: int) -> list[Row]:
    found = pair_effects(series.target.transpose(0, 3, 4, 1, 2), seed)
    rows = []
    for cell, (s, m) in enumerate(np.ndindex(len(series.shots), len(series.modes))):
        measured = {name: values[:, s, m] for name, values in series.measured.items()}
        rows.append({
            "axis": series.axis, "layer": series.layer, "levels": series.levels, "mode": series.modes[m],
            "n": int(series.shots[s]), **effect_row(found, cell),
            "recorded": int(np.isfinite(measured["empty"]).sum()),
            "missing": int(np.isnan(measured["empty"]).sum()),
            "empty": int(np.nansum(measured["empty"])), "cut": int(np.nansum(measured["cut"])),
            "copy_rate": mean_known(measured["copy_rate"]),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (series.modes.index(row["mode"]), row["n"]))


def pair_effects(scores: Float[np.ndarray, "E F W *cells"], seed: int = 0) -> EffectGrid:
    """Return the effect of wanting high over low in every cell, the cells flattened."""
    cells = scores.reshape(*scores.shape[:3], -1)
    return effect_grid(cells[:, :, 1], cells[:, :, 0], seed)


def effect_row(found: EffectGrid, cell: int) -> Row:
    """Return one cell of a grid as columns of a row."""
    values = {name: float(getattr(found, name)[cell]) for name in EFFECT_FIELDS}
    counts = {"experiments": int(found.n_experiments[cell]), "trials": int(found.n_trials[cell])}
    return {**values, **counts}


def layer_effects(series: ControlSeries, mode: str, seed: int = 0) -> list[Row]:
    """Return the effect at the largest N on the axis of the same name at every layer.

    Returns:
        L rows with the columns of an effect and ``layer_read``.
    """
    found = pair_effects(series.by_layer[:, -1, series.modes.index(mode)], seed)
    return [
        {"layer_read": int(layer), **effect_row(found, slot)} for slot, layer in enumerate(series.layers_read)
    ]


# ---------------------------------------------------------------- other axes


def affected_effects(chosen: Sequence[ControlSeries], mode: str, seed: int = 0) -> list[Row]:
    """Return the effect at the largest N on every axis that was scored, for every targeted axis.

    Returns:
        Rows with ``axis`` (targeted), ``affected``, ``n``, and the columns of an effect.
    """
    rows = []
    for series in (s for s in chosen if mode in s.modes):
        found = pair_effects(series.scores[:, -1, series.modes.index(mode)], seed)
        rows += [
            {"axis": series.axis, "affected": name, "n": int(series.shots[-1]), **effect_row(found, k)}
            for k, name in enumerate(series.affected)
        ]
    return rows


def matrix(
    rows: Iterable[Row], value: str = "d"
) -> tuple[list[str], list[str], Float[np.ndarray, "targets affected"]]:
    """Return targeted names, affected names, and the values of such rows, NaN where there is none."""
    rows = list(rows)
    targets = list(dict.fromkeys(row["axis"] for row in rows))
    affected = sorted({row["affected"] for row in rows}, key=axis_order)
    table = np.full((len(targets), len(affected)), np.nan)
    for row in rows:
        table[targets.index(row["axis"]), affected.index(row["affected"])] = row[value]
    return targets, affected, table


def precision_rows(series: ControlSeries, mode: str, seed: int = 0) -> list[Row]:
    """Return control precision at the largest N, |d on the target| / mean |d on axes|, in two variants.

    The axes of the mean are ``lr`` and the principal components that figures show: the other axes are either
    close to ``lr`` (meandiff, lr_ensemble) or not of the model's making (random, lr_shuffled). ``without
    target`` leaves the targeted axis out of the mean, ``with target`` includes it.
    """
    names = [name for name in series.affected if name == LR or pc_number(name) is not None]
    names = [series.axis, *(name for name in names if name != series.axis)]
    columns = [series.affected.index(name) for name in names]
    scores = series.scores[:, -1, series.modes.index(mode)][..., columns]

    def combine(d: Float[np.ndarray, "S K"]) -> Float[np.ndarray, "S 2"]:
        size = np.abs(d)
        total, others = size.sum(axis=1), size.shape[1] - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            without = size[:, 0] * others / (total - size[:, 0])
            return np.stack([without, size[:, 0] * (others + 1) / total], axis=1)

    value, low, high = combined_ci(scores[:, :, 1], scores[:, :, 0], combine, seed)
    about = {"axis": series.axis, "n": int(series.shots[-1]), "others": len(names) - 1}
    return [
        {**about, "variant": variant, "value": float(value[i]), "low": float(low[i]), "high": float(high[i])}
        for i, variant in enumerate(("without target", "with target"))
    ]


def group_rows(chosen: Sequence[ControlSeries], mode: str, seed: int = 0) -> list[Row]:
    """Return the mean d over the axes of each of GROUPS at the largest N, per targeted layer.

    Only experiments that all axes of the group have are used.
    """
    rows = []
    for layer in sorted({s.layer for s in chosen}):
        for group, names in GROUPS.items():
            members = [s for s in chosen if s.layer == layer and s.axis in names and mode in s.modes]
            shared = sorted(set.intersection(*(set(s.exps.tolist()) for s in members))) if members else []
            if not shared:
                continue
            parts = [s.target[np.searchsorted(s.exps, shared), -1, s.modes.index(mode)] for s in members]
            cells = np.stack(parts, axis=-1)  # (E, F, W, axes)
            found = combined_ci(cells[:, :, 1], cells[:, :, 0], lambda d: d.mean(axis=1), seed)
            value, low, high = (float(part) for part in found)
            rows.append({
                "group": group, "axes": len(members), "layer": layer, "experiments": len(shared),
                "n": int(members[0].shots[-1]), "value": value, "low": low, "high": high,
            })  # fmt: skip
    return rows


# ---------------------------------------------------------------- moves


def accumulation_rows(series: ControlSeries, mode: str) -> list[Row]:
    """Return the mean position on the target layer's axis at every layer, high and low wanted apart.

    The direction and its scale are those of the targeted layer at every layer that is read; each layer's own
    training mean is removed. At the largest N; both label assignments of an experiment are averaged first.

    Returns:
        Rows with layer_read, want (``high``, ``low``, ``difference``), value, low, high, experiments. Values
        are in standard deviations of the target layer's scores.
    """
    last = series.projection[:, -1, series.modes.index(mode)]  # (E, F, W, L)
    complete = np.isfinite(last).all(axis=2, keepdims=True)
    last = nanmean(np.where(complete, last, np.nan), 1)  # (E, W, L)
    parts = {"high": last[:, 1], "low": last[:, 0], "difference": last[:, 1] - last[:, 0]}
    rows = []
    for want, values in parts.items():
        mean, low, high, n = mean_ci(values)
        rows += [
            {
                "layer_read": int(layer), "want": want, "value": float(mean[i]), "low": float(low[i]),
                "high": float(high[i]), "experiments": int(n[i]),
            }
            for i, layer in enumerate(series.layers_read)
        ]  # fmt: skip
    return rows


def cosine_row(
    series: ControlSeries, mode: str, direction: Float[np.ndarray, " D"], seed: int = 0, n_boot: int = 2000
) -> Row:
    """Return the neural-difference cosine: between the mean change of the hidden state and the axis.

    Args:
        series: with ``differences`` (E, D) at the largest N.
        mode: ``active`` or ``inactive``.
        direction: of the targeted axis, unit length.

    Returns:
        axis, n, value, low, high (95 % BCa bootstrap over experiments), experiments.
    """
    moved = series.differences[mode].astype(np.float64)
    moved = moved[np.isfinite(moved).all(axis=1)]
    along, gram, n = moved @ direction, moved @ moved.T, len(moved)

    def cosine(times: np.ndarray) -> np.ndarray:
        """(1, S) of resamples ``times`` (E, S): the mean's length follows from the inner products."""
        length = np.sqrt(np.maximum((times * (gram @ times)).sum(axis=0), 0.0))
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((along @ times) / length)[None]

    whole = cosine(np.ones((n, 1)))[:, 0] if n else np.array([np.nan])
    low = high = np.array([np.nan])
    if n >= 2:
        low, high = bca_interval(cosine(times_drawn(n, n_boot, seed)), cosine(1 - np.eye(n)), whole)
    about = {"axis": series.axis, "n": int(series.shots[-1]), "experiments": n}
    return {**about, "value": float(whole[0]), "low": float(low[0]), "high": float(high[0])}
