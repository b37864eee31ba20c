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
    lines = commands("python ")
    assert [line[1] for line in lines][:3] == ["main_prep.py", "main_imitexp.py", "main_imitexp.py"]
    for _, script, *flags in lines:
        words = [str(tiny_folder) if word == "llama3_8b" else word for word in flags]
        more = ["--results", str(tmp_path / "results")]
        more += [] if script.startswith("plot") else ["--config", str(config)]
        assert importlib.import_module(script.removesuffix(".py")).main([*words, *more]) == 0, script
    assert len(list((tmp_path / "results").rglob("imit_*.pkl"))) == 2 * 2  # axes, experiments
    assert len(list((tmp_path / "results").rglob("*.png"))) >= 5


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
