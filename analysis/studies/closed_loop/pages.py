"""From closed-loop units to figures, ``summary_loop.csv`` and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.figures.style import Bars, Curve, count
from analysis.pages.drawn import Drawn, levels_in_words
from analysis.pages.figures_folder import add_figures
from analysis.results.store import Store, levels_in_name
from analysis.studies.closed_loop import tables as loop_tables
from analysis.studies.closed_loop.figures import plot_loop_drift, plot_loop_effect, plot_loop_scores
from analysis.studies.closed_loop.flags import Loop
from analysis.studies.closed_loop.stage import LoopStage
from analysis.studies.closed_loop.tables import LoopSeries
from analysis.tables.rows import Row
from analysis.tables.text import write_csv
from configs.settings import as_plain

SUMMARY = "summary_loop.csv"
_CI = "95 % bootstrap interval over experiments"
_COLUMNS = (
    "metric", "axis", "layer", "levels", "mode", "arm", "against", "wanted", "turn", "value", "low", "high",
    "p", "q", "experiments", "trials", "finding",
)  # fmt: skip


def present(stage: LoopStage) -> str:
    """Write figures and summary_loop.csv from the units on disk; return the tables as text."""
    chosen, study, loop = loop_tables.load_series(stage), stage.study, stage.loop
    store = study.store
    drifts, against = loop_tables.drift_table(chosen), loop_tables.comparison_table(chosen)
    turns = loop_tables.turn_table(chosen)
    drawn = []
    for axis, layer, levels in dict.fromkeys((s.axis, s.layer, s.levels) for s in chosen):
        where = {"axis": axis, "layer": layer, "levels": levels}
        here = [s for s in chosen if s.about.items() >= where.items()]
        rows = [[r for r in table if r.items() >= where.items()] for table in (drifts, against, turns)]
        drawn += _figures(store, here, rows, loop)
    write_csv(_numbers(chosen, drifts, against, turns), store.figures / SUMMARY, _COLUMNS)
    provenance = {"settings": dict(as_plain(study.settings)), "identity": dict(study.identity)}
    about = {"stage": "loop", "model": store.model, "dataset": store.dataset}
    add_figures(store.figures, drawn, ["png"], about, provenance)
    return loop_tables.table_text(drifts, against)


# ---------------------------------------------------------------- figures


def _figures(
    store: Store,
    here: Sequence[LoopSeries],
    tables: Sequence[Sequence[Row]],
    loop: Loop,
) -> list[Drawn]:
    """Return the figures of one axis, layer and number of levels; ``tables``: drifts, differences, turns."""
    first, (drifts, against, turns) = here[0], tables
    ending = f"{first.axis}_layer{first.layer}{levels_in_name(first.levels)}"
    where = f"{first.axis}, layer {first.layer}{levels_in_words(first.levels)}"
    title = f"{store.model}, {store.dataset}: closed loop on {where}"
    size = f"{count((len(s.scores) for s in here), 'experiment')}, {loop.examples} examples before turn 1"
    lost = ", ".join(f"{s.mode} {int((s.complied == 0).sum())} of {s.complied.size}" for s in here)
    left_out = f"Left out, since empty or not the sentence asked for: {lost} turns."
    drawn = {
        "scores": (
            "true score of what was said",
            plot_loop_scores, {s.mode: _sides(s) for s in here}, f"{size}. Bands: {_CI}. {left_out}",
        ),
        "effect": (
            "effect of high against low wanted",
            plot_loop_effect, {s.mode: _effects(turns, s.mode) for s in here},
            f"{size}, {count((r['trials'] for r in turns), 'trial')} per point. Bars: {_CI}. {left_out}",
        ),
        "drift": (
            "drift over turns",
            plot_loop_drift, {s.mode: _drifts(drifts, against, s.mode) for s in here},
            f"{size}. Slope of the true score over turns in the wanted direction. Bars: {_CI}. {left_out}",
        ),
    }  # fmt: skip
    return [
        Drawn(
            f"loop_{kind}_{ending}", "closed loop", f"{title}: {what}. {note}",
            plot(panels, f"{title}: {what}", note), kind=f"loop_{kind}", order=i,
        )
        for i, (kind, (what, plot, panels, note)) in enumerate(drawn.items())
    ]  # fmt: skip


def _sides(series: LoopSeries) -> dict[str, tuple[Curve, Curve]]:
    """Return arm -> curves when high and when low was wanted."""
    found = loop_tables.side_means(series)
    turns = 1.0 + np.arange(series.scores.shape[-1])

    def side(a: int, want: int) -> Curve:
        return Curve(turns, found.mean[a, want], found.low[a, want], found.high[a, want])

    return {arm: (side(a, 1), side(a, 0)) for a, arm in enumerate(series.arms)}


def _effects(turns: Sequence[Row], mode: str) -> dict[str, Curve]:
    """Return arm -> d over turns."""
    rows: dict[str, list[Row]] = {}
    for row in turns:
        if row["mode"] == mode:
            rows.setdefault(row["arm"], []).append(row)
    names = ("turn", "d", "d_low", "d_high")
    return {arm: Curve(*(np.array([row[k] for row in of], float) for k in names)) for arm, of in rows.items()}


def _drifts(drifts: Sequence[Row], against: Sequence[Row], mode: str) -> tuple[Bars, Bars]:
    """Return slopes of the arms, and differences to the true arm."""
    own, others = ([row for row in table if row["mode"] == mode] for table in (drifts, against))
    return _bars(own, "arm"), _bars(others, "against")


def _bars(rows: Sequence[Row], name: str) -> Bars:
    columns = ("slope", "slope_low", "slope_high")
    value, low, high = (np.array([row[key] for row in rows], float) for key in columns)
    return Bars([row[name] for row in rows], value, low, high)


# ---------------------------------------------------------------- numbers


def _numbers(
    chosen: Sequence[LoopSeries], drifts: Sequence[Row], against: Sequence[Row], turns: Sequence[Row]
) -> list[Row]:
    """Return every plotted or printed number, see _COLUMNS."""
    rows = []
    for series in chosen:
        for arm, sides in _sides(series).items():
            for wanted, one in zip(("high", "low"), sides, strict=True):
                about = {**series.about, "arm": arm, "wanted": wanted, "metric": "score"}
                points = zip(one.x, one.y, one.low, one.high, strict=True)
                rows += [
                    {**about, "turn": int(x), "value": y, "low": low, "high": high}
                    for x, y, low, high in points
                ]
    rows += [_number(row, "cohens_d", "d") for row in turns]
    for row in drifts:
        gain = {**row, "p": row["gain_p"], "q": "", "finding": ""}
        rows += [_number(row, "drift", "slope"), _number(gain, "gain", "gain")]
        shares = {f"{name}_rate": row[name] / row["recorded"] for name in ("complied", "empty", "cut")}
        plain = {key: row[key] for key in ("axis", "layer", "levels", "mode", "arm")}
        shares |= {"copy_rate": row["copy_rate"], "upper_rate": row["upper"], "same_rate": row["same"]}
        rows += [{**plain, "metric": metric, "value": value} for metric, value in shares.items()]
    return rows + [_number({**row, "arm": "true"}, "drift_difference", "slope") for row in against]


def _number(row: Row, metric: str, name: str) -> Row:
    kept = {key: row[key] for key in _COLUMNS if key in row}
    ends = {end: row[f"{name}_{end}"] for end in ("low", "high")}
    return {**kept, **ends, "metric": metric, "value": row[name]}
