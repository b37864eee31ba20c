"""The plot scripts as a whole: which figures, their numbers and notes, and what a figures folder holds."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave

import plot_imit
import plot_pred
from analysis.figures import style
from analysis.pages import kinds
from analysis.pages import models as pages_models
from analysis.pages.control import ControlView
from analysis.pages.drawn import COLUMNS, Drawn
from analysis.pages.figures_folder import read_records
from analysis.pages.report import ReportView
from analysis.results.store import Store
from analysis.tables import control as control_tables
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from tests import fake_results

SMALL = {"layers": (1, 3), "n_layers": 5, "n_exp": 3, "shots": (0, 4), "report_n": 32}
MODES = ("active", "inactive")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """Two layers, 2 and 8 levels, and beside it a model of another size with 2 levels."""
    root = tmp_path_factory.mktemp("drawing")
    fake_results.write_study(root, model="org/big", n_parameters=10**9, seed=1, **SMALL)
    return fake_results.write_study(root, levels=(2, 8), **SMALL)


def draw(store: Store) -> dict[str, Drawn]:
    """Return every figure of both scripts by name, not rendered."""
    control, report = tables_read.load_control(store), tables_read.load_report(store)
    rows, table = control_tables.control_table(control), report_tables.report_table(report)
    parts = [*kinds.draw(kinds.CONTROL, plot_imit.KINDS, ControlView(store, control, rows))]
    parts += kinds.draw(kinds.REPORT, plot_pred.KINDS, ReportView(store, report, table))
    assert len({one.name for one in parts}) == len(parts)
    return {one.name: one for one in parts}


@pytest.fixture(scope="module")
def drawn(store) -> dict[str, Drawn]:
    """The figures of ``store``."""
    return draw(store)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Every figure becomes the same small image, since rendering is slow."""
    buffer = io.BytesIO()
    imsave(buffer, np.zeros((2, 3)), format="png")
    monkeypatch.setattr(style, "figure_bytes", lambda fig, form: buffer.getvalue())


def run(script, store: Store, *more: str, out: Path | None = None) -> int:
    flags = ["--results", str(store.root), "--model", store.model, "--out", str(out or store.figures)]
    return script.main([*flags, "--log_level", "error", *more])


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as handle:
        return list(csv.DictReader(handle))


# ---------------------------------------------------------------- numbers


