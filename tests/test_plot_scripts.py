"""The plot scripts on synthetic results: what they write, what they refuse, what they never import."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest

import plot_imit
import plot_pred
from analysis.base.errors import UserError
from analysis.base.files import ROOT
from analysis.cli.plot_flags import resolve_layers
from analysis.figures import control_detail
from analysis.results.store import UnitKey
from tests import fake_results


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return fake_results.write_study(
        tmp_path_factory.mktemp("plots"), layers=(1, 3), n_layers=5, n_exp=3, shots=(0, 4), report_n=16
    )


def flags(store, *more):
    return ["--results", str(store.root), "--log_level", "warning", *more]


def test_plot_imit_writes_the_main_figures_and_the_tables(store, capsys):
    assert plot_imit.main(flags(store)) == 0
    kinds = ("control", "control_readout", "control_heatmap", "control_scores")
    names = {f"{kind}_layer{layer}.png" for kind in kinds for layer in (1, 3)}
    names |= {"control_by_layer.png", "control_groups.png", "axes_overview.png", "axes_variance.png"}
    names |= {"axes_cosines.png", "summary_imit.csv", "summary.csv", "index.html"}
    printed = capsys.readouterr().out
    more = {"overview_layer1.png", "overview_layer3.png"}
    more |= {name.replace(".png", ".json") for name in names if name.endswith(".png")}
    assert names | more == {path.name for path in store.figures.iterdir()}
    assert all(name in printed for name in names) and "d [95 % CI]" in printed
    with (store.figures / "summary_imit.csv").open() as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 2 * 2 * 2 * 2  # axes, layers, modes, N
    assert {"d", "d_low", "dz", "p", "q", "experiments", "trials", "empty", "copy_rate"} <= set(lines[0])
    assert next(line for line in lines if line["mode"] == "inactive")["copy_rate"] == ""


def test_plot_pred_writes_a_figure_per_layer_and_one_of_all(store, capsys, tmp_path):
    assert plot_pred.main(flags(store, "--out", str(tmp_path), "--format", "pdf", "svg")) == 0
    parts = ("layer1", "layer3", "by_layer", "observers")
    names = {f"report_{part}.{form}" for part in parts for form in ("pdf", "svg")}
    tables = {"summary_pred.csv", "summary.csv", "index.html"} | {f"report_{part}.json" for part in parts}
    assert {path.name for path in tmp_path.iterdir()} == names | tables
    assert "majority" in capsys.readouterr().out


def test_axes_layer_and_mode_narrow_the_figures(store, tmp_path):
    argv = flags(store, "--axes", "pc1", "--layer", "3", "--mode", "active", "--out", str(tmp_path))
    assert plot_imit.main(argv) == 0
    with (tmp_path / "summary_imit.csv").open() as handle:
        found = {(row["axis"], row["layer"], row["mode"]) for row in csv.DictReader(handle)}
    assert found == {("pc1", "3", "active")} and not (tmp_path / "control_by_layer.png").exists()


def test_a_single_run_of_one_n_can_be_drawn(tmp_path):
    few = fake_results.write_study(
        tmp_path, axes=("lr",), layers=(0,), n_layers=1, n_exp=1, shots=(0,), report_n=2, modes=("active",)
    )
    drawn = {figure.name for figure in plot_imit.make_figures(few, chosen=plot_imit.KINDS)}
    kinds = ("control", *(f"control_{kind}" for kind in ("readout", "heatmap", "scores", "density")))
    kinds += tuple(f"control_{kind}" for kind in ("accumulation", "precision", "cosine"))
    assert drawn == {*(f"{kind}_layer0" for kind in kinds), "axes_overview", "axes_variance"}
    reported = {figure.name for figure in plot_pred.make_figures(few, chosen=plot_pred.KINDS)}
    assert reported == {"report_layer0", "report_observers"}


def test_missing_runs_exit_with_2_and_the_command(store, capsys):
    assert plot_imit.main(flags(store, "--axes", "pc8")) == 2
    assert "--pc 8 --layer middle --imit_exp_end -1`" in capsys.readouterr().err
    assert plot_pred.main(flags(store, "--layer", "2")) == 2
    assert "main_predexp.py" in capsys.readouterr().err
    assert plot_imit.main(flags(store, "--layer", "9")) == 2
    assert "has layers 0..4" in capsys.readouterr().err


def test_a_slip_in_a_chart_shows_its_traceback(store, tmp_path, monkeypatch, capsys):
    def slip(panels, title, note):
        raise ValueError("panels of different lengths")

    monkeypatch.setattr(control_detail, "plot_cosine_bars", slip)
    with pytest.raises(ValueError, match="panels of different lengths"):
        plot_imit.main(flags(store, "--figure", "cosine", "--out", str(tmp_path)))
    assert "error:" not in capsys.readouterr().err


def test_layers_are_resolved_from_those_on_disk(store, tmp_path):
    assert resolve_layers(store, "all", "imit") is None
    assert resolve_layers(store, "middle", "imit") == [2]
    assert resolve_layers(store, "3,1", "imit") == [3, 1]
    other = fake_results.write_study(
        tmp_path, axes=("lr",), layers=(1, 3), n_layers=5, n_exp=1, model="own/x"
    )
    assert resolve_layers(other, "selected", "imit") == [1, 3]  # of 0, 1, 2, 3, 4 those with runs
    with pytest.raises(UserError, match="choose from all, middle, selected, numbers"):
        resolve_layers(store, "last", "imit")


def test_reports_of_another_models_scores_need_no_axes(tmp_path):
    crossed = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=2, model="big_from_small")
    for layer in crossed.layers():
        crossed.axes(layer).unlink()
    drawn = [figure.name for figure in plot_pred.make_figures(crossed)]
    assert drawn == ["report_layer15", "report_observers"]
    assert resolve_layers(crossed, "15", "pred") == [15]
    assert crossed.units("pred")[0] == UnitKey("pred", "lr", 15, 0)


@pytest.mark.parametrize("script", ["plot_imit", "plot_pred"])
def test_help_is_instant_and_nothing_loads_torch(script):
    code = (
        f"import sys, {script}\n"
        f"try: {script}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules), 'heavy import'\n"
        "import analysis.figures.control, analysis.figures.report, analysis.tables.control\n"
        "import analysis.pages.report_page\n"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "--format" in done.stdout and "results/<model>" in done.stdout


def test_the_ensemble_has_no_direction_that_other_layers_could_be_read_along(tmp_path):
    small = {"layers": (0,), "n_layers": 2, "n_exp": 2, "shots": (0, 4), "report_n": 8}
    both = fake_results.write_study(tmp_path / "a", axes=("lr", "lr_ensemble"), **small)
    (drawn,) = plot_imit.make_figures(both, chosen=["accumulation"])
    assert drawn.name == "control_accumulation_layer0"
    with (both.figures / "summary.csv").open() as handle:
        assert {row["axis"] for row in csv.DictReader(handle)} == {"lr"}
    alone = fake_results.write_study(tmp_path / "b", axes=("lr_ensemble",), extra=("lr",), **small)
    with pytest.raises(UserError, match="allow none of the figures asked for"):
        plot_imit.make_figures(alone, chosen=["accumulation"])
