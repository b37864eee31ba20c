"""What probes say before and under control, as rows and as text; see probes.py for the conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from analysis.base.progress import bar
from analysis.results.store import read
from analysis.statistics.moments import ratio
from analysis.statistics.resampling import bootstrap_ci, mean_ci
from analysis.statistics.signflips import sign_flip_p
from analysis.stats_fn import benjamini_hochberg
from analysis.studies.evasion.probes import (
    CONDITIONS,
    Probe,
    auroc,
    fit_probes,
    probe_scores,
    smallest_fpr,
    threshold_at,
    tpr_at,
)
from analysis.studies.evasion.stage import EvasionStage
from analysis.tables.text import interval, show_p, text_table

Row = dict[str, Any]
Pair = tuple[np.ndarray, np.ndarray]
"""Scores of class 1 and of class 0, each (E, G, P)."""


def judge(stage: EvasionStage) -> dict[tuple[str, str], Judged]:
    """Fit the probes and return what each says, by (probe, scope)."""
    study, plan, trials = stage.study, stage.plan, stage.trials
    hidden: dict[int, np.ndarray] = {}
    probes: dict[int, dict[str, Probe]] = {}
    for layer in bar(plan.layers, desc="fitting probes", unit="layer"):
        hidden[layer] = states = read(study.store.hidden(layer), study.identity)["hidden"]
        fitting = states[study.axis_rows], trials.classes[study.axis_rows]
        probes[layer] = fit_probes(*fitting, study.axes(layer), study.settings.seed)
    whole = probe_scores(probes, hidden, plan.layer)
    parts: dict[str, list[dict[tuple[str, str], np.ndarray]]] = {"pooled": [], "written": []}
    tests = []
    for record in stage.records():
        tests.append(record["tests"])
        for name, scores in parts.items():
            by_layer = {layer: record[name][..., i, :] for i, layer in enumerate(plan.layers)}
            scores.append(probe_scores(probes, by_layer, plan.layer))
    rows = study.trial_rows
    return {
        key: Judged(
            scores[rows], trials.classes[rows], scores[np.array(tests)],
            *(np.stack([found[key] for found in parts[name]]) for name in parts),
        )
        for key, scores in whole.items()
    }  # fmt: skip


# ---------------------------------------------------------------- one probe


@dataclass(frozen=True)
class Judged:
    """What one probe says."""

    original: np.ndarray
    """(B,) the trial half as it is."""
    labels: np.ndarray
    """(B,) 0 or 1."""
    before: np.ndarray
    """(E, 2, P) the test sentences as they are, class 0 then class 1."""
    control: np.ndarray
    """(E, F, W, 2, P) the same sentences under control."""
    written: np.ndarray
    """(E, F, W, R) sentences that the model wrote, NaN for empty replies."""

    @property
    def threshold(self) -> float:
        """Score with 1 % false positives, or the fewest resolvable, among the original class-0 sentences."""
        negative = self.original[self.labels == 0]
        return float(threshold_at(negative, smallest_fpr(len(negative))))

    def conditions(self) -> dict[str, Pair]:
        """Return the scores of class 1 and class 0 in every condition, see CONDITIONS."""
        zero, one = self.control[..., 0, :], self.control[..., 1, :]  # (E, F, W, P)
        experiments, flips, sides, size = one.shape
        both = experiments, flips * sides, size
        return {
            "before": (self.before[:, 1, None], self.before[:, 0, None]),
            "neutral": (one.reshape(both), zero.reshape(both)),
            "evasion": (one[:, :, 0], zero[:, :, 1]),
            "amplification": (one[:, :, 1], zero[:, :, 0]),
        }


def probe_rows(judged: Judged, seed: int = 0) -> list[Row]:
    """Return every number of one probe.

    Returns:
        Rows with metric, condition, against, value, low, high (95 %), p, experiments, positives, negatives,
        fpr and empty. Without ``against`` the value is that of the condition; with it, it is ``against``
        minus the condition, paired by experiment. Metrics:
        ``auroc``: mean over an experiment's groups, the label flips (and for neutral the requests);
        ``tpr``, ``alarms``, ``detected``: share of class 1, of class 0 and of written sentences above the
        threshold of the original class-0 sentences; ``tpr_own``: share of class 1 of all experiments together
        above a threshold from the condition's own class-0 sentences.
    """
    pairs = judged.conditions()
    n = int((judged.labels == 0).sum())
    fixed = {"negatives": n, "fpr": smallest_fpr(n)}
    values = {
        "auroc": {name: auroc(*pair).mean(axis=1) for name, pair in pairs.items()},
        "tpr": {name: _above(one, judged.threshold) for name, (one, _) in pairs.items()},
        "alarms": {name: _above(zero, judged.threshold) for name, (_, zero) in pairs.items()},
    }
    rows = original_rows(judged, seed)
    for metric, by_condition in values.items():
        at = {} if metric == "auroc" else fixed
        for row in _condition_rows(by_condition, metric, seed):
            one, zero = pairs[row["condition"]]
            rows.append({**row, "positives": one.size, "negatives": zero.size, **at})
    return [*rows, *_own_rows(pairs, seed), *({**row, **fixed} for row in _written_rows(judged, seed))]


def _above(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return (E,) the share of an experiment's scores above the threshold, NaN left out."""
    flat = scores.reshape(len(scores), -1)
    known = np.isfinite(flat)
    return ratio((known & (flat > threshold)).sum(axis=1), known.sum(axis=1))


