"""Steer along a fitted axis.

push = steer_along({15: axes}, "lr", "add", alpha=2.0, start=40, stop=52)
tree.read([Request(ids, spans=[(40, 52)], steering=[push])], layers=[15])
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from analysis.classifiers import AxisSet
from analysis.engine.steering import Steering


def steer_along(
    axes: Mapping[int, AxisSet],
    name: str,
    kind: str,
    alpha: float = 0.0,
    start: int = 0,
    stop: int | None = None,
) -> Steering:
    """Return an intervention along one axis.

    Args:
        axes: layer -> its axes; it acts at all these layers.
        name: of the axis, such as ``lr``.
        kind: ``add``, ``clamp`` or ``ablate``, see Steering, as for what follows.
        alpha: in standard deviations of the axis's scores.
        start: first token at which it acts.
        stop: one past the last; None goes on into the reply.

    Raises:
        UserError: no such axis.
        ValueError: no such kind or span.
    """
    picked = [(one, one.index(name)) for one in axes.values()]
    return Steering(
        tuple(axes),
        kind,
        np.array([one.directions[k] for one, k in picked]),
        np.array([one.mean for one, _ in picked]),
        np.array([one.scales[k] for one, k in picked]),
        alpha,
        start,
        stop,
    )
