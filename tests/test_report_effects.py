"""Report measures: by hand, against scipy and scikit-learn, and from results with a planted skill."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis import report_effects, tables
from analysis import store as results
from analysis.series import ReportSeries
from analysis.store import UnitKey
from tests import fake_results


def report_series(true, labels, **observers):
    """One experiment of two levels: logits (F, P) of the true label over the other, labels (1, P)."""
    sign = np.where(labels[0] == 1, 1, -1)
    logits = np.stack([-true * sign / 2, true * sign / 2], axis=-1)[None]
    exps, scores = np.array([0]), labels - 0.5
    return ReportSeries("lr", 0, 2, exps, logits, labels, scores, observers)


def test_report_measures_agree_with_counting_by_hand(tmp_path):
    true = np.array([[2.0, -1.0, 0.0, 3.0], [1.0, 1.0, -2.0, np.nan]], np.float32)  # flips x positions
    labels = np.array([[1.0, 0.0, 1.0, 1.0]])
    series = report_series(true, labels)
    np.testing.assert_allclose(series.logit_true[0], true)
    right, nats = report_effects.predictions(series)
    np.testing.assert_allclose(right, [[1.0, 0.5, 0.25, 1.0]])
    assert nats[0, 0] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    np.testing.assert_allclose(report_effects.majority(series), [[0.5, 0.0, 0.5, 1.0]])


def test_flipped_logits_count_for_the_label_that_was_shown(tmp_path):
    store = fake_results.write_study(tmp_path, axes=("lr",), n_layers=16, n_exp=1)
    key = UnitKey("pred", "lr", 15, 0)
    unit = results.read(store.unit(key))
    series = tables.load_report(store).series[0]
    sure = np.abs(np.diff(unit["logits"][1])[:, 0]) > 0
    says_one = np.diff(unit["logits"][1])[:, 0] < 0  # flipped: "0" stands for label 1
    np.testing.assert_array_equal((series.logit_true[0, 1] > 0)[sure], (says_one == unit["labels"])[sure])


def test_position_bins_cover_every_position_once():
    for n in (1, 2, 3, 64, 600):
        positions = [i for a, b in report_effects.position_bins(n) for i in range(a, b)]
        assert positions == list(range(n))
    assert report_effects.position_bins(12) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 6),
        (6, 8),
        (8, 11),
        (11, 12),
    ]
