"""Logistic regression from the inner products of its examples, once, or again after each new example.

Shape letters: N examples in their order, n of them that have been seen.

With features x (D,), a free intercept b and y = 2 label - 1, the fit minimises

    |w|^2 / 2 + c * sum_i log(1 + exp(-y_i (w x_i + b)))

At the minimum w is a weighted sum of the examples, w = sum_i a_i x_i, with a_i = c y_i / (1 + exp(y_i z_i))
of the predictors z_i = w x_i + b, and sum_i a_i = 0. Inner products are all that is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg.lapack import dposv, dpotrf, dpotri
from scipy.special import expit

_MAX_STEPS = 100
_MAX_HALVINGS = 50
_TOL = 1e-5
"""Largest change of w x + b, for any x as long as the examples, by the last Newton step."""
_CLOSE = 1e-6
"""Largest change of a predictor by the last step of a running fit, and by all that would follow it."""
_FEW_STEPS = 14
_MEMORY = 5
"""Steps that are combined into the next one."""
_GROWTH = 0.1
"""Share of new examples after which the matrix of a running fit is inverted again; at least _LEAST."""
_LEAST = 8
_SMALLEST_WEIGHT = 1e-10


# ---------------------------------------------------------------- one fit


@dataclass(frozen=True)
class _Point:
    """A point on the way to the minimum: (n,) the a of w, (n,) w x of every example, and b."""

    dual: np.ndarray
    field: np.ndarray
    intercept: float

    def plus(self, step: _Point, size: float) -> _Point:
        return _Point(
            self.dual + size * step.dual,
            self.field + size * step.field,
            self.intercept + size * step.intercept,
        )

    def loss(self, side: np.ndarray, c: float) -> float:
        margin = side * (self.field + self.intercept)
        return float(self.dual @ self.field / 2 + c * np.logaddexp(0, -margin).sum())


def fit(
    gram: Float[np.ndarray, "n n"],
    labels: Int[np.ndarray, " n"],
    c: float,
    dual: Float[np.ndarray, " n"],
    intercept: float,
) -> tuple[Float[np.ndarray, " n"], float]:
    """Return the a and b of the minimum by Newton's method, from a first guess of them.

    The Newton step is the gradient in units of the curvature. For logistic losses the curvature changes by
    at most exp(R), R the largest change of w x + b (Bach 2010), so that a step with R <= _TOL leaves an
    error of the order of R^2.

    Raises:
        ValueError: none of the first _MAX_STEPS steps is that small, or ``gram`` holds no inner products.
    """
    side = 2.0 * labels - 1.0
    longest = np.sqrt(max(gram.diagonal().max(), 0.0))
    point = _Point(dual, gram @ dual, intercept)
    loss = point.loss(side, c)
    for _ in range(_MAX_STEPS):
        margin = side * (point.field + point.intercept)
        missing = expit(-margin)  # keeps its digits where 1 - expit(margin) would round to 0
        pull, weight = c * side * missing, c * missing * expit(margin)
        step = _newton_step(gram, point, pull, weight)
        change = longest * np.sqrt(max(step.dual @ step.field, 0.0)) + abs(step.intercept)
        if change <= _TOL:
            return point.dual + step.dual, point.intercept + step.intercept
        slope = float((point.dual - pull) @ step.field - pull.sum() * step.intercept)
        point, loss = _descend(point, step, slope, loss, side, c)
    raise ValueError(
        f"the observer's logistic regression on {len(labels)} examples did not converge in {_MAX_STEPS} "
        f"steps (the last one changed w x + b by {change:.1e}): lower c, now {c:g}"
    )


def _newton_step(gram: np.ndarray, point: _Point, pull: np.ndarray, weight: np.ndarray) -> _Point:
    """Return the step to the minimum of the quadratic approximation (Rasmussen & Williams 2006, alg. 3.1).

    With W = diag(weight) the minimum has a = (K + 1 / W)^-1 (z - b) and sum(a) = 0, which gives b. The matrix
    that is solved, 1 + W^(1/2) K W^(1/2), has no eigenvalue below 1, however small the weights are.
    """
    root = np.sqrt(np.maximum(weight, np.finfo(np.float64).tiny))
    system = root[:, None] * gram * root
    system.flat[:: len(root) + 1] += 1.0
    wanted = root * (point.field + point.intercept) + pull / root
    _, solved, failed = dposv(system, np.column_stack([wanted, root]))
    if failed:
        raise ValueError(f"gram of {len(root)} examples is no matrix of inner products: use kernel()")
    free, ones = root * solved[:, 0], root * solved[:, 1]
    intercept = free.sum() / ones.sum()
    dual = free - intercept * ones - point.dual
    return _Point(dual, gram @ dual, float(intercept - point.intercept))


def _descend(
    point: _Point, step: _Point, slope: float, loss: float, side: np.ndarray, c: float
) -> tuple[_Point, float]:
    """Halve the step until the loss falls by a share of what its slope (< 0) promises (Armijo's rule)."""
    size = 1.0
    for _ in range(_MAX_HALVINGS):
        new = point.plus(step, size)
        found = new.loss(side, c)
        if found <= loss + 1e-4 * size * slope + 1e-13 * abs(loss):  # the last for rounding
            break
        size /= 2
    return new, found


# ---------------------------------------------------------------- a fit that goes on


class RunningFit:
    """The fit of the first n examples, brought up to date when n grows.

    A refit by Newton's method solves with K + 1 / W several times after every example, n^3 operations each.
    Here the inverse of an earlier K + 1 / W is kept, the examples since then are added to it as a border, and
    its steps are combined (Anderson 1965; Walker & Ni 2011) until no predictor changes by more than 1e-6, in
    this step or in those that would follow if they shrank as the last one did. The steps are those of the
    true problem, only their metric is old: where they stop, the fit is exact. Where they do not stop in time,
    or the border has become wide, Newton's method finds the fit.
    """

    def __init__(self, gram: Float[np.ndarray, "N N"], labels: Int[np.ndarray, " N"], c: float) -> None:
        self.gram, self.labels, self.c = np.ascontiguousarray(gram), labels, c
        self.side = 2.0 * labels - 1.0
        self.dual, self.intercept = np.zeros(len(labels)), 0.0
        self.predictors, self.weights = np.zeros(len(labels)), np.zeros(len(labels))
        self.n = 0
        self.inverse = np.zeros((0, 0))
        """Of K + 1 / W of the first examples."""

    def update(self, n: int) -> None:
        """Fit the first n examples; they hold both labels."""
        added = n - self.n
        self.n = n
        wide = n - len(self.inverse) > max(_LEAST, _GROWTH * len(self.inverse))
        if added != 1 or wide or not self._refine():
            self._refit()

    def probability(self, place: int) -> float:
        """Return the probability of label 1 of the example at ``place``, from the n examples before it."""
        return float(expit(self.gram[place, : self.n] @ self.dual[: self.n] + self.intercept))

    def _refit(self) -> None:
        """Newton's method from the last fit, and the inverse of its matrix."""
        n = self.n
        gram = self.gram[:n, :n]
        dual, self.intercept = fit(gram, self.labels[:n], self.c, self.dual[:n].copy(), self.intercept)
        self.dual[:n], self.predictors[:n] = dual, gram @ dual + self.intercept
        self.weights[:n] = self._weight(slice(n))
        system = gram + np.diag(1 / self.weights[:n])
        factor, failed = dpotrf(system, lower=1)
        half, _ = dpotri(factor, lower=1)
        # where rounding leaves no inverse, the next fit is Newton's again
        self.inverse = np.zeros((0, 0)) if failed else np.tril(half) + np.tril(half, -1).T
        self.border = np.zeros((len(self.inverse), len(self.labels) - len(self.inverse)))
        """The inverse times K between the first examples and those since."""

    def _refine(self) -> bool:
        """Bring the fit up to date by steps in the old metric; return whether they came to rest."""
        self._add_border()
        n, ones = self.n, np.ones(self.n)
        side, gram = self.side[:n], self.gram[:n, :n]
        of_ones = self._solve(ones)
        point = self.predictors[:n].copy()
        points: list[np.ndarray] = []
        steps: list[np.ndarray] = []
        before = np.inf
        for _ in range(_FEW_STEPS):
            pull = self.c * side * expit(-side * point)
            missing = self._solve(gram @ pull - point)
            intercept = float((pull.sum() - missing.sum()) / of_ones.sum())
            back = missing + intercept * of_ones
            step = back / self.weights[:n]
            if not np.isfinite(step).all():
                return False
            change = float(np.abs(step).max())
            shrunk = change / before if steps else 0.9
            if change <= _CLOSE and change * shrunk <= _CLOSE * (1 - shrunk):
                # not the pull at the new point, whose rounding a large c would carry into w
                self.dual[:n], self.predictors[:n], self.intercept = pull - back, point + step, intercept
                return True
            before = change
            points, steps = [*points[-_MEMORY + 1 :], point], [*steps[-_MEMORY + 1 :], step]
            point = _combined(points, steps)
        return False

    def _add_border(self) -> None:
        """Take the last example into the metric."""
        new, base = self.n - 1, len(self.inverse)
        self.predictors[new] = self.gram[new, :new] @ self.dual[:new] + self.intercept
        self.weights[new] = self._weight(slice(new, new + 1))[0]
        self.border[:, new - base] = self.inverse @ self.gram[:base, new]
        between, inner = self.gram[:base, base : self.n], self.gram[base : self.n, base : self.n]
        schur = inner - between.T @ self.border[:, : self.n - base] + np.diag(1 / self.weights[base : self.n])
        self.corner = np.linalg.inv(schur)

    def _solve(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return (K + 1 / W)^-1 times values, by the inverse and its border."""
        base, border = len(self.inverse), self.border[:, : self.n - len(self.inverse)]
        first = self.inverse @ values[:base]
        last = self.corner @ (values[base:] - self.gram[base : self.n, :base] @ first)
        return np.concatenate([first - border @ last, last])

    def _weight(self, part: slice) -> np.ndarray:
        """Return the curvature of the loss at these examples, not below what can be inverted."""
        margin = self.side[part] * self.predictors[part]
        return np.maximum(self.c * expit(-margin) * expit(margin), _SMALLEST_WEIGHT)


def _combined(points: list[np.ndarray], steps: list[np.ndarray]) -> np.ndarray:
    """Return the next point: the mix of the last ones whose mixed step is shortest, and that step."""
    point, step = points[-1] + steps[-1], steps[-1]
    if len(steps) == 1:
        return point
    changes = np.array([step - other for other in steps[:-1]])
    moved = np.array([points[-1] - other for other in points[:-1]])
    square = changes @ changes.T
    square.flat[:: len(square) + 1] += 1e-14 * np.trace(square)
    mix = np.linalg.lstsq(square, changes @ step, rcond=None)[0]
    return point - mix @ (moved + changes)
