"""The figures and tables of the evasion study."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from analysis.figures.style import Curve, figure_bytes
from analysis.studies.evasion.figures import plot_class_scores, plot_rates
from analysis.studies.evasion.pages import write_evasion
from analysis.studies.evasion.probes import CONDITIONS
from analysis.studies.evasion.tables import evasion_rows, evasion_tables
from tests.test_evasion import planted


def test_rates_stand_at_their_heights_with_their_bars():
    curve = Curve(np.arange(2.0), np.array([0.8, 0.6]), np.array([0.7, 0.5]), np.array([0.9, 0.7]))
    fig = plot_rates(["lr", "MLP"], {"before": curve}, (0.5, "chance"), "AUROC", "title", "n = 3")
    (ax,) = fig.axes
    points = [line for line in ax.lines if line.get_label() == "before"]
    np.testing.assert_array_equal(points[0].get_ydata(), [0.8, 0.6])
    segments = [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()]
    assert segments == [[0.7, 0.9], [0.5, 0.7]]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["lr", "MLP"]


def test_every_condition_has_a_row_with_both_classes_and_the_threshold():
    judged = planted(1.0, experiments=4)
    notes = {name: name.upper() for name in CONDITIONS}
    fig = plot_class_scores(judged.conditions(), notes, (2.3, "1 %"), "score (std)", "title", "n = 4")
    assert [ax.get_ylabel() for ax in fig.axes] == list(CONDITIONS)
    for ax, name in zip(fig.axes, CONDITIONS, strict=True):
        assert ax.lines[1].get_xdata() == [2.3, 2.3]
        assert ax.texts[0].get_text() == name.upper()
        density = ax.lines[0].get_ydata()
        x = ax.lines[0].get_xdata()
        assert np.trapezoid(density, x) == pytest.approx(1, abs=0.1)


def test_constant_scores_have_no_density_but_a_figure():
    same = {name: (np.ones((2, 1, 3)), np.ones((2, 1, 3))) for name in CONDITIONS}
    notes = dict.fromkeys(CONDITIONS, "")
    assert figure_bytes(plot_class_scores(same, notes, (1.0, "t"), "x", "title", "n"), "png")


@pytest.fixture(scope="module")
def judged() -> dict:
    """Two probes, one of them evaded."""
    return {
        ("lr axis", "layer 15"): planted(3.0, experiments=10),
        ("MLP", "layer 15"): planted(0.0, seed=1, experiments=10),
    }


def test_q_is_taken_over_the_probes_of_each_comparison():
    shifts = enumerate((0.0, 3.0, 0.0))
    rows = evasion_rows({(str(i), "layer 1"): planted(away, seed=i, experiments=8) for i, away in shifts})
    family = [
        r for r in rows if (r["metric"], r["condition"], r["against"]) == ("auroc", "evasion", "before")
    ]
    expected = false_discovery_control([r["p"] for r in family])
    np.testing.assert_allclose([r["q"] for r in family], expected)
    assert [r["q"] < 0.05 for r in family] == [False, True, False]


def test_the_tables_say_which_probe_is_evaded_and_which_is_not(judged):
    tables = evasion_tables(evasion_rows(judged)).split("\n\n")
    (table,) = [part for part in tables if part.startswith("AUROC: before - evasion")]
    _, header, evaded, safe = table.splitlines()
    assert header.split() == ["probe", "difference", "p", "q"]
    assert evaded.startswith("lr axis, layer 15") and evaded.endswith("falls")
    assert safe.startswith("MLP, layer 15") and safe.endswith("no detectable effect")
    assert "1 % of 400 original class-0 sentences" in tables[1]
    assert "not 1 %" not in tables[3]  # 10 experiments x 12 negatives resolve 1 %
    assert tables[-1].startswith("Smallest p that so many experiments allow: 0.002.")


def test_the_summary_holds_every_number_of_the_figures(judged, tmp_path):
    rows = evasion_rows(judged)
    about = {"model": "tiny", "dataset": "toy", "axis": "lr", "layer": 15, "n_examples": 4}
    *figures, summary = write_evasion(judged, rows, tmp_path / "new", about)
    assert [path.name for path in figures] == ["auroc.png", "tpr.png", "written.png", "scores.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in figures)
    with summary.open() as handle:
        found = list(csv.DictReader(handle))
    assert len(found) == len(rows)
    (one,) = [
        r for r in found
        if (r["probe"], r["metric"], r["condition"], r["against"]) == ("MLP", "auroc", "evasion", "before")
    ]  # fmt: skip
    assert one["model"] == "tiny" and one["n_examples"] == "4" and float(one["q"]) > 0.05
