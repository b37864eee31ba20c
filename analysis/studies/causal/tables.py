"""What the causal studies found, from experiments on disk to rows and to text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from analysis.statistics.resampling import MeanCI, mean_ci
from analysis.statistics.signflips import sign_flip_p
from analysis.stats_fn import benjamini_hochberg, control_effect
from analysis.studies.causal.experiment import ARMS, MAPPINGS, SIGNS
from analysis.tables.text import interval, show_p, text_table

Row = dict[str, Any]
ALPHA = 0.05
"""A q, or where there is one test a p, below this counts as an effect."""
NULL = "no detectable effect"
RESULTS = {"accuracy": "accuracy", "pairs": "pairs right", "code": "code d_z", "pull": "pull d_z"}
SHARES = ("accuracy", "pairs")
ASSIGNMENTS = ("labels as is", "labels flipped")
"""Of digits to sides in a steering curve, in the order of ``lean``."""


def stacked(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays of E experiments with a first axis of E."""
    names = [name for name, value in records[0].items() if isinstance(value, np.ndarray)]
    return {name: np.stack([record[name] for record in records]) for name in names}


# ---------------------------------------------------------------- causal report


def causal_table(lean: np.ndarray) -> list[Row]:
    """Return one row per arm.

    Args:
        lean: (E, arms, 2 mappings, J, 2 signs) logit of digit 1 minus that of digit 0; E experiments, J test
            sentences.

    Returns:
        Four results, each with the ends of its interval, ``p`` (sign flips of whole experiments) and ``q``
        (Benjamini-Hochberg over the arms):

            accuracy  share of answers that are the right digit
            pairs     share of pairs (same text, +v and -v) whose logits move towards the right digit; unlike
                      accuracy it does not suffer if the model prefers one digit whatever is pushed
            code      d_z of that move; ``code_logits`` is its mean in logits
            pull      d_z of the move from -v to +v, whatever the signs stand for
    """
    mapping, signs = np.array(MAPPINGS)[:, None], np.array(SIGNS)
    rows: list[Row] = []
    for a, arm in enumerate(ARMS):
        one = lean[:, a].astype(np.float64)  # (E, 2 mappings, J, 2 signs)
        n, right = len(one), 0.5 + 0.5 * np.sign(one * mapping[..., None] * signs)  # a tie is 0.5
        minus, plus = one[..., 0], one[..., 1]
        high, low = np.where(mapping > 0, plus, minus), np.where(mapping > 0, minus, plus)
        row = {"arm": arm, "experiments": n, "trials": right.size}
        row |= {f"accuracy_mapping{m}": float(right[:, m].mean()) for m in range(len(MAPPINGS))}
        row["code_logits"] = float((high - low).mean())
        for name, share in zip(SHARES, (right, 0.5 + 0.5 * np.sign(high - low)), strict=True):
            share = share.reshape(n, -1).mean(axis=1)
            found = mean_ci(share)
            row |= {name: float(found.mean), f"{name}_p": sign_flip_p(share - 0.5)}
            row |= {f"{name}_low": float(found.low), f"{name}_high": float(found.high)}
        for name, sides in (("code", (high, low)), ("pull", (plus, minus))):
            up, down = (side.reshape(n, -1) for side in sides)
            effect = control_effect(up, down)
            row |= {name: effect.dz, f"{name}_p": effect.p}
            row |= {f"{name}_low": effect.dz_low, f"{name}_high": effect.dz_high}
        rows.append(row)
    for name in RESULTS:
        adjusted = benjamini_hochberg(np.array([row[f"{name}_p"] for row in rows]))
        rows = [{**row, f"{name}_q": float(q)} for row, q in zip(rows, adjusted, strict=True)]
    return rows


def causal_verdict(row: Row, name: str = "accuracy") -> str:
    """Return one line about an arm; a null is reported as such."""
    q = row[f"{name}_q"]
    size = f" (mean {row['code_logits']:.2g} logits)" if name == "code" else ""
    found = f"{RESULTS[name]} {interval(row, name)}{size}, {row['experiments']} experiments"
    if np.isnan(q):
        return f"{row['arm']}: not tested: {found}"
    return f"{row['arm']}: {found}, q {show_p(q)}" if q < ALPHA else f"{row['arm']}: {NULL}: {found}"


