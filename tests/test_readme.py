"""README and the other pages are true: each command and example runs, a tiny model in place of large ones.

Indented and unnamed blocks, and code within a line that begins like a command, hold commands; ``text`` holds
neither commands nor code. A command that nothing here knows how to run fails.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import pytest
import yaml

from configs.settings import CONFIG_DIR, MODEL_ALIASES, Settings, apply, read_yaml
from data import download, load
from tests import results_page
from tests.test_slurm_templates import ECHO, chain, site
from tests.test_slurm_templates import run as run_template

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *(path for path in [ROOT / "CONTRIBUTING.md"] if path.exists()),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data" / "README.md",
    ROOT / "tasks" / "benchmarks" / "RESULTS.md",
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
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
SMALL = {
    "--n_examples": "4", "--n_test": "4", "--n_written": "4", "--n_experiments": "2", "--keys": "commonsense",
}  # fmt: skip
"""Flags that are added where a script has them and the page does not give them."""
SLOW = ("tasks.benchmarks.", "tasks.fault_harness")
"""Modules that are only asked for their flags here; tests/test_bench*.py and test_faults.py run them."""
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:python3?|make|sbatch|accelerate|torchrun|uv|pip|git|pre-commit|tasks/\S+\.sh) "
)


# ---------------------------------------------------------------- what the pages hold


@dataclass(frozen=True)
class Block:
    """Lines of a page that are no prose."""

    page: str
    kind: str
    """What stands after ```, or ``command``."""
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, from the top."""
    kind, held, before = "", [], ""
    for line in [*TEXTS[page].splitlines(), ""]:
        if line.startswith("```"):
            if kind and kind != "command":
                yield Block(page, kind, "\n".join(held))
                kind, held = "", []
            else:
                kind, held = line[3:].strip() or "sh", []
        elif kind and kind != "command":
            held.append(line)
        elif line.startswith("    ") and (kind or not before.strip()):
            kind = "command"
            held.append(line[4:])
        elif kind:
            yield Block(page, kind, "\n".join(held))
            kind, held = "", []
        before = line


def _is_command(code: str) -> bool:
    """Return whether a piece of code in a line is a command: ``python`` alone is the name of a field."""
    return bool(PROGRAM.match(f"{code} ")) and code != "python"


