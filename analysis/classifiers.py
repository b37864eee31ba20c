"""The axes of one layer: fitted once, then every hidden state is scored along them.

Shape letters: N sentences that fit the axes, D hidden size, K axes, R rank of the centred data.

Which axes there are, and how they are called: analysis/axes/names.py. Directions are fitted in float64 on one
half of the sentences and kept as float32. What they are measured with (scale, threshold) comes from the other
half, which no direction has seen: the fitting half would tell of itself, not of new sentences.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from analysis.axes.names import (
    LR,
    MEANDIFF,
    RANDOM,
    SHUFFLED,
    family_of,
    numbered,
    pc,
    pc_number,
)
from analysis.axes.solvers import (
    choose_strength,
    gram_rotation,
    logistic,
    mean_difference,
    standardised,
    svd_rotation,
)
from analysis.base.errors import UserError, unknown
from analysis.base.seeds import generator
from configs.settings import THRESHOLDS

MOST_WORKERS = 8
"""Layers fitted at the same time: each takes several times the memory of its hidden states."""


@dataclass(frozen=True)
class AxisSet:
    """All axes of one layer; a score is a signed distance along an axis, in deviations of new sentences."""

    names: tuple[str, ...]
    """(K,) such as ``lr``, ``meandiff``, ``random0``, ``lr_shuffled0``, ``pc1``."""
    directions: np.ndarray
    """(K, D) float32, unit rows."""
    mean: np.ndarray
    """(D,) float32, the training mean, removed before projecting."""
    scales: np.ndarray
    """(K,) float32, standard deviation (ddof 0) of the projections of held-out sentences, > 0."""
    thresholds: np.ndarray
    """(K,) float32, in the units of the scores; a score above it counts as label 1."""
    variance_ratio: np.ndarray
    """(R,) float32, share of the variance of every principal component, also those that are no axes."""
    accuracy: dict[str, float]
    """Share of the training sentences on their label's side of the threshold; not given for PCs."""
    lr_c: float = 1.0
    """Inverse L2 strength of ``lr``, given or chosen by cross-validation."""

    def scores(self, hidden: np.ndarray) -> np.ndarray:
        """Return the position of every row on every axis.

        Args:
            hidden: (N, D), pooled in the same way and at the same layer as the fitting data. A row with
                NaN (an empty reply) gives NaN scores.

        Returns:
            (N, K) float32, ``(hidden - mean) @ directions.T / scales``: training standard deviations.

        Raises:
            ValueError: ``hidden`` is not (N, D) for this D.
        """
        dim = self.mean.shape[0]
        if hidden.ndim != 2 or hidden.shape[1] != dim:
            raise ValueError(f"hidden states have shape {hidden.shape}, the axes need (N, {dim})")
        return (_project(hidden, self.mean, self.directions) / self.scales).astype(np.float32)

    def score(self, hidden: np.ndarray, name: str) -> np.ndarray:
        """Return the positions (N,) float32 on one axis, NaN where this layer has no axis of that name."""
        if name not in self.names:
            return np.full(len(hidden), np.nan, np.float32)
        k = self.names.index(name)
        position = _project(hidden, self.mean, self.directions[k : k + 1])[:, 0]
        return (position / self.scales[k]).astype(np.float32)

    def index(self, name: str) -> int:
        """Return the row of an axis.

        Raises:
            UserError: there is no such axis; the message names the choices, or why a PC is missing.
        """
        if name in self.names:
            return self.names.index(name)
        others = [known for known in self.names if pc_number(known) is None]
        n_pc, rank = len(self.names) - len(others), len(self.variance_ratio)
        if pc_number(name):
            limit = f"the fitting data have rank {rank} (at most n_axis - 1 and the hidden size)"
            if n_pc < rank:
                limit = f"max_pc keeps no more of {rank}; raise it and run main_prep.py --overwrite"
            raise UserError(f"no axis {name!r}: there are {n_pc} principal components, since {limit}")
        raise unknown("axis", name, [*others, f"{pc(1)}..{pc(n_pc)}"], "analysis/axes/names.py")

    def threshold(self, name: str) -> float:
        """Return the score above which a sentence counts as label 1, in training deviations."""
        return float(self.thresholds[self.index(name)])

    def accuracy_on(self, hidden: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return, per axis but the PCs, the share of rows (N, D) on the side of their label (N,)."""
        return _accuracies(self.names, self.scores(hidden) > self.thresholds, labels)

    def as_record(self, trial_accuracy: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Return builtins and arrays for the axes file.

        Args:
            trial_accuracy: ``accuracy_on`` the sentences that did not fit the axes, NaN if not given.
                The record holds {axis: (accuracy on the fitting half, accuracy on the other half)}.
        """
        other = trial_accuracy or {}
        return {
            "names": list(self.names),
            "directions": self.directions,
            "mean": self.mean,
            "scales": self.scales,
            "thresholds": self.thresholds,
            "variance_ratio": self.variance_ratio,
            "lr_c": self.lr_c,
            "accuracy": {k: (fit, float(other.get(k, np.nan))) for k, fit in self.accuracy.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> AxisSet:
        """Rebuild the axes from an axes file; further keys, such as ``meta`` and ``scores``, are left.

        Raises:
            UserError: a key is missing.
        """
        arrays = ("directions", "mean", "scales", "thresholds", "variance_ratio")
        missing = [key for key in ("names", *arrays, "accuracy") if key not in record]
        if missing:
            raise UserError(f"the axes file lacks {', '.join(missing)}: run main_prep.py --overwrite")
        accuracy = {str(name): float(pair[0]) for name, pair in record["accuracy"].items()}
        about = {"accuracy": accuracy, "lr_c": float(record.get("lr_c", 1.0))}
        return cls(tuple(record["names"]), **{k: record[k] for k in arrays}, **about)


def fit_layers(
    fit: Callable[[int], object],
    layers: Sequence[int],
    progress: Callable[[], object] = lambda: None,
    workers: int | None = None,
) -> None:
    """Call ``fit`` with every layer, in as many threads as there are cores, each with one BLAS thread.

    One thread per layer is faster than all of them on one, and no result depends on their number. The error
    raised is that of the first layer that has one. After an error or a signal no layer is begun, and those
    in work come to their end.
    """
    workers = workers or min(cores(), MOST_WORKERS)
    with threadpool_limits(1, user_api="blas"):  # once: it holds for the process, not for a thread
        pool = ThreadPoolExecutor(workers)
        try:
            for done in [pool.submit(fit, layer) for layer in layers]:
                done.result()
                progress()
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fit_axes(
    hidden: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    lr_c: float | None,
    max_pc: int,
    n_random: int,
    n_shuffled: int,
    threshold: str,
    seed: int,
    layer: int,
) -> AxisSet:
    """Fit every axis of one layer; ``fit_layers`` does so for many, on one BLAS thread each.

    Args:
        hidden: (N, D) pooled hidden states of the fitting sentences.
        labels: (N,) 0 or 1.
        groups: (N,) sentences that belong together, such as a minimal pair, for the cross-validation; None:
            each by itself.
        held_out: (M, D) states of other sentences, which set scales and thresholds; None: there are none, and
            the fitting sentences do, along which directions are too good.
        lr_c: inverse L2 strength, on coordinates scaled to variance 1 each; None: by cross-validation over
            groups, see solvers.choose_strength.
        max_pc: most principal components kept as axes; there are at most min(N - 1, D).
        n_random: axes ``random0``, ``random1``, ...
        n_shuffled: axes ``lr_shuffled0``, ...
        threshold: ``median`` of the held-out scores, or ``zero`` (the training mean).
        seed: of the random directions and the permutations; each layer draws its own.
        layer: names the layer in errors, and its random stream.

    Raises:
        ValueError: wrong shapes, labels that are not 0 and 1, or an unknown threshold.
        UserError: fewer than 4 sentences, one class only, hidden states that are not finite or do not
            vary, or a logistic regression that did not converge.
    """
    labels = _check(hidden, labels, threshold, layer)
    data = np.asarray(hidden, dtype=np.float64)
    mean = data.mean(axis=0)
    rotated, basis = svd_rotation(data, mean, layer)
    power = (rotated**2).sum(axis=0)
    scaled, deviations = standardised(data, mean)
    features, turned = gram_rotation(scaled)
    if lr_c is None:
        lr_c = choose_strength(features, labels, np.arange(len(labels)) if groups is None else groups)
    vectors = {LR: logistic(features, labels, lr_c, LR, layer) @ turned / deviations}
    by_size = rotated / np.sqrt(power.sum() / data.size)
    vectors[MEANDIFF] = mean_difference(by_size, labels, MEANDIFF, layer) @ basis
    for s in range(n_random):
        vectors[numbered(RANDOM, s)] = generator(seed, RANDOM, s, layer).standard_normal(data.shape[1])
    for s in range(n_shuffled):
        name, mixed = numbered(SHUFFLED, s), generator(seed, SHUFFLED, s, layer).permutation(labels)
        vectors[name] = logistic(features, mixed, lr_c, name, layer) @ turned / deviations
    vectors |= {pc(k): vector for k, vector in enumerate(basis[:max_pc], start=1)}
    made = _finish(vectors, data, data if held_out is None else held_out, mean, labels, threshold, layer)
    return replace(made, variance_ratio=(power / power.sum()).astype(np.float32), lr_c=lr_c)


def _check(hidden: np.ndarray, labels: np.ndarray, threshold: str, layer: int) -> np.ndarray:
    """Return the labels as int64, or raise for data that no axis can be fitted on."""
    labels = np.asarray(labels)
    if threshold not in THRESHOLDS:
        raise ValueError(f"threshold {threshold!r}: give {' or '.join(THRESHOLDS)}")
    if hidden.ndim != 2 or labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"layer {layer}: hidden states {hidden.shape} and labels {labels.shape}: give (N, D) and (N,)"
        )
    if len(labels) < 4:
        raise UserError(f"layer {layer}: {len(labels)} sentences cannot fit axes: set n_axis to 4 or more")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"layer {layer}: labels are {np.unique(labels)[:5].tolist()}: they must be 0 and 1")
    if labels.min() == labels.max():
        raise UserError(
            f"layer {layer}: all {len(labels)} fitting sentences have label {int(labels[0])}: give a data "
            f"set that also has label {1 - int(labels[0])}"
        )
    bad = ~np.isfinite(hidden).all(axis=1)
    if bad.any():
        raise UserError(
            f"layer {layer}: {bad.sum()} of {len(labels)} hidden states are not finite, the first in row "
            f"{bad.argmax()}: read the model again with --dtype float32 or bfloat16"
        )
    return labels.astype(np.int64)


def _finish(
    vectors: Mapping[str, np.ndarray],
    data: np.ndarray,
    others: np.ndarray,
    mean: np.ndarray,
    labels: np.ndarray,
    threshold: str,
    layer: int,
) -> AxisSet:
    """Round to float32, then measure scales and thresholds with the rounded axes, as users will see them."""
    names = tuple(vectors)
    directions = np.stack([vector / np.linalg.norm(vector) for vector in vectors.values()])
    directions, mean = directions.astype(np.float32), mean.astype(np.float32)
    projections = _project(others, mean, directions)
    scales = projections.std(axis=0).astype(np.float32)
    bad = ~(np.isfinite(scales) & (scales > 0))
    if bad.any():
        raise UserError(
            f"axis {names[bad.argmax()]!r} of layer {layer} is constant over the held-out sentences: leave "
            "it out (max_pc, n_random), or check the hidden states of this layer"
        )
    scores = (projections / scales).astype(np.float32)
    thresholds = np.median(scores, axis=0) if threshold == "median" else np.zeros_like(scales)
    fitted = (_project(data, mean, directions) / scales).astype(np.float32)
    accuracy = _accuracies(names, fitted > thresholds, labels)
    return AxisSet(names, directions, mean, scales, thresholds, np.zeros(0, np.float32), accuracy)


def _accuracies(names: Sequence[str], above: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return, per axis but the PCs, the share of rows (N, K) that are above where the label (N,) is 1."""
    right = (above == (labels[:, None] == 1)).mean(axis=0)
    shares = zip(names, right, strict=True)
    return {name: float(share) for name, share in shares if family_of(name).judged}


def _project(hidden: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return (N, K) float64; single precision would be dominated by the few huge coordinates of LLMs."""
    return (np.asarray(hidden, dtype=np.float64) - mean) @ directions.T.astype(np.float64)