def original_rows(judged: Judged, seed: int = 0, n_boot: int = 1000) -> list[Row]:
    """Return AUROC and TPR on the whole trial half; intervals draw sentences within each class."""
    zero, one = (judged.original[judged.labels == label] for label in (0, 1))
    fpr = smallest_fpr(len(zero))
    about, rows = {"condition": "original", "against": "", "positives": len(one), "negatives": len(zero)}, []
    for metric, statistic in (("auroc", auroc), ("tpr", lambda a, b: tpr_at(a, b, fpr))):
        ends = bootstrap(
            (one, zero), lambda a, b, axis, of=statistic: of(a, b), n_resamples=n_boot, batch=100,
            method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        at = {"fpr": fpr} if metric == "tpr" else {}
        value, low, high = map(float, (statistic(one, zero), ends.low, ends.high))
        rows.append({"metric": metric, **about, **at, "value": value, "low": low, "high": high})
    return rows


def _condition_rows(by_condition: Mapping[str, np.ndarray], metric: str, seed: int) -> list[Row]:
    """Return the mean over experiments of (E,) per condition, and of the paired differences."""
    rows = [_mean_row(metric, name, "", values, seed) for name, values in by_condition.items()]
    compared = [(name, "before") for name in CONDITIONS[1:]] + [(name, "neutral") for name in CONDITIONS[2:]]
    for name, against in compared:
        rows.append(_mean_row(metric, name, against, by_condition[against] - by_condition[name], seed))
    return rows


def _mean_row(metric: str, condition: str, against: str, values: np.ndarray, seed: int) -> Row:
    mean, low, high, n = (part.item() for part in mean_ci(values, seed=seed))
    row = {"metric": metric, "condition": condition, "against": against, "experiments": n}
    p = sign_flip_p(values, seed=seed) if against else np.nan
    return {**row, "value": mean, "low": low, "high": high, "p": p}


def _own_rows(pairs: Mapping[str, Pair], seed: int) -> list[Row]:
    """Return TPR at the condition's own threshold, at one FPR that the fewest negatives resolve."""
    fpr = smallest_fpr(min(zero.size for _, zero in pairs.values()))

    def own(one: np.ndarray, zero: np.ndarray) -> np.ndarray:
        return tpr_at(one.reshape(len(one), -1), zero.reshape(len(zero), -1), fpr)

    rows = []
    for name, (one, zero) in pairs.items():
        about = {
            "metric": "tpr_own", "condition": name, "experiments": len(one), "positives": one.size,
            "negatives": zero.size, "fpr": fpr,
        }  # fmt: skip
        ends = bootstrap_ci(own, one, zero, seed=seed)
        value = float(own(one[None], zero[None])[0])
        rows.append({**about, "against": "", "value": value, "low": ends[0], "high": ends[1]})
        if name != "before":
            first = pairs["before"]
            ends = bootstrap_ci(lambda a, b, c, d: own(a, b) - own(c, d), *first, one, zero, seed=seed)
            change = float(own(first[0][None], first[1][None])[0]) - value
            rows.append({**about, "against": "before", "value": change, "low": ends[0], "high": ends[1]})
    return rows


def _written_rows(judged: Judged, seed: int) -> list[Row]:
    """Return the share of written sentences that are detected, by the side that was asked for."""
    low, high = (_above(judged.written[:, :, side], judged.threshold) for side in (0, 1))
    rows = [
        _mean_row("detected", "written low", "", low, seed),
        _mean_row("detected", "written high", "", high, seed),
        _mean_row("detected", "written low", "written high", high - low, seed),
    ]
    empty = int(np.isnan(judged.written).sum())
    about = {"positives": judged.written[:, :, 0].size, "empty": empty}
    return [{**row, **about} for row in rows]


# ---------------------------------------------------------------- all probes


def evasion_rows(judged: Mapping[tuple[str, str], Judged], seed: int = 0) -> list[Row]:
    """Return the rows of every (probe, scope) with q: Benjamini-Hochberg over the probes of a comparison."""
    rows = [
        {"probe": probe, "scope": scope, **row}
        for (probe, scope), one in judged.items()
        for row in probe_rows(one, seed)
    ]
    comparisons: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["against"] and "p" in row:
            comparisons.setdefault((row["metric"], row["condition"], row["against"]), []).append(row)
    for family in comparisons.values():
        adjusted = benjamini_hochberg(np.array([row["p"] for row in family]))
        for row, q in zip(family, adjusted.tolist(), strict=True):
            row["q"] = q
    return rows


# ---------------------------------------------------------------- as text


def evasion_tables(rows: Sequence[Row]) -> str:
    """Return the text tables: AUROC, its changes with p and q, detection rates, written sentences."""
    probes = list(dict.fromkeys((row["probe"], row["scope"]) for row in rows))
    names = [f"{probe}, {scope}" for probe, scope in probes]
    asked = [
        ("evasion", "before"),
        ("evasion", "neutral"),
        ("amplification", "neutral"),
        ("neutral", "before"),
    ]
    conditions = ("original", *CONDITIONS)
    parts = [_levels("AUROC", names, [pick(rows, "auroc", name) for name in conditions], conditions)]
    for metric, title in (("auroc", "AUROC"), ("tpr", "detection")):
        for condition, against in asked:
            changes = pick(rows, metric, condition, against)
            parts.append(_changes(f"{title}: {against} - {condition}", names, changes))
    fixed, own = pick(rows, "tpr", "original")[0], pick(rows, "tpr_own", "before")[0]
    title = f"class 1 detected, {_at(fixed['fpr'])} of {fixed['negatives']} original class-0 sentences above"
    parts.insert(1, _levels(title, names, [pick(rows, "tpr", name) for name in conditions], conditions))
    title = "class 0 detected at this threshold"
    parts.insert(2, _levels(title, names, [pick(rows, "alarms", name) for name in CONDITIONS], CONDITIONS))
    title = (
        f"class 1 detected, {_at(own['fpr'])} of the condition's own class 0 above (from {own['negatives']})"
    )
    parts.insert(3, _levels(title, names, [pick(rows, "tpr_own", name) for name in CONDITIONS], CONDITIONS))
    sides = ("written low", "written high")
    parts.append(_levels("written, detected", names, [pick(rows, "detected", side) for side in sides], sides))
    parts.append(_changes("written: high - low", names, pick(rows, "detected", *sides)))
    smallest = 2 / 2 ** pick(rows, "auroc", "evasion")[0]["experiments"]
    parts.append(
        f"Smallest p that so many experiments allow: {show_p(smallest)}. Intervals of fewer than about 12 "
        "experiments are too narrow: judge by p and q."
    )
    return "\n\n".join(parts)


def _levels(title: str, names: Sequence[str], columns: Iterable[Sequence[Row]], header: Sequence[str]) -> str:
    cells = [[_interval(row) for row in column] for column in columns]
    lines = [list(line) for line in zip(names, *cells, strict=True)]
    return f"{title}\n{text_table(['probe', *header], lines)}"


def _changes(title: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [
        [name, _interval(row), show_p(row["p"]), show_p(row["q"]), _verdict(row)]
        for name, row in zip(names, rows, strict=True)
    ]
    return f"{title}\n{text_table(['probe', 'difference', 'p', 'q', ''], lines)}"


def _verdict(row: Row) -> str:
    if not row["q"] < 0.05:
        return "no detectable effect"
    return "falls" if row["value"] > 0 else "rises"


def _interval(row: Row) -> str:
    rounded = {key: round(row[key], 3) + 0.0 for key in ("value", "low", "high")}  # + 0.0: -0.0 becomes 0.0
    return interval({"v": rounded["value"], "v_low": rounded["low"], "v_high": rounded["high"]}, "v", 3)


def _at(fpr: float) -> str:
    exact = fpr <= 0.01
    return f"{100 * fpr:.3g} %" if exact else f"{100 * fpr:.3g} % (the fewest resolvable, not 1 %)"


def pick(rows: Sequence[Row], metric: str, condition: str, against: str = "") -> list[Row]:
    """Return the row of every probe for one number."""
    key = metric, condition, against
    return [row for row in rows if (row["metric"], row["condition"], row["against"]) == key]