def commands(page: str) -> Iterator[str]:
    """Yield the commands of a page: those of its blocks, then those within its lines."""
    for block in blocks(page):
        if block.kind in ("command", "sh", "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from filter(None, (part.strip() for part in line.split("&&")))
    prose = re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        yield from (part for part in " ".join(code.split()).split(" && ") if _is_command(part))


COMMANDS = list(dict.fromkeys((page, command) for page in TEXTS for command in commands(page)))


# ---------------------------------------------------------------- how each is run


@pytest.fixture(scope="module")
def house(tiny_folder, tmp_path_factory) -> House:
    """A folder to stand in, with a small study of the tiny model under results/."""
    folder = tmp_path_factory.mktemp("house")
    made = House(folder, tiny_folder)
    (folder / "sizes.yml").write_text(SIZES)
    here = Path.cwd()
    os.chdir(folder)
    try:
        for line in (
            "python main_prep.py --model smollm2",
            "python main_imitexp.py --model smollm2 --clf lr --imit_exp_end -1",
            "python main_predexp.py --config_s smollm2 --clf lr --pred_exp_end -1",
            "python -m tasks.axes export lr --model smollm2 --out lr.gguf",
        ):
            made.run(line)
        (study,) = (folder / "results").iterdir()
        (folder / "results" / "smollm2").symlink_to(study.name)
    finally:
        os.chdir(here)
    return made


@dataclass
class House:
    """Runs commands in small."""

    folder: Path
    model: Path
    done: set[tuple[str, ...]] = field(default_factory=set)
    """What has run, in small: pages repeat themselves."""

    def run(self, line: str) -> None:
        """Run a command and see that it succeeds."""
        words = shlex.split(line, comments=True)
        while "=" in words[0]:
            del words[0]
        ways = {
            "python": self.python, "python3": self.python, "make": make, "sbatch": self.sbatch,
            "accelerate": self.launch, "torchrun": self.launch, "uv": install, "pip": install,
            "pre-commit": hooks, "tasks/submit_chain.sh": self.chain,
        }  # fmt: skip
        assert words[0] in ways, f"no way to run {line!r}"
        ways[words[0]](words[1:])

    def python(self, words: list[str]) -> None:
        """Call the main function of a script or a module."""
        name, *words = words[1:] if words[0] == "-m" else (words[0].removesuffix(".py"), *words[1:])
        if name == "pip":
            return install(words)
        if name == "tasks.benchmarks.<name>":
            for path in (ROOT / "tasks" / "benchmarks").glob("bench_*.py"):
                self.python(["-m", f"tasks.benchmarks.{path.stem}"])
            return None
        if name == "tests.results_page":  # it writes into docs/
            page = results_page.PAGE.read_text(encoding="utf-8")
            assert results_page.whole(page) == page
            return None
        if name in ("pytest", "ruff", "mypy"):
            assert all((ROOT / word.split("::")[0]).exists() for word in words if "/" in word)
            return None
        module = importlib.import_module(name)
        known = flags_of(name)
        unknown = [word for word in words if word.startswith("--") and word not in known]
        assert not unknown, f"{name} has no {unknown}"
        if name.startswith(SLOW):
            return None
        small = list(self.in_small(words, known))
        if (name, *sorted(small)) not in self.done:
            code = module.main(small)
            assert code == 0, f"{name} ended with {code}"
            self.done.add((name, *sorted(small)))
        return None

    def in_small(self, words: list[str], known: set[str]) -> Iterator[str]:
        """Yield the words with the tiny model and small sizes."""
        before = ""
        for word in words:
            if word in MODEL_ALIASES:
                yield str(self.model)
            elif word.endswith(".yml"):
                named = CONFIG_DIR / word
                if named.exists():
                    apply(Settings(), read_yaml(named), word)
                yield "sizes.yml"
            elif before == "--loop":
                yield "2"
            else:
                yield {"FILE": "lr.gguf", "<name>": "mood", "KEY": "commonsense"}.get(word, word)
            before = word
        more = {"--model": str(self.model), "--config": "sizes.yml", **SMALL}
        more |= {} if "--model" in known else {"--config_s": str(self.model)}
        for flag, value in more.items():
            if flag in known and flag not in words:
                yield from (flag, value)

    def sbatch(self, words: list[str]) -> None:
        """Run the template with a stand-in python, then what it would have run, dry."""
        while words and words[0].startswith("--"):
            del words[0]
        if not words:  # `sbatch --array=1-8`, named alone
            return
        done = run_template(words[0], site(self.place(), ECHO), *words[1:])
        assert done.returncode == 0, done.stderr
        self.python([*(line[1:-1] for line in done.stdout.splitlines()), "--dry_run"])

    def chain(self, words: list[str]) -> None:
        """Submit to a stand-in sbatch."""
        done = chain(self.place(), "echo 1", *words)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 4, done.stderr

    def place(self) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def launch(self, words: list[str]) -> None:
        """Run one process, dry; tests/test_accelerate.py starts several."""
        script = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
        if script is not None:
            self.python([*words[script:], "--dry_run"])


def flags_of(name: str) -> set[str]:
    """Return the flags in the help of a script."""
    with redirect_stdout(StringIO()) as told, pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(["--help"])
    assert ended.value.code == 0
    return set(re.findall(r"--[a-z_]+", told.getvalue()))


def make(targets: list[str]) -> None:
    """See that the targets are there."""
    rules = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(word for word in targets if "=" not in word) <= set(rules)


def hooks(words: list[str]) -> None:
    """See that the hooks do what `make lint` does."""
    assert words == ["install"]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    entries = [hook["entry"].removeprefix(".venv/bin/python ") for hook in local["hooks"]]
    lines = lint.strip().split("\n\t")
    assert entries == [line.removeprefix("$(PY) ").removesuffix(" .") for line in lines]


def install(words: list[str]) -> None:
    """See that the lists of requirements are there."""
    assert "install" in words
    assert all((ROOT / word).is_file() for flag, word in zip(words, words[1:], strict=False) if flag == "-r")


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_every_command_of_every_page_runs(house, tmp_path, monkeypatch, page, command):
    monkeypatch.chdir(house.folder)
    if "data.download" in command:
        monkeypatch.setattr(download, "fetch", lambda source, origin: source.path)
    if "data.template" in command:
        monkeypatch.setattr(load, "DATA_DIR", tmp_path)
    house.run(command)


def test_a_command_that_is_not_known_fails(house, monkeypatch):
    monkeypatch.chdir(house.folder)
    for line in ("rm -r results", "python nothing.py", "python main_prep.py --frobnicate", "make coffee",
                 "sbatch nothing.slurm --model smollm2", "uv pip install -r nothing.txt"):  # fmt: skip
        with pytest.raises((AssertionError, ModuleNotFoundError)):
            house.run(line)


@pytest.mark.parametrize("page", [page for page in TEXTS if "```python" in TEXTS[page]])
def test_the_examples_in_python_run(smollm2, house, monkeypatch, page):
    """Those of a page one after the other, with the same names."""
    monkeypatch.chdir(house.folder)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.text.replace("layer15", "layer2"), page, "exec"), names)


