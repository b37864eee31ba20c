"""docs/results.md says what the schema says: every kind of file, every field, its shape and meaning."""

from __future__ import annotations

import re

import pytest

from analysis.results.fields import hints_of
from analysis.results.schema import KINDS, Meta
from tests.results_page import PAGE, doc, file_name, nested, whole


def test_the_page_holds_the_tables_of_the_schema():
    page = PAGE.read_text(encoding="utf-8")
    assert page == whole(page), "the schema has changed: run `python -m tests.results_page`"


def test_every_kind_and_field_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"`{file_name(kind)}`" in page
        for record in (kind.record, Meta, *nested(kind.record)):
            for name in hints_of(record):
                assert len(doc(record, name)) > 5
                assert name == "meta" or f"| `{name}` |" in page


def test_names_are_written_as_people_write_them():
    names = {kind.name: file_name(kind) for kind in KINDS}
    assert names["control"] == "imit_<axis>_layer<layer>[_levels<levels>]_exp<exp>.pkl"
    assert names["hidden"] == "hidden[_<method>]_layer<layer>.pkl"
    assert names["closed loop"] == "study_loop_<loop_mode>_[levels<levels>_]exp<exp>_<axis>_layer<layer>.pkl"


FAULTS = PAGE.with_name("faults.md").read_text(encoding="utf-8")
ROWS = [line for line in FAULTS.splitlines() if "`test_" in line]


@pytest.mark.parametrize("line", ROWS, ids=range(len(ROWS)))
def test_the_tests_that_the_page_of_faults_names_are_there(line):
    """A file, then beginnings of its tests until the next file."""
    last = ""
    for name in re.findall(r"`(test_\w+(?:\.py|\.{3})?)`", line):
        if name.endswith(".py"):
            last = (PAGE.parents[1] / "tests" / name).read_text(encoding="utf-8")
        else:
            assert f"\ndef {name.removesuffix('...')}" in last, name
