"""The commands of the README work as printed, with a tiny model in place of the large one."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SIZES = """
n_axis: 40
n_trial: 40
max_pc: 8
axes: [pc1]
layer: middle
n_experiments: 2
shots: [0, 2]
max_new_tokens: 4
report_examples: 8
"""


def commands(prefix: str) -> list[list[str]]:
    """Return the words of every indented command line that starts with ``prefix``."""
    return [shlex.split(line) for line in re.findall(rf"^    ({prefix}.*)$", TEXT, re.MULTILINE)]


def test_the_stages_run_in_the_order_printed(tiny_folder, tmp_path):
    config = tmp_path / "sizes.yml"
    config.write_text(SIZES)
    lines = [line for line in commands("python ") if line[1].endswith(".py") and "--loop" not in line]
    assert [line[1] for line in lines][:3] == ["main_prep.py", "main_imitexp.py", "main_imitexp.py"]
    for _, script, *flags in lines:
        words = [str(tiny_folder) if word == "llama3_8b" else word for word in flags]
        more = ["--results", str(tmp_path / "results")]
        more += [] if script.startswith("plot") else ["--config", str(config)]
        assert importlib.import_module(script.removesuffix(".py")).main([*words, *more]) == 0, script
    assert len(list((tmp_path / "results").rglob("imit_*.pkl"))) == 2 * 2  # axes, experiments
    assert len(list((tmp_path / "results").rglob("*.png"))) >= 5


def test_each_study_runs_by_its_command(tiny_folder, tmp_path):
    """With the tiny model and few sentences; a figure, a table and no detectable effect."""
    (tmp_path / "sizes.yml").write_text(SIZES)
    few = ["--n_examples", "4", "--n_test", "4", "--n_experiments", "2"]
    flags = ["--results", str(tmp_path / "results"), "--config", str(tmp_path / "sizes.yml")]
    assert importlib.import_module("main_prep").main(["--model", str(tiny_folder), *flags]) == 0
    lines = [line[2:] for line in commands("python -m tasks.") if line[2] != "tasks.axes"]
    lines += [line[1:] for line in commands("python neurofeedback.py") if "--loop" in line]
    assert len(lines) == 4
    for script, *words in lines:
        words = [str(tiny_folder) if word == "smollm2" else word for word in words]
        words = ["2" if word == "6" else word for word in words]  # turns
        more = few if script.startswith("tasks.") else []
        assert importlib.import_module(script.removesuffix(".py")).main([*words, *flags, *more]) == 0, script
    figures = {path.name for path in (tmp_path / "results").rglob("*.png")}
    assert any("causal" in name for name in figures) and any("loop" in name for name in figures)
    assert len(list((tmp_path / "results").rglob("*.csv"))) >= 4


def test_the_sbatch_lines_name_templates_that_are_there():
    for line in commands("sbatch "):
        assert (ROOT / line[1]).is_file()


@pytest.mark.parametrize(
    "script", ["neurofeedback", "main_prep", "main_imitexp", "main_predexp", "plot_imit"]
)
def test_every_flag_is_in_the_readme(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    flags = set(re.findall(r"--[a-z_]+", capsys.readouterr().out)) - {"--help"}
    missing = {flag for flag in flags if flag not in TEXT}
    assert not missing


def test_the_engine_example_runs(smollm2, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["first"].pooled.shape == (1, 2, 576)
    assert names["second"].reply_pooled.shape == (2, 576)
    assert names["tree"].total.prompt < names["tree"].total.asked


def test_files_that_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_tests_that_the_readme_names_exist():
    names = re.findall(r"`(test_\w+\.py)`", TEXT)
    assert len(names) > 10
    sources = {name: (ROOT / "tests" / name).read_text(encoding="utf-8") for name in names}
    for name in re.findall(r"`(test_\w+?)_?(?:\.\.\.)?`", TEXT.replace(".py`", "`PY")):
        assert any(f"def {name}" in source for source in sources.values()) or f"{name}.py" in sources, name
