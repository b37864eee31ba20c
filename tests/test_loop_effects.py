"""Numbers of the closed loop: slopes, thirds, and turns that do not count."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.studies.closed_loop.experiment import loop_trials
from analysis.studies.closed_loop.prompts import NO_SCORE
from analysis.studies.closed_loop.tables import build_series, drift_table, slopes, thirds

# ---------------------------------------------------------------- numbers


def test_slopes_are_least_squares_over_the_turns_that_are_known(rng):
    values = rng.normal(size=(3, 5))
    values[1, 2] = values[2, 1:] = np.nan
    known = [0, 1, 3, 4]
    expected = [np.polyfit(range(5), values[0], 1)[0], np.polyfit(known, values[1, known], 1)[0], np.nan]
    np.testing.assert_allclose(slopes(values), expected)


def test_thirds_compare_the_ends_and_at_least_one_turn():
    np.testing.assert_allclose(thirds(np.array([[1.0, 3, 9, 9, 5, np.nan]])), [5 - 2])
    np.testing.assert_allclose(thirds(np.array([2.0, 0, 0, 5])), 3)


def test_turns_that_do_not_comply_are_left_out_of_scores_and_stay_counted():
    trials, shape = loop_trials(("true",), 2), (4, 3)
    record = {
        "arm": ["true"] * 4, "flip": np.array([t.flip for t in trials]),
        "want": np.array([t.want for t in trials]), "score": np.ones(shape), "complied": np.ones(shape, bool),
        "empty": np.zeros(shape, bool), "cut": np.zeros(shape, bool), "copy_rate": np.zeros(shape),
        "label": np.ones(shape, int), "shown": np.ones((4, 2), int),
    }  # fmt: skip
    record["label"][2] = 0, NO_SCORE, 0
    record["complied"][2, 1] = False  # mirrored labels, low target: high wanted
    series = build_series("lr", 2, 2, "repeat", ("true",), [record, record])
    assert np.argwhere(np.isnan(series.scores)).tolist() == [[e, 0, 1, 1, 1] for e in (0, 1)]
    row = drift_table([series])[0]
    assert row["upper"] == pytest.approx(9 / 11) and row["same"] == 1
    assert (row["complied"], row["recorded"], row["slope"]) == (22, 24, 0.0)
