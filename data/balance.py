"""Whole groups of sentences that make two halves, each with as many sentences of either class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SECONDS = 60.0
"""Most time for the exact search; the published sets take 0.2 s."""


def balanced_halves(counts: np.ndarray, sizes: Sequence[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Return the numbers of the groups of each half, or [] if no choice of whole groups fits.

    Groups are taken in a random order as long as they fit, as a sample would. Where that leaves a half short
    (single sentences have filled one class, and the pairs that are left bring both), the groups are chosen
    by an integer program instead: of all choices that fit exactly, the one whose sentences cost least when
    every group has a random price. So a split is found wherever there is one.

    Args:
        counts: (G, 2) sentences of class 0 and of class 1 in each group.
        sizes: sentences of each half, even numbers.
        rng: draws the order and the prices.

    Returns:
        Groups of each half in random order; no group is in both.
    """
    order = rng.permutation(len(counts))
    found = _greedy(counts, sizes, order)
    return found or _exact(counts, sizes, rng.permutation(len(counts)), rng)


def _greedy(counts: np.ndarray, sizes: Sequence[int], order: np.ndarray) -> list[np.ndarray]:
    """Take groups in order while neither class exceeds half of a size; [] if a half stays short."""
    halves, rest = [], order
    for size in sizes:
        room, taken = np.array([size // 2, size // 2]), np.zeros(len(rest), bool)
        for place, group in enumerate(rest):
            if (counts[group] <= room).all():
                taken[place] = True
                room = room - counts[group]
        if room.any():
            return []
        halves.append(rest[taken])
        rest = rest[~taken]
    return halves


def _exact(
    counts: np.ndarray, sizes: Sequence[int], order: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Choose groups by an integer program: one variable for each half and group, 1 if it is taken."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag, eye_array, hstack, vstack

    groups, halves = len(counts), len(sizes)
    prices = rng.uniform(size=(halves, groups)) * counts.sum(axis=1)  # a sentence costs the same in any group
    each_class = block_diag([counts.T] * halves)
    once = hstack([eye_array(groups)] * halves)
    wanted = np.repeat([size // 2 for size in sizes], 2)
    lowest, highest = np.concatenate([wanted, np.zeros(groups)]), np.concatenate([wanted, np.ones(groups)])
    found = milp(
        prices.ravel(), integrality=np.ones(halves * groups, np.int64), bounds=Bounds(0, 1),
        constraints=LinearConstraint(vstack([each_class, once]), lowest, highest),
        options={"time_limit": _SECONDS, "mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        return []
    taken = np.round(found.x).astype(bool).reshape(halves, groups)
    return [order[half[order]] for half in taken]
