"""Settings come from flags, then YAML, then defaults; a mistake names the file, the key and the choices."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys

import pytest

from analysis.base.errors import UserError
from analysis.base.files import ROOT
from analysis.cli.flags import (
    add_axis_flags,
    add_run_flags,
    base_parser,
    chosen_axes,
    experiment_range,
    settings_from,
)
from analysis.cli.script import script
from configs import settings as module
from configs.layers import choose_layers, selected_layers
from configs.settings import (
    CONFIG_DIR,
    MODEL_ALIASES,
    SELECTED_LAYERS,
    SettingError,
    Settings,
    as_plain,
    load_settings,
    read_yaml,
    setting_names,
)

N_LAYERS = {
    "llama3_8b": 32, "llama3.1_8b": 32, "llama3_1b": 16, "llama3.2_1b": 16, "llama3_3b": 28,
    "llama3.2_3b": 28, "llama3_70b": 80, "llama3.1_70b": 80, "qwen2.5_1.5b": 28, "qwen2.5_3b": 36,
    "qwen2.5_7b": 28, "qwen2.5_72b": 80, "smollm2": 30,
}  # fmt: skip


def load(tmp_path, text: str, model: str = "org/any", **flags) -> Settings:
    path = tmp_path / "own.yml"
    path.write_text(text, encoding="utf-8")
    return load_settings(model, path, flags)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_axes: 5", r"own\.yml: unknown setting 'n_axes': choose from .*n_axis, .*temperature"),
        ("7: 5", r"own\.yml: unknown setting 7"),
        ("n_axis: many", r"own\.yml: n_axis = 'many': must be int, not str"),
        ("n_axis: 4.5", r"n_axis = 4\.5: must be int, not float"),
        ("n_axis: true", r"n_axis = True: must be int"),
        ("temperature: false", r"temperature = False: must be float"),
        ("lr_c: '1'", r"lr_c = '1': must be a number > 0, or auto"),
        ("layer: 7", r"layer = 7: must be str"),
        ("shots: 4", r"shots = 4: must be a list of int"),
        ("shots: [0, a]", r"shots = 'a': must be int"),
        ("axes: lr", r"axes = 'lr': must be a list of str"),
        ("seed:", r"seed = None: must be int, not NoneType"),
        ("threshold: mean", r"own\.yml: setting threshold = 'mean': must be median or zero"),
        ("modes: [activ]", r"modes = \('activ',\): must be active, inactive"),
        ("modes: []", r"modes = \(\): must be active, inactive"),
        ("n_trial: 0", r"n_trial = 0: must be a number >= 1"),
        ("max_new_tokens: -1", r"max_new_tokens = -1: must be a number >= 1"),
        ("seed: -1", r"seed = -1: must be a number >= 0"),
        ("temperature: -0.1", r"temperature = -0\.1: must be a number >= 0"),
        ("temperature: .nan", r"temperature = nan: must be"),
        ("lr_c: 0", r"lr_c = 0\.0: must be a number > 0"),
        ("report_examples: 1", r"report_examples = 1: must be a number >= 2"),
        ("shots: [4, 2]", r"shots = \(4, 2\): must be rising numbers >= 0"),
        ("shots: [2, 2]", r"must be rising"),
        ("shots: [-2, 2]", r"must be rising numbers >= 0"),
        ("shots: []", r"must be rising"),
        ("- a\n- b", r"own\.yml holds a list: it must hold `key: value` lines"),
        ("shots: [1, 2", r"own\.yml is not a readable YAML file"),
        ("a: b: c", r"own\.yml is not a readable YAML file"),
        ("modes: [active, active]", r"modes = .*: must be active, inactive"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_names_file_key_and_choices(tmp_path, text, message):
    with pytest.raises(SettingError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "own.yml") in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "own.yml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(SettingError, match=r"own\.yml is not a readable YAML file"):
        load_settings("x", tmp_path / "own.yml")
    with pytest.raises(SettingError, match="is not a readable YAML file"):
        load_settings("x", tmp_path)  # a folder


def test_a_missing_file_lists_the_shipped_ones(tmp_path):
    with pytest.raises(SettingError, match=r"no config file .*nothing\.yml: .*analysis\.yml, cpu\.yml"):
        load_settings("x", tmp_path / "nothing.yml")


def test_a_mistake_in_a_flag_says_so():
    with pytest.raises(SettingError, match="command line: setting seed = -3"):
        load_settings("x", None, {"seed": -3})


# ---------------------------------------------------------------- order


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path, monkeypatch):
    text = "seed: 7\nn_axis: 40\nlr_c: 2\nshots: [0, 3]"
    found = load(tmp_path, text, seed=8)
    assert (found.seed, found.n_axis, found.lr_c, found.shots) == (8, 40, 2.0, (0, 3))
    assert isinstance(found.lr_c, float)
    untouched = dataclasses.replace(found, seed=42, n_axis=600, lr_c="auto", shots=Settings().shots)
    assert untouched == load_settings("org/any")
    # the defaults hold where no file says anything
    monkeypatch.setattr(module, "CONFIG_DIR", tmp_path)
    for name in ("analysis.yml", "nf_exp1.yml"):
        (tmp_path / name).write_text("")
    assert load_settings("org/any") == Settings()
    (tmp_path / "analysis.yml").write_text("seed: 1\nn_axis: 8")
    (tmp_path / "nf_exp1.yml").write_text("seed: 2")
    both = load_settings("org/any")
    assert (both.seed, both.n_axis) == (2, 8)


def test_only_the_embedded_model_gets_the_sizes_for_two_cores(tmp_path):
    cpu = read_yaml(CONFIG_DIR / "cpu.yml")
    small, large = as_plain(load_settings("smollm2")), as_plain(load_settings("llama3_8b"))
    assert {key: small[key] for key in cpu} == cpu != {key: large[key] for key in cpu}
    assert large == as_plain(load_settings("meta-llama/Llama-3.1-8B-Instruct"))
    # a file of one's own stands instead
    assert load(tmp_path, "seed: 3", "smollm2").n_experiments == load_settings("llama3_8b").n_experiments


def test_a_shipped_file_is_found_by_its_name():
    assert load_settings("org/any", "cpu.yml") == load_settings("smollm2")


def test_settings_are_kept_as_builtins():
    plain = dict(as_plain(Settings()))
    assert plain.keys() == setting_names()
    assert json.loads(json.dumps(plain)) == plain and plain["shots"][:3] == [0, 2, 4]


# ---------------------------------------------------------------- the command line


def parse(*argv: str) -> argparse.Namespace:
    parser = base_parser("text")
    add_run_flags(parser)
    add_axis_flags(parser)
    return parser.parse_args(argv)


def test_flags_that_are_not_given_leave_the_file_alone(tmp_path):
    (tmp_path / "own.yml").write_text("seed: 7\nlayer: all")
    config = str(tmp_path / "own.yml")
    assert settings_from(parse("--config", config), "x").seed == 7
    given = settings_from(parse("--config", config, "--seed", "9", "--layer", "3,5"), "x")
    assert (given.seed, given.layer) == (9, "3,5")


def test_axes_are_named_by_clf_and_pc():
    assert chosen_axes(parse()) == ("lr",)
    assert chosen_axes(parse("--pc", "1", "12")) == ("pc1", "pc12")
    assert chosen_axes(parse("--clf", "lr", "random0", "--pc", "2", "2")) == ("lr", "random0", "pc2")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, [0, 1]), (5, None, [5, 6]), (0, -1, [0, 1, 2, 3]), (3, -1, [3]), (9, -1, []), (1, 3, [1, 2])],
)
def test_experiments_are_a_smoke_run_all_or_a_range(start, end, expected):
    settings = Settings(n_experiments=4, smoke_experiments=2)
    assert list(experiment_range(start, end, settings)) == expected


@pytest.mark.parametrize(("start", "end"), [(3, 2), (0, -2)])
def test_a_range_that_ends_before_it_starts_is_an_error(start, end):
    with pytest.raises(UserError, match="end >= start, or -1 for all"):
        experiment_range(start, end, Settings())


def ended(problem: BaseException) -> int:
    def main(argv: object = None) -> int:
        raise problem

    return script(main)([])


def test_mistakes_are_one_line_and_interruptions_say_how_to_go_on(capsys):
    assert ended(UserError("wrong name")) == ended(SettingError("wrong name")) == 2
    assert capsys.readouterr().err == "error: wrong name\n" * 2
    assert ended(KeyboardInterrupt()) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [ValueError("x"), ZeroDivisionError("x"), OSError("x")])
def test_a_fault_of_the_program_itself_stays_loud(fault):
    with pytest.raises(type(fault), match="x"):
        ended(fault)


SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("exit", end.code, {"torch", "transformers", "sklearn"} & {*sys.modules})
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_instant_since_nothing_heavy_is_imported(name):
    command = [sys.executable, "-c", HELP, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("usage: ") and "--dataset" in done.stdout and "Try " in done.stdout
    assert done.stdout.splitlines()[-1] == "exit 0 set()"


def test_help_is_tried_for_every_stage():
    assert {"main_prep.py", "main_imitexp.py", "main_predexp.py"} <= set(SCRIPTS)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("alias", MODEL_ALIASES)
def test_the_table_of_selected_layers_holds_what_the_formula_gives(alias):
    n_layers = N_LAYERS[alias]
    computed = selected_layers("org/not-in-the-table", n_layers)
    assert SELECTED_LAYERS[MODEL_ALIASES[alias]] == computed == selected_layers(alias, n_layers)
    assert (computed[0], computed[-1], len(computed)) == (0, n_layers - 1, 5)


def test_selected_layers_are_the_quarters_of_the_depth_with_halves_rounded_up():
    assert selected_layers("x", 5) == (0, 1, 2, 3, 4)
    assert selected_layers("x", 30) == (0, 7, 15, 22, 29)  # 7.25, 14.5, 21.75
    assert selected_layers("x", 2) == (0, 1) and selected_layers("x", 1) == (0,)
    # an alias whose model turns out to have other layers than the table says
    assert selected_layers("smollm2", 5) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("all", (0, 1, 2, 3)), ("middle", (2,)), ("selected", (0, 1, 2, 3)), ("3", (3,)), (" 1 , 3,1", (1, 3))],
)
def test_layers_are_chosen_by_word_or_number(spec, layers):
    assert choose_layers(spec, "org/tiny", 4) == layers


@pytest.mark.parametrize("spec", ["last", "", "1-3", "-1", "1,", "all,1", "1.0"])
def test_an_unknown_layer_lists_the_choices(spec):
    with pytest.raises(UserError, match="unknown layer .*choose from all, middle, selected, numbers such as"):
        choose_layers(spec, "org/tiny", 4)


@pytest.mark.parametrize("spec", ["4", "0,99"])
def test_a_layer_beyond_the_model_names_the_range(spec):
    with pytest.raises(UserError, match=r"org/tiny has layers 0\.\.3"):
        choose_layers(spec, "org/tiny", 4)
