"""Sentences that the page claims, and the page itself: one file, safe, honest."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

from analysis.figures import control as figures_control
from analysis.figures import style
from analysis.figures.style import Curve
from analysis.pages import report_page
from analysis.pages.figures_folder import Written
from analysis.tables import control as control_tables
from analysis.tables import findings
from analysis.tables import read as tables_read
from analysis.tables import report as report_tables
from tests import fake_results


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """40 experiments with Cohen's d = 1 at N = 32 for the active mode, 0 at N = 0."""
    store = fake_results.write_study(
        tmp_path_factory.mktemp("study"), layers=(1, 10), n_layers=12, n_exp=40, shots=(0, 32), seed=1
    )
    return tables_read.load_control(store)


@pytest.fixture(scope="module")
def rows(control):
    return control_tables.control_table(control)


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_wording_claims_no_more_than_the_interval(rows):
    row = dict(pick(rows, axis="lr", layer=1, mode="active", n=32)[0])
    assert "in the wanted direction (q" in findings.control_sentence(row, 8)
    assert "does not survive correction for 8 tests" in findings.control_sentence({**row, "q": 0.2}, 8)
    assert "no detectable effect" in findings.control_sentence({**row, "d_low": -0.1}, 8)
    assert "against the wanted direction" in findings.control_sentence({**row, "d_low": -2, "d_high": -1}, 8)


def test_an_effect_without_examples_is_flagged(rows):
    row = dict(pick(rows, axis="lr", layer=1, mode="active", n=0)[0])
    odd = {**row, "d": 1.0, "d_low": 0.5, "d_high": 1.5, "q": 0.001}
    assert any("effect at N = 0" in text for text in findings.control_findings([odd]))
    assert not any("effect at N = 0" in text for text in findings.control_findings([{**row, "q": 0.5}]))


def test_many_results_are_counted_with_correction(rows):
    text = findings.control_findings([*rows, *({**row, "axis": row["axis"] + "x"} for row in rows)])
    assert "of 8 pairs of axis and layer, 8 moved in the wanted direction and 0 against it" in text[0]


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close in order."""

    VOID = frozenset(("meta", "img", "br"))

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_safe_file(tmp_path):
    store = fake_results.write_study(
        tmp_path,
        axes=("lr",),
        n_layers=16,
        n_exp=3,
        shots=(0, 4),
        empty=0.1,
        text="a <b>bold</b> claim & <script>",
    )
    data = tables_read.load_control(store)
    rows, report = (
        control_tables.control_table(data),
        report_tables.report_table(tables_read.load_report(store)),
    )
    fig = figures_control.plot_control({"active": {"lr": Curve(*np.zeros((4, 2)))}}, "T", "n")
    paths = style.write_figure(fig, store.figures, "control_layer15", ["png", "pdf"])
    drawn = [Written("effect", "control_layer15", "layer 15", "A caption.", tuple(paths))]
    examples = report_page.collect_examples(data, limit=3)
    path = report_page.write_report(
        store, {"seed": 42, "shots": [0, 4]}, drawn, rows, report, examples, {"packages": {"numpy": "2"}}
    )
    html = path.read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == 1 and "http://" not in html and "https://" not in html
    assert "<b>" not in html and "<script" not in html and "&lt;b&gt;bold" in html
    text = " ".join(" ".join(page.text).split())
    assert f"Empty replies in the whole study: {sum(row['empty'] for row in rows)}" in text
    assert "numpy 2" in text and "3 control runs and 3 report runs" in text and "trial run" in text


def test_examples_come_in_order_not_by_score(control):
    found = report_page.collect_examples(control, limit=4)
    assert [e["want"] for e in found] == ["high"] * 4 + ["low"] * 4
    high = [(e["axis"], e["layer"], e["exp"], e["flipped"]) for e in found[:4]]
    assert high == [("lr", 1, 0, False), ("lr", 10, 0, False), ("pc1", 1, 0, False), ("pc1", 10, 0, False)]
    assert {e["n"] for e in found} == {32}


def test_a_page_without_runs_says_so(tmp_path):
    store = fake_results.fake_store(tmp_path)
    path = report_page.write_report(store, {}, [], [], [], [], {})
    assert "No runs yet." in path.read_text()
