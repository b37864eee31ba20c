"""Write synthetic results that follow the files' schema, with a planted control effect.

Used by tests, and by hand to look at figures: scores are drawn so that the true Cohen's d is known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from analysis.results import store as results
from analysis.results.store import Store, UnitKey

SHOTS = (0, 2, 4, 8, 16, 32)
N_SENTENCES = 120
HIDDEN = 8


def fake_store(root: Path, model: str = "smollm2", dataset: str = "commonsense") -> Store:
    """Return an empty store under ``root``."""
    return Store(root, model, dataset)


def write_split(store: Store, rng: np.random.Generator) -> None:
    """Write split.pkl: sentences with two classes, the first half for axes."""
    rows = np.arange(N_SENTENCES)
    record = {
        "ids": [f"s{i}" for i in rows],
        "sentences": [f"Sentence number {i} is right." for i in rows],
        "labels": (rows % 2).astype(np.int64),
        "groups": rows // 2,
        "axis_rows": rows[: N_SENTENCES // 2],
        "trial_rows": rows[N_SENTENCES // 2 :],
    }
    results.write(store.split, record, {"seed": 42})


def write_axes(
    store: Store, names: Sequence[str], n_layers: int, rng: np.random.Generator, hidden: int = HIDDEN
) -> None:
    """Write axes_layer<l>.pkl for every layer; held-out accuracy rises with depth."""
    for layer in range(n_layers):
        depth = layer / max(1, n_layers - 1)
        ratio = 0.7 ** np.arange(1, 60) * (0.2 + 0.2 * depth)
        record = {
            "names": list(names),
            "directions": _unit(rng.normal(size=(len(names), hidden))),
            "mean": np.zeros(hidden, np.float32),
            "scales": np.ones(len(names), np.float32),
            "thresholds": np.zeros(len(names), np.float32),
            "variance_ratio": ratio.astype(np.float32),
            "accuracy": {"lr": (1.0, 0.55 + 0.3 * depth), "meandiff": (0.8, 0.52 + 0.25 * depth)},
            "scores": rng.normal(size=(N_SENTENCES, len(names))).astype(np.float32),
        }
        identity = {"layer": layer, "seed": 42, "threshold": "median"}
        results.write(store.axes(layer), record, identity, hidden_size=hidden)


def _first(hidden: int) -> np.ndarray:
    return np.arange(hidden) == 0


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ramp(n: int, shots: Sequence[int]) -> float:
    """Return the share of the planted effect at ``n``: 0 at the smallest N, 1 at the largest."""
    return float(np.log2(1 + n) / np.log2(1 + max(*shots, 1)))


def control_unit(
    axis: str,
    layer: int,
    rng: np.random.Generator,
    *,
    affected: Sequence[str],
    n_layers: int,
    shots: Sequence[int] = SHOTS,
    effect: float = 1.0,
    modes: Sequence[str] = ("active", "inactive"),
    text: str = "Helping a neighbour is good.",
    empty: float = 0.0,
    hidden: int = HIDDEN,
) -> dict[str, Any]:
    """Return one control unit; Cohen's d on the target axis is ``effect * ramp(n)`` when active."""
    cells = [(n, f, w, m) for n in shots for f in (False, True) for w in (0, 1) for m in modes]
    n, flip, want = (np.array([c[i] for c in cells]) for i in range(3))
    mode = [c[3] for c in cells]
    total, active = len(cells), np.array([m == "active" for m in mode])
    shift = effect * np.array([ramp(k, shots) for k in n]) * (want - 0.5) * np.where(active, 1.0, 0.3)
    scores = rng.normal(size=(total, len(affected)))
    scores[:, list(affected).index(axis)] += shift
    read = np.clip(1 - np.abs(np.arange(n_layers) - layer) / 10, 0, 1)
    by_layer = rng.normal(size=(total, n_layers)) + shift[:, None] * read
    blank = active & (rng.random(total) < empty)
    scores[blank], by_layer[blank] = np.nan, np.nan
    difference = {m: (rng.normal(size=hidden) + effect * _first(hidden)).astype(np.float32) for m in modes}
    return {
        "n": n.astype(np.int64), "difference": difference, "flip": flip.astype(bool),
        "target": np.where(flip, 1 - want, want), "want": want.astype(np.int64), "mode": mode,
        "affected": list(affected),
        "layers": np.arange(n_layers), "scores": scores.astype(np.float32),
        "by_layer": by_layer.astype(np.float32), "projection": by_layer.astype(np.float32),
        "text": ["" if b else f"{text} ({k})" for k, b in enumerate(blank)],
        "copy_rate": np.where(active, rng.uniform(0, 0.4, total), np.nan).astype(np.float32),
        "cut": active & (rng.random(total) < 0.1), "empty": blank,
        "test_sentence": ["A test sentence."] * total,
        "tokens": {"forwarded": 1000, "plain": 9000}, "seconds": 1.5,
    }  # fmt: skip