def test_settings_in_pages_are_settings():
    found = [block for page in TEXTS for block in blocks(page) if block.kind in ("yaml", "yml")]
    assert found
    for block in found:
        apply(Settings(), yaml.safe_load(block.text), block.page)


def test_every_block_says_what_it_is():
    kinds = {"command", "sh", "bash", "python", "yaml", "yml", "text", "diff", "json"}
    wrong = [
        (block.page, block.text[:60]) for page in TEXTS for block in blocks(page) if block.kind not in kinds
    ]
    assert not wrong


def test_the_pages_hold_commands_of_every_stage():
    """That the reader of pages above finds what is there."""
    readme = [line for page, line in COMMANDS if page == "README.md"]
    scripts = [line.split()[1] for line in readme if line.startswith("python ")]
    stages = ["main_prep.py", "main_imitexp.py", "main_imitexp.py", "main_predexp.py", "main_predexp.py"]
    assert scripts[:7] == [*stages, "plot_imit.py", "plot_pred.py"]
    assert {line.split()[0] for _, line in COMMANDS} >= {"python", "make", "sbatch", "accelerate", "uv"}
    assert len(COMMANDS) > 30 and len(TEXTS["README.md"].splitlines()) <= 150


# ---------------------------------------------------------------- what the pages name


@pytest.mark.parametrize(
    "script", ["neurofeedback", "main_prep", "main_imitexp", "main_predexp", "plot_imit", "plot_pred"]
)
def test_every_flag_is_in_the_pages(script):
    missing = {
        flag for flag in flags_of(script) - {"--help"} if not any(flag in text for text in TEXTS.values())
    }
    assert not missing


def test_files_that_pages_link_to_exist():
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if not target.startswith("http"):
                assert (ROOT / page).parent.joinpath(target).exists(), (page, target)


def test_headings_that_pages_link_to_exist():
    for page, text in TEXTS.items():
        for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text):
            linked = (ROOT / page).parent.joinpath(target) if target else ROOT / page
            heads = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, (
                page,
                anchor,
            )


def test_tests_that_pages_name_exist():
    text = "\n".join(TEXTS.values())
    names = re.findall(r"`(?:tests/)?(test_\w+\.py)`", text)
    assert len(names) > 10
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")}
    assert set(names) <= set(sources)
    for name in re.findall(r"`(test_\w+?)_?(?:\.\.\.)?`", text.replace(".py`", "`PY")):
        assert any(f"def {name}" in source for source in sources.values()) or f"{name}.py" in sources, name


def test_paths_that_pages_name_exist():
    """In code within a line: what looks like a path of this repository."""
    for page, text in TEXTS.items():
        for name in re.findall(r"`((?:analysis|configs|tasks|tests|docs|\.ci)/[\w./]+)`", text):
            assert (ROOT / name).exists(), (page, name)
