"""Write one self-contained HTML page about a study: findings, figures, tables, examples, provenance."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.findings import control_findings, report_findings
from analysis.plotting import interval, show, show_p
from analysis.store import Store
from analysis.tables import ControlData, ControlSeries
from utils import save_bytes

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
TEMPLATE = Path(__file__).with_name("report_page.html.j2")
IMAGE_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
CAPTIONS = (
    ("report_layer", "Report. The model predicts the label that its own activation gives each sentence, "
     "after the examples before it. Dashed: guessing the label shown more often so far."),
    ("report_by_layer", "Report at every layer that was run; all panels of a row share their scale."),
    ("control_layer", "Control. Effect of wanting a high rather than a low score on the score itself. At "
     "N = 0 nothing has been shown, so d should be near 0."),
    ("control_by_layer", "Control at the largest N, by the layer that the scores came from."),
    ("control_readout", "Where the effect is visible: the axis of the same name, read at every layer."),
    ("control_heatmap", "How specific control is: the effect on the targeted axis (outlined) and on others. "
     "Axes are not orthogonal across kinds, so some spread is expected."),
    ("control_scores", "Scores behind the effect, at the smallest and the largest N."),
    ("axes_overview", "How well the classifiers tell the classes apart on held-out sentences, and how much "
     "variance the principal components explain."),
)  # fmt: skip
"""Start of a figure's file name -> caption, in the order of the page."""


def write_report(
    store: Store,
    settings: Mapping[str, Any],
    figures: Sequence[Path],
    control_rows: Sequence[Row],
    report_rows: Sequence[Row],
    examples: Sequence[Row],
    about: Mapping[str, Any],
) -> Path:
    """Write results/<model>/<dataset>/report.html and return its path.

    Args:
        settings: the study's settings, name -> value.
        figures: PNG or SVG files, which are copied into the page; of others (PDF) only the names are logged.
        control_rows, report_rows: from analysis.effects; either may be empty.
        examples: from :func:`collect_examples`.
        about: provenance such as ``analysis.store.provenance()``; nested mappings are joined.
    """
    runs = {"control": len(store.units("imit")), "report": len(store.units("pred"))}
    page = _environment().get_template(TEMPLATE.name)
    html = page.render(
        store=store,
        findings=list(dict.fromkeys([*report_findings(report_rows), *control_findings(control_rows)])),
        runs=runs,
        figures=_inline(figures),
        control=control_rows,
        largest=max((row["n"] for row in control_rows), default=0),
        report=report_rows,
        examples={want: [e for e in examples if e["want"] == want] for want in ("high", "low")},
        empty=sum(row["empty"] for row in control_rows),
        settings={name: _plain(value) for name, value in settings.items()},
        about={name: _plain(value) for name, value in about.items()},
    )
    path = store.folder / "report.html"
    save_bytes(html.encode(), path)
    return path


def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(interval=interval, show=show, p=show_p)
    return environment


def _inline(figures: Iterable[Path]) -> list[dict[str, str]]:
    """Return each figure once, in the order of CAPTIONS, as a data URI with its caption."""
    chosen: dict[str, Path] = {}
    for path in figures:
        if path.suffix in IMAGE_TYPES:
            chosen.setdefault(path.stem, path)
    left_out = sorted({path.stem for path in figures} - set(chosen))
    if left_out:
        log.warning("the page shows PNG and SVG only; left out: %s", ", ".join(left_out))
    return [
        {"name": name, "caption": _caption(name), "uri": _data_uri(chosen[name])}
        for name in sorted(chosen, key=_place)
    ]


def _place(name: str) -> tuple[int, list[str | int]]:
    """Sort by caption, then by name with numbers in numeric order."""
    kinds = [i for i, (start, _) in enumerate(CAPTIONS) if name.startswith(start)]
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    return (kinds[0] if kinds else len(CAPTIONS), parts)


def _caption(name: str) -> str:
    return next((text for start, text in CAPTIONS if name.startswith(start)), name)


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
    active = [series for series in data.series if "active" in series.modes]
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
    m, last = series.modes.index("active"), len(series.shots) - 1
    found = []
    for e, flip in np.ndindex(len(series.exps), 2):
        cell = (e, last, m, flip, want)
        if series.text[cell] and series.empty[cell] == 0:
            found.append({
                "want": name, "axis": series.axis, "layer": series.layer, "exp": int(series.exps[e]),
                "flipped": bool(flip), "n": int(series.shots[last]), "score": float(series.target[cell]),
                "text": series.text[cell], "copy_rate": float(series.copy_rate[cell]),
                "cut": bool(series.cut[cell] == 1),
            })  # fmt: skip
    return found
