"""Write one self-contained HTML page about a study: findings, figures, tables, examples, provenance."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.base.files import save_bytes
from analysis.pages.figures_folder import Written
from analysis.pages.html import render
from analysis.results.schema import UNIT_KINDS
from analysis.results.store import Store
from analysis.statistics.numbers import with_interval
from analysis.tables.findings import control_findings, report_findings
from analysis.tables.read import ControlData
from analysis.tables.rows import Row
from analysis.tables.series import ControlSeries
from analysis.tables.text import interval, show, show_p
from configs.settings import ACTIVE

log = logging.getLogger(__name__)

IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}


def write_report(
    store: Store,
    settings: Mapping[str, Any],
    figures: Sequence[Written],
    control_rows: Sequence[Row],
    report_rows: Sequence[Row],
    examples: Sequence[Row],
    about: Mapping[str, Any],
    arms: Sequence[Row] = (),
) -> Path:
    """Write results/<model>/<dataset>/report.html and return its path.

    Args:
        settings: the study's settings, name -> value.
        figures: in the order of the page. PNG or SVG files are copied into it; of a figure that has neither
            (PDF) only the name is logged.
        control_rows, report_rows: of ``analysis.tables``; either may be empty.
        examples: from :func:`collect_examples`.
        arms: of ``analysis.tables.arms.arms_table``; those with a verdict are shown.
        about: provenance such as ``analysis.results.store.provenance()``; nested mappings are joined.
    """
    runs = {kind.name: len(store.units(prefix)) for prefix, kind in UNIT_KINDS.items()}
    html = render(
        "report_page.html.j2",
        filters={
            "interval": interval,
            "with_interval": _with_interval,
            "show": show,
            "p": show_p,
            "observer": _observer,
        },
        store=store,
        findings=list(dict.fromkeys([*report_findings(report_rows), *control_findings(control_rows)])),
        runs=runs,
        figures=_inline(figures),
        control=control_rows,
        largest=max((row["n"] for row in control_rows), default=0),
        report=report_rows,
        arms=[row for row in arms if "verdict" in row],
        examples={want: [e for e in examples if e["want"] == want] for want in ("high", "low")},
        empty=sum(row["empty"] for row in control_rows),
        settings={name: _plain(value) for name, value in settings.items()},
        about={name: _plain(value) for name, value in about.items()},
    )
    path = store.folder / "report.html"
    save_bytes(html, path)
    return path


def _with_interval(row: Row) -> str:
    return with_interval(row["value"], row["low"], row["high"])


def _observer(row: Row, name: str) -> str:
    """Return an observer's accuracy and its agreement with the model, a dash where there is none."""
    if f"accuracy_{name}" not in row:
        return "-"
    return f"{interval(row, f'accuracy_{name}')}, κ {show(row[f'kappa_{name}'])}"


def _inline(figures: Iterable[Written]) -> list[dict[str, str]]:
    """Return each figure that a browser can show as a data URI with its caption."""
    found, left_out = [], []
    for figure in figures:
        path = next((path for path in figure.paths if path.suffix in IMAGE_TYPES), None)
        if path is None:
            left_out.append(figure.name)
        else:
            found.append({"name": figure.name, "caption": figure.caption, "uri": _data_uri(path)})
    if left_out:
        log.warning("the page shows PNG and SVG only; left out: %s", ", ".join(left_out))
    return found


def _data_uri(path: Path) -> str:
    return f"data:{IMAGE_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _plain(value: object) -> str:
    """Return a setting or a piece of provenance as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "not known" if value in (None, "") else str(value)


# ---------------------------------------------------------------- examples


def collect_examples(data: ControlData, limit: int = 6) -> list[dict[str, Any]]:
    """Return sentences that the model wrote at the largest N, ``limit`` for high and as many for low.

    They are not chosen by their score: the first experiments come first, taking the axes and layers in turn.
    Empty replies are left out (control_table counts them).

    Returns:
        Dicts with want (``high`` or ``low``), axis, layer, exp, flipped, n, score, text, copy_rate, cut.
    """
    active = [series for series in data.series if ACTIVE in series.modes]
    found: list[dict[str, Any]] = []
    for want, name in ((1, "high"), (0, "low")):
        queues = [_replies(series, want, name) for series in active]
        in_turn = [
            queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)
        ]
        found += in_turn[:limit]
    return found


def _replies(series: ControlSeries, want: int, name: str) -> list[dict[str, Any]]:
    """Return a series' replies at its largest N in the order of experiments."""
    m, last = series.modes.index(ACTIVE), len(series.shots) - 1
    found = []
    for e, flip in np.ndindex(len(series.exps), 2):
        cell = (e, last, m, flip, want)
        if series.text[cell] and series.measured["empty"][cell] == 0:
            found.append({
                "want": name, "axis": series.axis, "layer": series.layer, "exp": int(series.exps[e]),
                "flipped": bool(flip), "n": int(series.shots[last]), "score": float(series.target[cell]),
                "text": series.text[cell], "copy_rate": float(series.measured["copy_rate"][cell]),
                "cut": bool(series.measured["cut"][cell] == 1),
            })  # fmt: skip
    return found
