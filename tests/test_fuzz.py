"""Random and mutated input ends in success or in one line that says what is wrong: no traceback, no hang."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import data.load
import main_prep
from analysis import process_prompts
from analysis.base.errors import UserError
from analysis.process_prompts import Prompter, Turn, load_prompts
from configs.settings import CONFIG_DIR, load_settings, setting_names
from data.load import read_dataset
from tests.conftest import make_tokenizer

fuzz = partial(
    settings, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
STRANGE = pytest.mark.filterwarnings("ignore")  # of numpy, about means of nothing

# ---------------------------------------------------------------- what may happen


def one_line(text: str) -> None:
    assert len(text.splitlines()) == 1, text


def fine(function: Callable[..., Any], *args: Any) -> bool:
    """Return whether it works; the only error allowed is a UserError of one line."""
    try:
        function(*args)
    except UserError as error:
        one_line(str(error))
        return False
    return True


def exits(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a script; it ends with 0, or with 2 and one line."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main([*argv, "--log_level", "error"])
    assert code in (0, 2)
    if code == 2:
        one_line(err.getvalue())
        assert err.getvalue().startswith("error: ")
    return code


# ---------------------------------------------------------------- random input

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from([10**30, -1, 0, 2, "median", "all", "", "{label}", float("nan"), b"x"]),
)  # fmt: skip
keys = st.one_of(st.text(max_size=5), st.none(), st.integers(0, 9), st.booleans())
values = st.recursive(
    scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(keys, x, max_size=3), max_leaves=6
)


@st.composite
def mutated(draw: st.DrawFn, good: bytes, pieces: Sequence[bytes]) -> bytes:
    """Return ``good`` with up to four stretches replaced by nothing, special pieces, or random bytes."""
    text = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(text) - 1)))
        stop = start + draw(st.sampled_from([0, 0, 1, 2, 7, 60]))
        text[start:stop] = draw(st.sampled_from([b"", *pieces]) | st.binary(max_size=3))
    return bytes(text)


YAML_PIECES = [
    *(bytes([c]) for c in b"[]{}&*!|>%@`#,?:-0"), b": ", b"\n- ", b"&a ", b"*a", b"!!int ", b"!!binary ",
    b"2001-13-41", b"1e999", b"\n  ", b"\xef\xbb\xbf", b"\xff", b"\0", b"<<: ", b"{x!r}", b"}}",
]  # fmt: skip
FILE_PIECES = [
    b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"2", b"\xe2\x80\xa8", b"{}", b"[", b"null", b"\\ud800",
]  # fmt: skip


# ---------------------------------------------------------------- settings


@fuzz(max_examples=100)
@given(content=st.dictionaries(st.sampled_from(sorted(setting_names())) | keys, values, max_size=4) | values)
def test_any_yaml_structure_is_read_or_refused(tmp_path, content):
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    fine(load_settings, "smollm2", path)


@fuzz(max_examples=100)
@given(text=mutated((CONFIG_DIR / "cpu.yml").read_bytes(), YAML_PIECES))
@example(text=b"seed: 2001-13-41\n")
@example(text=b"seed: !!int x\n")
@example(text=b"seed: " + b"1" * 5000)
@example(text=b"seed: " + b"[" * 5000)
@example(text=b"\xff\xfe")
@example(text=b"? [a]\n: 1\n")
@example(text=b"seed: !!python/object/apply:os.system [x]")
def test_a_mutated_config_file_is_read_or_refused(tmp_path, text):
    path = tmp_path / "c.yml"
    path.write_bytes(text)
    fine(load_settings, "smollm2", path)


SIZES = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(-2, 80) | st.sampled_from([10**9, 10**30]) | values
        for name in ("n_axis", "n_trial", "report_examples", "max_new_tokens", "max_pc", "levels", "shots")
    },
)


@fuzz(max_examples=25)
@given(content=SIZES)
@example(content={"max_new_tokens": 10**400})
def test_a_dry_run_with_any_sizes_ends_in_numbers_or_one_line(tiny_folder, tmp_path, content):
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump({"n_axis": 20, "n_trial": 20, "report_examples": 4} | content))
    exits(main_prep.main, ["--model", str(tiny_folder), "--config", str(path), "--dry_run"])


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", ".", "/", "a\nb", "~", "/dev/null/x"], ids=range(7))
def test_a_config_path_of_any_kind_is_refused_in_one_line(tmp_path, name):
    assert exits(main_prep.main, ["--config", name, "--dry_run"]) == 2


# ---------------------------------------------------------------- datasets

ROWS = [(f"i{n}", f"g{n // 2}", f"It is, number {n}.", n % 2) for n in range(6)]
GOOD = {
    "sentences.csv": "id,group,sentence,label\n" + "".join(f'{i},{g},"{s}",{y}\n' for i, g, s, y in ROWS),
    "sentences.jsonl": "\n".join(json.dumps({"id": i, "sentence": s, "label": y}) for i, _, s, y in ROWS),
    "0.txt": "First one.\nSecond one.\n",
}  # fmt: skip


@pytest.fixture
def custom(tmp_path, monkeypatch) -> Path:
    """The folder of the data set custom/fuzz."""
    folder = tmp_path / "custom" / "fuzz"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("From nowhere.")
    monkeypatch.setattr(data.load, "DATA_DIR", tmp_path)
    return folder


def reads(folder: Path, name: str, content: bytes) -> bool:
    """Read the data set of one file."""
    for old in [*folder.glob("sentences.*"), *folder.glob("[01]*.txt")]:
        old.unlink()
    (folder / name).write_bytes(content)
    if name == "0.txt":
        (folder / "1.txt").write_text("A third one.\n")
    return fine(read_dataset, "custom/fuzz")


@pytest.mark.parametrize("name", GOOD)
def test_a_mutated_dataset_is_read_or_refused(custom, name):
    assert reads(custom, name, GOOD[name].encode())

    @fuzz(max_examples=100)
    @given(content=mutated(GOOD[name].encode(), FILE_PIECES) | st.binary(max_size=60))
    def check(content: bytes) -> None:
        reads(custom, name, content)

    check()


@fuzz(max_examples=100)
@given(
    lines=st.lists(
        st.dictionaries(
            st.sampled_from(["id", "group", "sentence", "label"]) | st.text(max_size=3), values, max_size=4
        ),
        max_size=4,
    )
)
def test_any_json_lines_are_read_or_refused(custom, lines):
    text = "\n".join(json.dumps(line, default=str, skipkeys=True) for line in lines)
    reads(custom, "sentences.jsonl", text.encode())


# ---------------------------------------------------------------- prompt texts


@pytest.fixture
def config_dir(tmp_path, monkeypatch) -> Path:
    """A folder in place of configs/ for the prompt texts."""
    monkeypatch.setattr(process_prompts, "CONFIG_DIR", tmp_path)
    return tmp_path


PROMPTS = (CONFIG_DIR / "meta_prompts.yml").read_bytes()


@fuzz(max_examples=100)
@given(text=mutated(PROMPTS, YAML_PIECES))
@example(text=PROMPTS + b"\n7: x\nnull: y\n")
def test_mutated_prompt_texts_are_read_or_refused(config_dir, text):
    (config_dir / "meta_prompts.yml").write_bytes(text)
    fine(load_prompts, "commonsense")


@fuzz(max_examples=100)
@given(key=st.sampled_from(sorted(yaml.safe_load(PROMPTS))) | keys, value=values, drop=st.booleans())
def test_prompt_texts_of_any_type_are_read_or_refused(config_dir, key, value, drop):
    texts = yaml.safe_load(PROMPTS) | {key: value}
    if drop:
        texts.pop("shown")
    (config_dir / "meta_prompts.yml").write_text(yaml.safe_dump(texts), encoding="utf-8")
    fine(load_prompts, "commonsense")


TAGS = {role: [f"<{role}>", "\n"] for role in ("system", "user", "assistant")}


@pytest.fixture(scope="module")
def untemplated() -> Any:
    """A tokenizer without a chat template."""
    return make_tokenizer(None)


@fuzz(max_examples=100)
@given(
    name=st.just("fuzz") | keys, role=st.sampled_from(["system", "user", "assistant", "bos"]), value=values
)
def test_prompt_tags_of_any_type_are_used_or_refused(config_dir, untemplated, name, role, value):
    tags = {name: TAGS | {role: value}, "other": value}
    (config_dir / "prompt_tags.yml").write_text(yaml.safe_dump(tags), encoding="utf-8")
    turns = [Turn("system", "a"), Turn("user", "b"), Turn("assistant", "c", sentence=(0, 1))]
    fine(lambda: Prompter(untemplated, "fuzz").encode(turns))
