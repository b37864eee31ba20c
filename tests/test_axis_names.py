"""Names of axes: which family, which number, which order; and that nothing else spells them."""

from __future__ import annotations

import ast
import re

import pytest

from analysis.axes import names
from analysis.axes.names import IMPORTED, axis_order, family_of, pc, pc_number, split_name
from analysis.base.files import ROOT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr", ("lr", 0)), ("lr_ensemble", ("lr_ensemble", 0)), ("lr_shuffled12", ("lr_shuffled", 12)),
        ("pc512", ("pc", 512)), ("random0", ("random", 0)),
        ("lr3", (IMPORTED, 0)), ("pc", (IMPORTED, 0)), ("random", (IMPORTED, 0)), ("truth2", (IMPORTED, 0)),
        ("", (IMPORTED, 0)), ("pc\n1", (IMPORTED, 0)), ("pc\u0663", (IMPORTED, 0)), ("pc1\n", (IMPORTED, 0)),
        ("pc" + "9" * 10_000, (IMPORTED, 0)),
    ],
)  # fmt: skip
def test_a_name_is_a_family_and_a_number(name, expected):
    assert split_name(name) == expected


def test_every_family_finds_its_own_examples():
    found = [split_name(name)[0] for name in names.examples()]
    assert found == list(names.FAMILIES)
    assert [name for name in names.examples() if family_of(name).control] == ["lr_shuffled0", "random0"]
    assert [name for name in names.examples() if not family_of(name).judged] == ["pc1"]


def test_axes_stand_by_family_then_by_number_and_imported_ones_last():
    order = ["lr", "meandiff", "pc1", "pc2", "pc10", "lr_ensemble", "lr_shuffled0", "random2", "random10",
             "happy", "truth"]  # fmt: skip
    assert sorted(reversed(order), key=axis_order) == order


def test_a_principal_component_has_a_number_and_nothing_else_has():
    assert [pc_number(name) for name in ("pc1", "pc32", "pcs1", "lr", "random1")] == [1, 32, None, None, None]
    assert pc(8) == "pc8" and names.PAPER_AXES[:3] == ("lr", "pc1", "pc2")


SPELLED = {
    "analysis/axes/names.py": r"meandiff|lr_ensemble|lr_shuffled|(pc|random|lr_shuffled)\d+",
    "configs/settings.py": "active|inactive",
    "analysis/results/schema.py": "imit|pred",
}


@pytest.mark.parametrize("owner", SPELLED)
def test_a_name_is_spelled_in_one_place_only(owner):
    paths = [path for folder in ("analysis", "configs") for path in (ROOT / folder).rglob("*.py")]
    others = [path for path in [*paths, *ROOT.glob("*.py")] if path != ROOT / owner]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for path in others
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(SPELLED[owner], node.value)
    ]
    assert found == []
