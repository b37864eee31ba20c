"""Axes leave and enter through files: tasks/axes.py and analysis/axes/imported.py."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import main_imitexp
import main_prep
import plot_imit
from analysis.axes.imported import add_axis
from analysis.base.errors import UserError
from analysis.results.store import Store, UnitKey, read
from analysis.tables.control import affected_effects
from analysis.tables.read import load_control
from tasks import axes as script
from tasks import verify
from tests.test_determinism import words
from tests.test_pipeline import CONFIG


@pytest.fixture(scope="module")
def prepared(tiny_folder, tmp_path_factory):
    """Flags of a small study whose axes are there."""
    folder = tmp_path_factory.mktemp("axes")
    (folder / "small.yml").write_text(CONFIG)
    flags = words(tiny_folder, folder / "small.yml", folder / "results")
    assert main_prep.main(flags) == 0
    return flags


@pytest.fixture
def study(prepared, tmp_path):
    """A copy of it: flags of the scripts, and the store."""
    results = shutil.copytree(prepared[5], tmp_path / "results")
    flags = [*prepared[:5], str(results), *prepared[6:]]
    return flags, Store(results, prepared[1], "commonsense")


def io(flags, *more):
    """Flags of tasks/axes.py."""
    return [*flags[:2], *flags[4:], *more]


@pytest.mark.parametrize("form", ["gguf", "safetensors"])
def test_an_axis_that_went_out_and_in_scores_as_before(study, tmp_path, form, capsys):
    flags, store = study
    out = tmp_path / f"lr.{form}"
    assert script.main(io(flags, "export", "lr", "--layer", "1,2", "--out", str(out))) == 0
    assert script.main(io(flags, "show", str(out))) == 0
    assert "lr: layers 1, 2, hidden size 32" in capsys.readouterr().out
    assert script.main(io(flags, "import", str(out), "--name", "mine")) == 0
    for layer in (1, 2):
        record = read(store.axes(layer))
        old, new = (record["names"].index(name) for name in ("lr", "mine"))
        np.testing.assert_allclose(record["directions"][new], record["directions"][old], atol=1e-6)
        np.testing.assert_allclose(record["scores"][:, new], record["scores"][:, old], atol=1e-4)
        assert record["accuracy"]["mine"] == pytest.approx(record["accuracy"]["lr"])
    assert "mine" not in read(store.axes(0))["names"]


def test_layers_that_a_file_cannot_hold_are_the_users_error(study, tmp_path, capsys):
    flags, store = study
    assert script.main(io(flags, "export", "lr", "--layer", "0", "--out", str(tmp_path / "a.gguf"))) == 2
    assert "--layer 0: " in capsys.readouterr().err and not list(tmp_path.glob("a.*"))
    store.axes(2).unlink()
    assert (
        script.main(io(flags, "export", "lr", "--layer", "2", "--out", str(tmp_path / "a.safetensors"))) == 2
    )
    assert "(there are 0, 1, 3;" in capsys.readouterr().err


def test_an_imported_axis_is_targeted_like_any_other(study, tmp_path):
    flags, store = study
    out = str(tmp_path / "lr.gguf")
    assert script.main(io(flags, "export", "lr", "--layer", "1", "--out", out)) == 0
    assert script.main(io(flags, "import", out, "--name", "mine")) == 0
    assert main_imitexp.main([*flags, "--clf", "mine", "--layer", "1", "--imit_exp_end", "1"]) == 0
    unit = read(store.unit(UnitKey("imit", "mine", 1, 0)))
    columns = [unit["affected"].index(name) for name in ("lr", "mine")]
    np.testing.assert_allclose(*unit["scores"][:, columns].T, atol=1e-3)


def test_an_axis_imported_between_two_runs_is_missing_in_the_units_before(study, tmp_path, capsys):
    """The grid stays one: verify and plots take it; what an older unit was not scored on is NaN."""
    flags, store = study
    run = [*flags, "--clf", "lr", "--layer", "1"]
    assert main_imitexp.main([*run, "--imit_exp_end", "2"]) == 0
    out = str(tmp_path / "lr.safetensors")
    assert script.main(io(flags, "export", "lr", "--layer", "1,2", "--out", out)) == 0
    assert script.main(io(flags, "import", out, "--name", "mine")) == 0
    assert main_imitexp.main([*run, "--imit_exp_end", "4"]) == 0
    (series,) = load_control(store).series
    assert series.exps.tolist() == [0, 1, 2, 3] and series.affected[-1] == "mine"
    mine = series.scores[..., -1]
    assert np.isnan(mine[:2]).all()
    np.testing.assert_allclose(mine[2:], series.target[2:], atol=1e-3)  # the same direction under two names
    assert np.isfinite(series.target[:, :, 1]).all()  # inactive: no reply can be empty
    for mode in series.modes:
        assert {row["affected"]: row["experiments"] for row in affected_effects([series], mode)}["mine"] <= 2
    assert plot_imit.main([*io(flags), "--all"]) == 0
    assert verify.main([str(store.folder)]) == 0
    assert main_imitexp.main([*run, "--imit_exp_end", "4"]) == 0 and not list(store.folder.glob("*.corrupt"))


def test_another_direction_under_the_same_name_is_not_mixed_in(study):
    flags, store = study
    rng = np.random.default_rng(0)
    run = [*flags, "--clf", "mine", "--layer", "1", "--imit_exp_end", "1"]
    add_axis(store, "mine", {1: rng.normal(size=32)})
    assert main_imitexp.main(run) == 0
    fitted = [*flags, "--clf", "lr", "--layer", "1", "--imit_exp_end", "1"]
    assert main_imitexp.main(fitted) == 0
    add_axis(store, "mine", {1: rng.normal(size=32)})
    assert read(store.axes(1))["names"].count("mine") == 1
    assert main_imitexp.main(fitted) == 0  # what does not use it is kept
    assert main_imitexp.main(run) == 2
    assert main_imitexp.main([*run, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("name", "vectors", "message"),
    [
        ("pc3", {1: np.ones(32)}, "no name of a fitted axis"),
        ("Mine!", {1: np.ones(32)}, "small letters"),
        ("mine", {9: np.ones(32)}, r"the axis has layers \[9\]"),
        ("mine", {1: np.ones(31)}, r"has shape \(31,\)"),
        ("mine", {1: np.zeros(32)}, "not all 0"),
        ("mine", {1: np.ones(32), 2: np.full(32, np.nan)}, "finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(study, name, vectors, message):
    _, store = study
    before = [store.axes(layer).read_bytes() for layer in store.layers()]
    with pytest.raises(UserError, match=message):
        add_axis(store, name, vectors)
    assert before == [store.axes(layer).read_bytes() for layer in store.layers()]


def test_mistakes_on_the_command_line_are_one_line(study, tmp_path, capsys):
    flags, _ = study
    assert script.main(io(flags, "export", "lr", "--out", "lr.txt")) == 2
    assert script.main(io(flags, "export", "none", "--out", str(tmp_path / "x.gguf"))) == 2
    assert script.main(io(flags, "import", str(tmp_path / "absent.gguf"))) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