def causal_summary(rows: Sequence[Row]) -> str:
    """Return the table and the verdicts as text."""
    header = ["arm"]
    for title in RESULTS.values():
        header += [f"{title} [95 % CI]", "p", "q"]
    cells = []
    for row in rows:
        line = [row["arm"]]
        for name in RESULTS:
            line += [interval(row, name), show_p(row[f"{name}_p"]), show_p(row[f"{name}_q"])]
        cells.append([*line, row["experiments"], row["trials"]])
    table = text_table([*header, "experiments", "trials"], cells)
    return "\n".join([table, *(causal_verdict(rows[0], name) for name in ("accuracy", "pairs", "code"))])


# ---------------------------------------------------------------- steering curve


def curve_table(found: Mapping[str, np.ndarray], alphas: Sequence[float], layers: Sequence[int]) -> list[Row]:
    """Return one row per plotted number.

    Args:
        found: see SteeringCurve.unit, with the experiments as first axis.
        alphas: Q strengths.
        layers: R layers read.

    Returns:
        Rows of ``what`` (``score``; ``score in report``; ``P(upper)``), ``layer_read``, ``alpha``, ``value``
        with its 95 % bootstrap interval over experiments, and ``experiments``.
    """

    def rows(what: str, layer: int | str, ci: MeanCI) -> Iterator[Row]:
        for q, alpha in enumerate(alphas):
            value, low, high, n = (part[q].item() for part in ci)
            place = {"what": what, "layer_read": layer, "alpha": alpha}
            yield {**place, "value": value, "low": low, "high": high, "experiments": n}

    scores = {"score": found["measured"].mean(1), "score in report": found["in_report"].mean((1, 2))}
    upper = expit(found["lean"].astype(np.float64)).mean(axis=2)  # (E, 2 flips, Q)
    table: list[Row] = []
    for what, values in scores.items():
        ci = mean_ci(values)
        for r, layer in enumerate(layers):
            table += rows(what, layer, type(ci)(*(part[:, r] for part in ci)))
    table += rows("P(upper)", "", mean_ci(upper.mean(axis=1)))
    for f, name in enumerate(ASSIGNMENTS):
        table += rows(f"P(upper), {name}", "", mean_ci(upper[:, f]))
    return table


def slope(lean: np.ndarray, alphas: Sequence[float]) -> Row:
    """Return how much the logit of the upper label rises per training deviation of the push.

    Args:
        lean: (E, 2 flips, J, Q).
        alphas: Q strengths.

    Returns:
        ``slope``, the mean over experiments of least-squares slopes, its interval, sign-flip ``p``, and
        ``experiments``.
    """
    slopes = np.polyfit(alphas, lean.mean(axis=(1, 2)).T.astype(np.float64), 1)[0]
    ci = mean_ci(slopes)
    ends = {"slope_low": float(ci.low), "slope_high": float(ci.high)}
    return {"slope": float(ci.mean), **ends, "p": sign_flip_p(slopes), "experiments": len(slopes)}


def slope_verdict(fit: Row) -> str:
    """Return one line on the reported label; a null is reported as such."""
    found = f"{interval(fit, 'slope', 4)} logits per std, p {show_p(fit['p'])}"
    null = "" if fit["p"] < ALPHA else f"{NULL}: "
    return f"reported label: {null}slope {found}, {fit['experiments']} experiments"


def curve_summary(rows: Sequence[Row], fit: Row) -> str:
    """Return a table over alpha and the verdict as text."""
    told = [row for row in rows if row["what"] in ("score", "P(upper)")]
    lines: dict[float, list[str]] = {row["alpha"]: [f"{row['alpha']:g}"] for row in told}
    for row in told:
        lines[row["alpha"]].append(
            interval({**row, "value_low": row["low"], "value_high": row["high"]}, "value")
        )
    header = dict.fromkeys(f"{row['what']} {row['layer_read']}".strip() for row in told)
    return f"{text_table(['alpha', *header], list(lines.values()))}\n{slope_verdict(fit)}"
