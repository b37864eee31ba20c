"""The three verdicts. Tables, captions, pages and studies say one of them, and nothing else claims anything.

effect                    the family-wise p is below .05
no effect larger than X   the 95 % interval lies within +- X
undecided                 neither; with what would decide
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from analysis.statistics.family import ALPHA
from analysis.statistics.intervals import MIN_EXPERIMENTS
from analysis.statistics.numbers import number, p_value, with_interval

Kind = Literal["effect", "no effect", "undecided"]


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from; NaN for what is not known."""

    value: float
    low: float
    high: float
    """95 % interval."""
    p: float
    """Family-wise; NaN: not tested."""
    experiments: int
    bound: float
    """X of "no effect larger than X", above 0."""
    detectable: float = math.nan
    """Smallest value that would have been seen in 80 % of studies."""
    needed: int | None = None
    """Experiments that would decide; None: no number would."""
    smallest_p: float = 0.0
    """That the design can give, whatever the data."""
    name: str = "d"


@dataclass(frozen=True)
class Verdict:
    """A verdict and its sentence."""

    kind: Kind
    text: str
    """Such as ``no effect larger than 0.20``."""
    sentence: str
    """With the numbers, without a full stop."""


def verdict(evidence: Evidence) -> Verdict:
    """Return the verdict on one row.

    An effect whose interval lies within +- X is an effect, and said to be smaller than X. A value that the
    design could not have called an effect says so instead of "did not survive".
    """
    found = f"{evidence.name} = {with_interval(evidence.value, evidence.low, evidence.high)}"
    inside = max(-evidence.low, evidence.high) < evidence.bound  # False for NaN
    if evidence.p < ALPHA:
        text = f"effect smaller than {number(evidence.bound)}" if inside else "effect"
        return Verdict("effect", text, f"{text}: {found}, p = {p_value(evidence.p)}".replace("= <", "< "))
    if inside:
        text = f"no effect larger than {number(evidence.bound)}"
        return Verdict("no effect", text, f"{text}: {found}{_seen(evidence)}")
    return Verdict("undecided", f"undecided{_decides(evidence)}", f"undecided: {found}; {_why(evidence)}")


def _seen(evidence: Evidence) -> str:
    if math.isnan(evidence.detectable):
        return ""
    return f"; {number(evidence.detectable)} would have been seen (80 % power)"


def _decides(evidence: Evidence) -> str:
    return "" if evidence.needed is None else f" ({evidence.needed} experiments would decide)"


def _why(evidence: Evidence) -> str:
    if evidence.experiments < MIN_EXPERIMENTS:
        return f"{evidence.experiments} experiments, an interval needs {MIN_EXPERIMENTS}"
    if evidence.smallest_p >= ALPHA:
        return f"this design cannot reach p < {ALPHA}: its smallest p is {p_value(evidence.smallest_p)}"
    if math.isnan(evidence.low):
        return "the data do not define an interval"
    if evidence.needed is None:
        return f"more experiments on these sentences would not decide{_seen(evidence)}"
    return f"{evidence.needed} experiments would decide{_seen(evidence)}"
