"""docs/results.md says what the schema says: every kind of file, every field, its shape and meaning."""

from __future__ import annotations

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