def lines(ax) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return label -> x, y of the curves of a panel."""
    named = [line for line in ax.lines if not line.get_label().startswith(("_", "chance", "layer"))]
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in named}


def check(rows, x: str, points, **where) -> None:
    """Assert that the rows with ``where`` are the points of a curve."""
    rows = sorted((r for r in rows if all(r[k] == v for k, v in where.items())), key=lambda row: row[x])
    np.testing.assert_array_equal([[row[x] for row in rows], [row["value"] for row in rows]], points)


@pytest.mark.parametrize(
    ("name", "x", "label"),
    [
        ("control_layer1", "n", "axis"), ("control_layer3_levels8", "n", "axis"),
        ("control_readout_layer3", "layer_read", "axis"), ("control_by_layer", "layer", "axis"),
        ("control_groups_levels8", "layer", "variant"),
    ],
)  # fmt: skip
def test_points_and_ends_of_bars_are_rows_of_the_summary(drawn, name, x, label):
    one = drawn[name]
    for ax, mode in zip(one.figure.axes, MODES, strict=True):
        assert lines(ax)
        for key, points in lines(ax).items():
            check(one.numbers, x, points, mode=mode, **{label: key})
        if "readout" in name:
            continue
        bars = {tuple(segment[:, 1]) for part in ax.collections for segment in part.get_segments()}
        assert bars == {(row["low"], row["high"]) for row in one.numbers if row["mode"] == mode}
    assert sum(len(x) for ax in one.figure.axes for x, _ in lines(ax).values()) == len(one.numbers)


def test_cells_of_the_heatmap_are_rows_of_the_summary(drawn):
    one = drawn["control_heatmap_layer1"]
    for ax, mode in zip(one.figure.axes[:2], MODES, strict=True):
        targets = [text.get_text() for text in ax.get_yticklabels()]
        affected = [text.get_text() for text in one.figure.axes[1].get_xticklabels()]
        cells = {(r["axis"], r["affected"]): r["value"] for r in one.numbers if r["mode"] == mode}
        expected = [[cells[target, name] for name in affected] for target in targets]
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)


def test_positions_by_layer_are_rows_of_the_summary(drawn):
    one = drawn["control_accumulation_layer1"]
    cells = [(axis, mode) for axis in ("lr", "pc1") for mode in MODES]
    for ax, (axis, mode) in zip(one.figure.axes, cells, strict=True):
        for want in ("high", "low"):
            points = lines(ax)[f"{want} wanted"]
            check(one.numbers, "layer_read", points, axis=axis, mode=mode, variant=want)


def test_precision_and_cosines_are_rows_of_the_summary(drawn):
    precision, cosine = drawn["control_precision_layer3"], drawn["control_cosine_layer3"]
    for ax, bars, mode in zip(precision.figure.axes, cosine.figure.axes, MODES, strict=True):
        for variant, (_, values) in lines(ax).items():
            rows = [r for r in precision.numbers if (r["mode"], r["variant"]) == (mode, variant)]
            assert [row["value"] for row in rows] == list(values) and len(rows) == 2
        rows = [row["value"] for row in cosine.numbers if row["mode"] == mode]
        assert rows == [patch.get_height() for patch in bars.patches] and len(rows) == 2


@pytest.mark.parametrize("name", ["report_layer1", "report_layer3_levels8", "report_mean"])
def test_report_curves_are_rows_of_the_summary(drawn, name):
    one = drawn[name]
    for ax, metric in zip(one.figure.axes, ("accuracy", "cross_entropy"), strict=True):
        for axis in ("lr", "pc1"):
            check(one.numbers, "n", lines(ax)[axis], metric=metric, axis=axis)


def test_every_figure_brings_numbers_with_known_columns(drawn):
    assert [name for name, one in drawn.items() if not one.numbers] == []
    for one in drawn.values():
        for row in one.numbers:
            assert set(row) <= set(COLUMNS) and {"metric", "value"} <= set(row)


def test_rows_of_other_figures_and_of_the_other_script_stay_in_the_summary(store, tmp_path, quick):
    assert run(plot_imit, store, "--figure", "effect", out=tmp_path) == 0
    control = summary(tmp_path)
    assert run(plot_pred, store, "--figure", "report", out=tmp_path) == 0
    assert [row for row in summary(tmp_path) if row["stage"] == "control"] == control
    assert run(plot_imit, store, "--figure", "cosine", "--mode", "active", out=tmp_path) == 0
    rows = summary(tmp_path)
    assert [row for row in rows if row["metric"] == "cohens_d"] == control
    assert {row["metric"] for row in rows if row["stage"] == "control"} == {"cohens_d", "cosine"}
    assert {row["stage"] for row in rows} == {"control", "report"}
    assert {(row["model"], row["dataset"]) for row in rows} == {("smollm2", "commonsense")}
    assert all((tmp_path / f"{row['figure']}.png").exists() for row in rows)


# ---------------------------------------------------------------- which figures

KINDS = "readout heatmap scores density accumulation precision cosine".split()
LAYER = ("control", *(f"control_{kind}" for kind in KINDS))
ENDS = ("", "_levels8")
CONTROL = {f"{name}_layer{n}{end}" for name in LAYER for n in (1, 3) for end in ENDS}
CONTROL |= {f"control_{name}{end}" for name in ("by_layer", "groups") for end in ENDS}
CONTROL |= {"axes_overview", "axes_variance", "axes_cosines", "models_depth", "models_size"}
PARTS = "layer1 layer3 by_layer mean observers".split()
REPORT = {f"report_{part}{end}" for part in PARTS for end in ENDS} | {"models_observers"}
REPORT |= {f"report_{k}_layer{n}_levels8" for k in "levels confusion level_scores".split() for n in (1, 3)}
OVERVIEWS = {f"overview_layer{n}{end}" for n in (1, 3) for end in ("", "_8levels")}


def test_all_draws_every_kind_and_the_page_lists_every_figure(store, drawn, tmp_path, quick):
    assert run(plot_imit, store, "--all", out=tmp_path) == 0
    assert run(plot_pred, store, "--all", out=tmp_path) == 0
    assert {path.stem for path in tmp_path.glob("*.png")} == CONTROL | REPORT | OVERVIEWS
    assert {one.kind for one in drawn.values()} == {*plot_imit.KINDS, *plot_pred.KINDS}
    assert {record.name for record in read_records(tmp_path)} == CONTROL | REPORT
    page = html.unescape((tmp_path / "index.html").read_text())
    assert all(f"./{name}.png" in page for name in OVERVIEWS)
    for name, one in drawn.items():
        assert f"./{name}.png" in page and one.caption in page and one.group in page
    rows = summary(tmp_path)
    assert len(rows) == sum(len(one.numbers) for one in drawn.values())
    assert run(plot_imit, store, "--figure", "density", out=tmp_path) == 0  # one figure adds to the folder
    assert run(plot_pred, store, "--layer", "3", "--figure", "report", out=tmp_path) == 0  # so does one layer
    again = html.unescape((tmp_path / "index.html").read_text())
    assert again.split('"provenance"')[0] == page.split('"provenance"')[0] and summary(tmp_path) == rows


ALONE = [*((plot_imit, kind) for kind in plot_imit.KINDS), (plot_pred, "layers"), (plot_pred, "mean")]


@pytest.mark.parametrize(("script", "kind"), ALONE)
def test_a_kind_that_is_asked_for_is_drawn_alone(script, kind, store, drawn, tmp_path, quick):
    names = {name for name in (CONTROL if script is plot_imit else REPORT) if drawn[name].kind == kind}
    assert names and run(script, store, "--figure", kind, out=tmp_path) == 0
    pngs = {path.stem for path in tmp_path.glob("*.png")}
    assert names <= pngs <= names | OVERVIEWS


ONE = {"n_exp": 1, "shots": (0,), "layers": (0,), "n_layers": 1, "axes": ("lr",), "modes": ("active",)}


@pytest.mark.parametrize("only", [*({name: ONE[name]} for name in ONE if name != "n_layers"), ONE])
def test_studies_with_a_single_value_of_something_are_drawn(only, tmp_path, quick):
    few = fake_results.write_study(tmp_path, **{**SMALL, "report_n": 2 if only is ONE else 16, **only})
    assert run(plot_imit, few, "--all") == 0 and run(plot_pred, few, "--all") == 0
    names = {path.stem for path in few.figures.glob("*.png")}
    assert any(name.startswith("control_precision") for name in names)
    assert ("control_by_layer" in names) == ("report_mean" in names) == ("layers" not in only)


def test_one_study_in_three_formats(tmp_path):
    few = fake_results.write_study(tmp_path, **{**SMALL, "axes": ("lr",), "layers": (1,)})
    assert run(plot_imit, few, "--figure", "effect", "cosine", "--format", "png", "pdf", "svg") == 0
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for name in ("control_layer1", "control_cosine_layer1", "overview_layer1"):
        for form, start in starts.items():
            assert (few.figures / f"{name}.{form}").read_bytes().startswith(start)


# ---------------------------------------------------------------- notes

WHY_NONE = r"no interval|Intervals: summary\.csv|density estimates|Dashed: means"


def note(one: Drawn) -> str:
    return " ".join(one.figure.get_supxlabel().split())


def test_every_note_holds_n_and_the_interval_or_why_there_is_none(drawn):
    notes = {name: note(one) for name, one in drawn.items()}
    needed = (r"n = \d|n: |One fit per layer", rf"95 %|{WHY_NONE}")
    assert {name: text for name, text in notes.items() if not all(re.search(p, text) for p in needed)} == {}


def test_notes_of_one_experiment_claim_no_interval(tmp_path):
    parts = draw(fake_results.write_study(tmp_path, **{**SMALL, "n_exp": 1, "levels": (8,)}))
    assert [name for name, one in parts.items() if "bootstrap" in note(one)] == []


# ---------------------------------------------------------------- folder


def test_every_kind_has_a_function_that_draws_it_and_a_line_of_help():
    for kind in kinds.KINDS:
        assert callable(kind.function) and kind.what
    assert len({(kind.stage, kind.name) for kind in kinds.KINDS}) == len(kinds.KINDS)


# ---------------------------------------------------------------- several models


def test_other_models_with_runs_on_the_dataset_are_found(store):
    assert [s.model for s in pages_models.other_stores(store, None, "imit", None)] == ["smollm2", "org_big"]
    named = pages_models.other_stores(store, ["org/big", "smollm2"], "pred", None)
    assert [s.folder for s in named] == [store.folder, Store(store.root, "org/big", "commonsense").folder]
    assert pages_models.other_stores(store, ["smollm2"], "imit", None) == [store]


def test_a_model_is_not_compared_with_itself_under_its_alias(tmp_path):
    own = fake_results.write_study(tmp_path, model="llama3_1b", **SMALL)
    assert pages_models.other_stores(own, ["meta-llama/Llama-3.2-1B-Instruct"], "imit", None) == [own]


@pytest.mark.parametrize("script", [plot_imit, plot_pred])
def test_an_unknown_model_exits_with_2_and_one_line(script, store, tmp_path, quick, capsys):
    flags = ("--layer", "1", "--axes", "lr", "--figure", "models", "--models", "org/none")
    assert run(script, store, *flags, out=tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --models org/none: there are no runs of lr in ")


@pytest.mark.parametrize("script", [plot_imit, plot_pred])
def test_models_without_comparable_runs_are_left_out(script, tmp_path, quick):
    one = fake_results.write_study(tmp_path / "a", **SMALL)
    fake_results.write_study(tmp_path / "a", axes=("lr",), model="b", **SMALL)
    assert run(script, one, "--axes", "pc1", "--all") == 0  # b has no pc1
    for name in ("c", "d"):
        eight = fake_results.write_study(tmp_path / "e", model=name, levels=(8,), **SMALL)
    assert run(script, eight, "--layer", "1", "--all") == 0  # only binary runs are compared
