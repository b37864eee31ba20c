"""Say in sentences what the tables show, and no more than they show.

An interval that contains 0 is "no detectable effect", whatever the estimate; an interval that does not is
reported together with the q value, which counts how many tests were made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from analysis.tables.rows import Row
from analysis.tables.text import interval, show_p
from configs.settings import ACTIVE

ALPHA = 0.05
FEW = 10
"""Below this many experiments a study is called a trial run."""
MUCH_COPIED = 0.5
ONE_BY_ONE = 4
"""Up to this many results get a sentence each; more are summed up."""


def control_findings(rows: Sequence[Row]) -> list[str]:
    """Return sentences about control at each series' largest N, then what to beware of."""
    found = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        last = _largest([row for row in rows if row["mode"] == mode])
        found += [control_sentence(row, len(rows)) for row in last] if len(last) <= ONE_BY_ONE else []
        found += [_control_summary(mode, last)] if len(last) > ONE_BY_ONE else []
    return found + _few(rows) + _zero_shot(rows) + _replies(rows)


def control_sentence(row: Row, tests: int) -> str:
    """Return one effect in words."""
    what = "writing (active)" if row["mode"] == ACTIVE else "reading a given sentence (inactive)"
    start = (
        f"Control of {row['axis']} at {_place(row)} by {what}, N = {row['n']}: d = "
        f"{interval(row, 'd')}, {row['experiments']} experiments"
    )
    side = _side(row, "d")
    if side is None:
        return f"{start}: too few experiments for an interval, so no conclusion."
    if side == 0:
        return f"{start}: no detectable effect."
    way = "in the wanted direction" if side > 0 else "against the wanted direction"
    return f"{start}: the scores moved {way}{_corrected(row, tests)}."


def _control_summary(mode: str, rows: Sequence[Row]) -> str:
    up = [row for row in rows if _side(row, "d") == 1 and row["q"] < ALPHA]
    down = [row for row in rows if _side(row, "d") == -1 and row["q"] < ALPHA]
    text = (
        f"Control, {mode}, at the largest N: of {len(rows)} {_cases(rows)}, {len(up)} moved in the "
        f"wanted direction and {len(down)} against it (95 % interval without 0, and q < {ALPHA}); for the "
        "others there is no detectable effect after correction."
    )
    if up:
        top = max(up, key=lambda row: row["d"])
        text += f" The largest: {top['axis']} at {_place(top)}, d = {interval(top, 'd')}."
    return text


def report_findings(rows: Sequence[Row]) -> list[str]:
    """Return sentences about report over the later half of the examples, then what to beware of."""
    if len(rows) <= ONE_BY_ONE:
        return [report_sentence(row, len(rows)) for row in rows] + _few(rows)
    good = [row for row in rows if _side(row, "gain") == 1 and row["q"] < ALPHA]
    text = (
        f"Report: for {len(good)} of {len(rows)} {_cases(rows)} the predictions beat the majority "
        f"baseline (95 % interval of the gain above 0, and q < {ALPHA})."
    )
    if good:
        top = max(good, key=lambda row: row["gain"])
        text += (
            f" The largest gain: {top['axis']} at {_place(top)}, accuracy "
            f"{interval(top, 'accuracy')} against {top['majority']:.2f}{_observed(top)}."
        )
    return [text, *_few(rows)]


def report_sentence(row: Row, tests: int) -> str:
    """Return one report result in words."""
    start = (
        f"Report of {row['axis']} at {_place(row)}, {row['n_from']} to {row['n_to']} examples shown: "
        f"accuracy {interval(row, 'accuracy')} against {row['majority']:.2f} for the majority baseline"
        f"{_observed(row)}, {row['experiments']} experiments"
    )
    side = _side(row, "gain")
    if side is None:
        return f"{start}: too few experiments for an interval, so no conclusion."
    if side == 0:
        return f"{start}: no detectable gain over the baseline ({interval(row, 'gain')})."
    return f"{start}: {'better' if side > 0 else 'worse'} by {interval(row, 'gain')}{_corrected(row, tests)}."


def _largest(rows: Iterable[Row]) -> list[Row]:
    """Return the row at the largest N of each axis, layer and number of levels."""
    last: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        key = (row["axis"], row["layer"], row["levels"])
        if key not in last or row["n"] > last[key]["n"]:
            last[key] = row
    return list(last.values())


def _place(row: Row) -> str:
    return f"layer {row['layer']}" + ("" if row["levels"] == 2 else f" ({row['levels']} levels)")


def _cases(rows: Sequence[Row]) -> str:
    several = len({row["levels"] for row in rows}) > 1
    return "combinations of axis, layer and levels" if several else "pairs of axis and layer"


def _observed(row: Row) -> str:
    """Return what logistic regressions reach that see the same examples, if the row has it."""
    names = {"accuracy_own": "the layer's activations", "accuracy_embedding": "input embeddings"}
    names["accuracy_words"] = "words alone"
    known = [f"{row[key]:.2f} from {what}" for key, what in names.items() if key in row]
    return f" (a regression on the same examples: {', '.join(known)})" if known else ""


def _side(row: Row, name: str) -> int | None:
    """Return 1 or -1 if the interval lies above or below 0, 0 if it contains 0, None without one."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low) or math.isnan(high):
        return None
    return 1 if low > 0 else -1 if high < 0 else 0


def _corrected(row: Row, tests: int) -> str:
    if row["q"] < ALPHA:
        return f" (q = {show_p(row['q'])})"
    return f", but this does not survive correction for {tests} tests (q = {show_p(row['q'])})"


def _few(rows: Sequence[Row]) -> list[str]:
    most = max((row["experiments"] for row in rows), default=0)
    if not rows or most >= FEW:
        return []
    floor = f"the smallest possible p is {2 / 2**most:.2g}, and " if most > 1 else ""
    number = f"{most} experiment{'s' * (most != 1)}"
    return [f"With {number} this is a trial run: {floor}intervals from so few tend to be too narrow."]


def _zero_shot(rows: Sequence[Row]) -> list[str]:
    odd = [row for row in rows if row["n"] == 0 and _side(row, "d") in (1, -1) and row["q"] < ALPHA]
    return [
        f"Beware: {row['axis']} at {_place(row)} ({row['mode']}) has an effect at N = 0, where "
        f"nothing was shown yet: d = {interval(row, 'd')}. Compare larger N with that, not with 0."
        for row in odd
    ]


def _replies(rows: Sequence[Row]) -> list[str]:
    active = [row for row in rows if row["mode"] == ACTIVE]
    recorded, empty, cut = (sum(row[name] for row in active) for name in ("recorded", "empty", "cut"))
    found = []
    if recorded:
        found.append(
            f"Of {recorded} replies, {empty} were empty and are left out together with their partners, and "
            f"{cut} ended in a score that was cut off before measuring."
        )
    copied = [row["copy_rate"] for row in _largest(active) if not math.isnan(row["copy_rate"])]
    mean = sum(copied) / len(copied) if copied else 0.0
    if mean > MUCH_COPIED:
        found.append(
            f"Beware: at the largest N replies share {mean:.0%} of their longest common stretch with a shown "
            "sentence, so the effect may be the choice of a sentence to repeat."
        )
    return found
