"""Rooms: imports lead down, late ones included, modules form no circle, and what breaks this is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tasks.structure import LEVELS, ROOT, describe, main, room, survey

SMALL = {
    "analysis/base/errors.py": "class UserError(ValueError): ...",
    "configs/settings.py": "from analysis.base.errors import UserError",
    "analysis/engine/trie.py": "def order():\n    from configs.settings import UserError",
    "analysis/engine/run.py": "from analysis.engine import trie",
    "analysis/tables/read.py": "import analysis.base.errors",
    "analysis/figures/style.py": "from analysis.tables.read import *",
    "main_prep.py": "from analysis.engine.run import trie",
}
"""A house in order: file -> content."""


@pytest.fixture
def house(tmp_path: Path):
    """Return a function that builds the small house with more files, and says what is wrong with it."""

    def wrong(**more: str) -> list[str]:
        files = SMALL | {name.replace("__", "/") + ".py": text for name, text in more.items()}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return survey(tmp_path)[1]

    return wrong


def test_every_import_of_this_repository_leads_down_and_none_forms_a_circle():
    found, wrong = survey()
    assert len(found) > 300
    assert not wrong


def test_every_room_is_on_one_level_and_every_level_has_a_room_on_disk():
    names = [name for level in LEVELS for name in level]
    found = {room(end) for one in survey()[0] for end in (one.user, one.used)}
    assert sorted(names) == sorted(found)
    assert {path.name for path in (ROOT / "analysis").iterdir() if (path / "__init__.py").exists()} <= {
        name.split(".")[0] for name in names
    }


def test_the_rooms_of_contributing_are_those_of_the_check():
    """Each row: level, the files or folders of one room, what lives there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = {}
    for level, names in re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE):
        for name in re.findall(r"`(?:analysis/)?([^`]+)`", names):
            path = name.removesuffix(".py").strip("/").replace("/", ".")
            inside = path not in ("configs", "data", "tasks", "utils") and not name.startswith(
                ("main", "neuro", "plot")
            )
            told[room(f"analysis.{path}" if inside else path)] = int(level)
    known = {name.split(".")[0]: number for number, level in enumerate(LEVELS) for name in level}
    assert {name.split(".")[0]: level for name, level in told.items()} == known


def test_a_house_in_order_has_nothing_wrong(house):
    assert house() == []


@pytest.mark.parametrize(
    "statement, late",
    [
        ("import analysis.figures.style", False),
        ("from analysis.figures import style", False),
        ("from analysis.figures.style import something", False),
        ("from ..figures.style import something", False),
        ("from ..figures import style", False),
        ("def read():\n    from analysis.figures.style import something", True),
        ("class Reader:\n    async def read(self):\n        from ..figures import style", True),
        ("try:\n    from analysis.figures import style\nexcept ImportError: ...", False),
        ("import typing\nif typing.TYPE_CHECKING:\n    from analysis.figures import style", False),
    ],
)  # fmt: skip
def test_an_import_up_is_found_wherever_it_stands(house, statement, late):
    (line,) = house(analysis__tables__up=statement)
    assert line.startswith("analysis.tables.up line ") and line.endswith("tables must not use figures")
    assert "uses analysis.figures.style" in line
    assert ("(inside a function)" in line) == late


@pytest.mark.parametrize("low", ["utils", "configs__more", "analysis__base__more"])
def test_what_stands_below_the_rooms_may_not_import_one(house, low):
    (line,) = house(**{low: "from analysis.engine.run import trie"})
    assert "must not use engine" in line


def test_rooms_of_one_level_may_not_use_each_other(house):
    (line,) = house(analysis__results__store="from analysis.engine import run")
    assert line.endswith("results must not use engine")


def test_a_circle_of_modules_is_found_within_a_room_and_named(house):
    (line,) = house(
        analysis__engine__trie="from analysis.engine.plan import x",
        analysis__engine__plan="def plan():\n    from . import run",
    )
    ring = line.removeprefix("a circle: ").split(" -> ")
    assert ring[0] == ring[-1]
    assert set(ring) == {"analysis.engine.run", "analysis.engine.trie", "analysis.engine.plan"}


def test_a_room_without_a_level_is_found(house):
    (line,) = house(analysis__attic__boxes="from analysis.base.errors import UserError")
    assert "attic has no level in tasks/structure.py" in line


def test_a_study_may_not_use_another_study(house):
    (line,) = house(
        analysis__studies__causal__runs="from analysis.studies.evasion.probes import probe",
        analysis__studies__evasion__probes="def probe(): ...",
    )
    assert line.endswith("studies.causal must not use studies.evasion")


def test_the_command_prints_the_arrows_and_fails_if_one_leads_up(house, tmp_path, capsys):
    house()
    assert main([str(tmp_path)]) == 0
    assert "no circle, no arrow up" in capsys.readouterr().out
    house(utils="import main_prep")
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert describe(survey(tmp_path)[0]) in shown and "utils must not use scripts" in shown
