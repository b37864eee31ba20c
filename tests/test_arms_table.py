"""Tables of the arms: a planted effect of feedback, of a push, and of the text is found, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.tables.arms import CONTRAST, arms_table, compared, describe, text_table_rows
from analysis.tables.read import ControlData
from analysis.tables.series import ControlSeries
from tests.test_moves import make_series

EXPS = 12


def series(
    rng: np.random.Generator, arm: str, change: float = 0.0, shots: tuple[int, ...] = (0, 4)
) -> ControlSeries:
    """Return noise of deviation 1 on ``lr``, and ``change`` more where high was wanted at the largest N."""
    one = make_series(rng, exps=range(EXPS))
    scores = one.scores.copy()
    scores[:, -1, :, :, 1] += change
    keep = [one.shots.tolist().index(n) for n in shots]
    picked = {name: getattr(one, name)[:, keep] for name in ("by_layer", "projection", "text", "neutral")}
    measured = {name: values[:, keep] for name, values in one.measured.items()}
    measured |= {name: rng.normal(size=picked_shape(one, keep)) for name in ("words", "embedding")}
    return replace(one, arm=arm, shots=np.array(shots), scores=scores[:, keep], measured=measured, **picked)


def picked_shape(one: ControlSeries, keep: list[int]) -> tuple[int, ...]:
    return one.target[:, keep].shape


def study(rng: np.random.Generator, true: float = 0.0, sham: float = 0.0, pushed: float = 0.0) -> ControlData:
    """Return one axis with all arms."""
    arms = {
        "true": (series(rng, "true", true),),
        "sham": (series(rng, "sham", sham, (4,)),),
        "pushed": (series(rng, "pushed", pushed),),
    }
    return ControlData(arms["true"], arms, {}, {"settings": {"equivalence": 0.5}})


def judged(data: ControlData) -> dict[tuple[str, str], dict]:
    return {(row["arm"], row["mode"]): row for row in arms_table(data) if "verdict" in row}


def test_what_true_scores_do_and_sham_does_not_is_an_effect(rng):
    rows = judged(study(rng, true=3.0, sham=0.0, pushed=5.0))
    assert set(rows) == {(arm, mode) for arm in (CONTRAST, "pushed") for mode in ("active", "inactive")}
    for row in rows.values():
        assert row["verdict"] == "effect" and row["p_family"] < 0.05 and row["n"] == 4
        truth = 3.0 if row["arm"] == CONTRAST else 5.0
        assert row["low"] < truth < row["high"]


def test_what_sham_does_as_well_is_none(rng):
    rows = judged(study(rng, true=3.0, sham=3.0))
    assert all(not rows[CONTRAST, mode]["verdict"].startswith("effect") for mode in ("active", "inactive"))


def test_the_contrast_is_the_difference_of_the_changes(rng):
    data = study(rng, true=1.0, sham=0.5)
    rows = {(row["arm"], row["n"], row["mode"]): row["value"] for row in arms_table(data)}
    for mode in ("active", "inactive"):
        assert rows[CONTRAST, 4, mode] == pytest.approx(rows["true", 4, mode] - rows["sham", 4, mode])
    m = data.series[0].modes.index("active")
    here = data.series[0].target[:, 1, m].astype(float)
    assert rows["true", 4, "active"] == pytest.approx((here[..., 1] - here[..., 0]).mean())


def test_two_rows_are_one_family(rng):
    rows = judged(study(rng, true=0.5))
    alone = [row["p"] for key, row in rows.items() if key[0] == CONTRAST]
    family = [row["p_family"] for key, row in rows.items() if key[0] == CONTRAST]
    assert all(f >= p - 1e-9 for f, p in zip(family, alone, strict=True)) and sum(family) > sum(alone)


def test_false_positives_of_a_family_are_rare():
    found = 0
    for seed in range(40):
        rows = judged(study(np.random.default_rng(seed), true=1.0, sham=1.0))
        found += any(row["verdict"].startswith("effect") for key, row in rows.items() if key[0] == CONTRAST)
    assert found <= 6  # 2 expected; more than 6 of 40 has a chance of 0.3 %


def test_the_text_and_its_context_add_up(rng):
    data = study(rng, true=2.0)
    parts = {(row["n"], row["part"]): row["value"] for row in text_table_rows(data)}
    for n in (0, 4):
        whole = parts[n, "text alone"] + parts[n, "context - text"]
        assert parts[n, "in context"] == pytest.approx(whole, abs=1e-6)
    one = data.series[0]
    alone = one.neutral[:, 1, one.modes.index("active"), ..., one.affected.index("lr")].astype(float)
    assert parts[4, "text alone"] == pytest.approx((alone[..., 1] - alone[..., 0]).mean())


def test_tables_as_text_name_every_verdict(rng):
    data = study(rng, true=3.0, pushed=3.0)
    text = describe(data)
    assert text.count("effect") >= 4 and "text alone" in text and CONTRAST in text
    only = replace(data, arms={**data.arms, "sham": (), "pushed": ()})
    assert not compared(only) and describe(only) == ""