def _towards(labels: np.ndarray, levels: int) -> np.ndarray:
    """Return (N, levels): 1/2 at the true level, less the further a level is from it, down to -1/2."""
    away = np.abs(np.arange(levels) - labels[:, None])
    return 0.5 - away / (levels - 1)


def report_unit(rng: np.random.Generator, n: int = 64, skill: float = 1.0, levels: int = 2) -> dict[str, Any]:
    """Return one report unit whose logits lean to the true level by ``skill * log(1 + i) / 2``.

    The observers lean to the true side twice as far.
    """
    labels = rng.integers(0, levels, n)
    lean = skill * np.log1p(np.arange(n))[:, None] / 2 * _towards(labels, levels)
    plain = lean + rng.normal(scale=1.1, size=(n, levels))
    flipped = (lean + rng.normal(scale=1.1, size=(n, levels)))[:, ::-1]
    sides = 2 * (labels >= levels / 2) - 1
    observed = expit(skill * np.log1p(np.arange(n)) * sides + rng.normal(size=n))
    return {
        "rows": rng.permutation(N_SENTENCES)[:n] if n <= N_SENTENCES else np.zeros(n, np.int64),
        "scores": (labels - (levels - 1) / 2 + rng.uniform(-0.4, 0.4, n)).astype(np.float32),
        "labels": labels.astype(np.int64), "flip": np.array([False, True]),
        "logits": np.stack([plain, flipped]).astype(np.float32),
        "observers": {name: observed.astype(np.float32) for name in ("own", "embedding", "words")},
        "tokens": {"forwarded": 500}, "seconds": 1.0,
    }  # fmt: skip


def write_study(
    root: Path,
    *,
    axes: Sequence[str] = ("lr", "pc1"),
    layers: Sequence[int] = (15,),
    n_layers: int = 30,
    n_exp: int = 6,
    shots: Sequence[int] = SHOTS,
    effect: float = 1.0,
    seed: int = 0,
    report_n: int = 64,
    extra: Sequence[str] = ("meandiff", "random0"),
    settings: dict[str, Any] | None = None,
    model: str = "smollm2",
    levels: Sequence[int] = (2,),
    n_parameters: int = 134_515_008,
    **unit: Any,
) -> Store:
    """Write a whole study (split, axes, control and report units) and return its store."""
    store, rng = fake_store(root, model), np.random.default_rng(seed)
    affected = [*axes, *(name for name in extra if name not in axes)]
    write_split(store, rng)
    write_axes(store, affected, n_layers, rng)
    common = {"seed": 42, "temperature": 0.7, "shots": list(shots), **(settings or {})}
    size = unit.get("hidden", HIDDEN)
    about = {"model_name": model, "n_layers": n_layers, "n_parameters": n_parameters, "hidden_size": size}
    for n, layer, axis, exp in itertools.product(levels, layers, axes, range(n_exp)):
        own = {"axis": axis, "layer": layer, "exp": exp, "levels": n, **common}
        control = control_unit(
            axis, layer, rng, affected=affected, n_layers=n_layers, shots=shots, effect=effect, **unit
        )
        results.write(store.unit(UnitKey("imit", axis, layer, exp, n)), control, own, **about)
        report = report_unit(rng, report_n, levels=n)
        results.write(store.unit(UnitKey("pred", axis, layer, exp, n)), report, own, **about)
    return store
