"""Same-N observers: logistic regressions that see the labelled examples that the model has seen.

In a report experiment the model reads N sentences one after the other, and it has seen i labelled examples
before it predicts label i. An observer predicts label i from the same examples as feature vectors: pooled
activations (the ideal observer), mean input embeddings (input only), or a bag of words.

Shape letters: N sentences of one experiment in their order, M sentences that fitted the axes, D features.

With features x (D,), a free intercept b and y = 2 label - 1, the observer minimises

    |w|^2 / 2 + c * sum_i log(1 + exp(-y_i (w x_i + b)))

At the minimum w is a weighted sum of the examples, w = sum_i a_i x_i, so that the inner products of the
sentences are all that is needed: one (N, N) matrix serves every axis and every number of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.linalg.lapack import dposv
from scipy.special import expit
from threadpoolctl import threadpool_limits

from analysis.base.errors import UserError
from analysis.statistics.designs import fit_sizes as fit_sizes

MEAN_SQUARE = 30.0
"""Mean squared length of a centred and scaled feature vector of the fitting sentences."""
_MAX_STEPS = 100
_MAX_HALVINGS = 50
_TOL = 1e-5
"""Largest change of w x + b, for any x as long as the examples, by the last Newton step."""


# ---------------------------------------------------------------- inner products


def center_and_scale(fitting: Float[np.ndarray, "M D"]) -> tuple[Float[np.ndarray, " D"], float]:
    """Return the center and scale that ``kernel`` needs, from sentences that no experiment uses.

    After scaling, a feature vector has a mean squared length of ``MEAN_SQUARE`` = 30 whatever D is, and not
    of D as in ``classifiers.fit_axes``, so that the penalty does not become weaker with D. ``c = 1`` here is
    ``lr_c = 30 / D`` there. The number comes from simulations: normal features of variances 1 / k (k to D),
    D = 576, 4096 and 8192, labels that are the side of four directions (components 1 and 16, a mix of the
    first 50, a mix of all), N = 256, c = 1; means over all and over positions 1-7, 8-31, 32-127, 128-255:

        mean squared length      1      3     10     30    100    300   1000      D
        accuracy in %         64.8   67.0   68.2   68.7   68.8   69.0   69.1   69.1
        cross-entropy in nats 0.64   0.61   0.59   0.59   0.62   0.66   0.72   0.77

    Args:
        fitting: (M, D) features of the fitting sentences; their labels are not needed.

    Returns:
        (D,) float64 mean, and the number > 0 that the centred features are divided by.

    Raises:
        ValueError: not (M, D) finite numbers with M >= 2.
        UserError: features that do not vary.
    """
    fitting = np.asarray(fitting, dtype=np.float64)
    if fitting.ndim != 2 or len(fitting) < 2 or not np.isfinite(fitting).all():
        raise ValueError(
            f"fitting features of shape {fitting.shape}: give (M, D) finite numbers of 2 or more sentences"
        )
    center = fitting.mean(axis=0)
    scale = float(np.sqrt(((fitting - center) ** 2).sum(axis=1).mean() / MEAN_SQUARE))
    if not scale > 0:
        raise UserError(f"all {len(fitting)} fitting sentences have the same features: give different ones")
    return center, scale


@threadpool_limits.wrap(limits=1, user_api="blas")  # not starved on a busy machine
def kernel(
    features: Float[np.ndarray, "N D"], center: Float[np.ndarray, " D"], scale: float
) -> Float[np.ndarray, "N N"]:
    """Return the inner products of the centred and scaled features of N sentences.

    Args:
        features: (N, D), finite.
        center, scale: (D,) and a number, of ``center_and_scale``.

    Returns:
        (N, N) float64.

    Raises:
        ValueError: the shapes do not match, features are not finite, or the scale is not > 0.
    """
    features, center = (np.asarray(part, dtype=np.float64) for part in (features, center))
    if features.ndim != 2 or center.shape != features.shape[1:]:
        raise ValueError(f"features {features.shape} and center {center.shape}: give (N, D) and (D,)")
    if not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}: give a number > 0, such as center_and_scale returns")
    centred = (features - center) / scale
    if not np.isfinite(centred).all():
        raise ValueError(f"features of shape {features.shape} are not all finite: leave such sentences out")
    return centred @ centred.T


def word_kernel(sentences: Sequence[str], fitting_sentences: Sequence[str]) -> Float[np.ndarray, "N N"]:
    """Return the inner products of binary bags of words, scaled as ``center_and_scale`` does.

    The vocabulary is every lower-case word of both lists, since an observer can learn words from its examples
    that the fitting sentences lack. A word that only a later sentence has changes nothing for earlier ones.

    Args:
        sentences: N sentences of the experiment, in order.
        fitting_sentences: M sentences that give the share of each word (the center) and the scale.

    Returns:
        (N, N) float64.

    Raises:
        ValueError: fewer than 2 fitting sentences.
        UserError: all of them have the same words, or there is no word at all.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64)
    try:
        words = counter.fit_transform([*fitting_sentences, *sentences]).toarray()
    except ValueError as error:
        raise UserError(f"the sentences have no bag of words ({error}): give sentences with words") from None
    fitting, features = np.split(words, [len(fitting_sentences)])
    return kernel(features, *center_and_scale(fitting))


# ---------------------------------------------------------------- predictions


@threadpool_limits.wrap(limits=1, user_api="blas")  # matrices this small are slowed down by threads
def same_n_predictions(gram: np.ndarray, labels: np.ndarray, c: float, starts: Sequence[int]) -> np.ndarray:
    """Return the observer's probability of label 1 at every position.

    Position i is predicted from a fit on the first s examples, s the largest of ``starts`` that is <= i.
    While these have one label only (or there is none), p = (ones + 1) / (s + 2), the rule of succession.

    Args:
        gram: (N, N) of ``kernel`` or ``word_kernel``.
        labels: (N,) 0 or 1.
        c: inverse L2 strength, > 0; 1 suits features scaled by ``center_and_scale``.
        starts: rising numbers of examples from 0, below N: ``fit_sizes(N)``, or ``range(N)`` for one fit
            per position.

    Returns:
        (N,) float64 in [0, 1], no NaN.

    Raises:
        ValueError: wrong shapes or values, or a fit that did not converge.
    """
    labels = _check(gram, labels, c, starts)
    p1 = np.empty(len(labels))
    dual, intercept = np.zeros(0), 0.0
    for start, stop in zip(starts, [*starts[1:], len(labels)], strict=True):
        ones = int(labels[:start].sum())
        if ones in (0, start):
            p1[start:stop] = (ones + 1) / (start + 2)
            continue
        dual = np.append(dual, np.zeros(start - len(dual)))  # the last fit, without the new examples
        dual, intercept = _fit(gram[:start, :start], labels[:start], c, dual, intercept)
        p1[start:stop] = expit(gram[start:stop, :start] @ dual + intercept)
    return p1


def _check(gram: np.ndarray, labels: np.ndarray, c: float, starts: Sequence[int]) -> np.ndarray:
    """Return the labels as int64, or raise ValueError."""
    labels = np.asarray(labels)
    n = labels.size
    if labels.ndim != 1 or n == 0 or gram.shape != (n, n):
        raise ValueError(f"gram {gram.shape} and labels {labels.shape}: give (N, N) and (N,) with N >= 1")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels are {np.unique(labels)[:5].tolist()}: they must be 0 and 1")
    if not np.isfinite(gram).all():
        raise ValueError(f"gram of shape {gram.shape} is not finite: leave sentences without features out")
    if not (np.isfinite(c) and c > 0):
        raise ValueError(f"c is {c}: give a number > 0")
    if list(starts) != sorted({0, *starts} & set(range(n))):
        raise ValueError(f"starts are {list(starts)}: give rising whole numbers from 0, all below {n}")
    return labels.astype(np.int64)


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


def _fit(
    gram: np.ndarray, labels: np.ndarray, c: float, dual: np.ndarray, intercept: float
) -> tuple[np.ndarray, float]:
    """Return the a (n,) and b of the minimum by Newton's method, from a first guess of them.

    The Newton step is the gradient in units of the curvature. For logistic losses the curvature changes by
    at most exp(R), R the largest change of w x + b (Bach 2010), so that a step with R <= _TOL leaves an
    error of the order of R^2.

    Raises ValueError if none of the first _MAX_STEPS steps is that small.
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
        slope = (point.dual - pull) @ step.field - pull.sum() * step.intercept
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
    return _Point(dual, gram @ dual, intercept - point.intercept)


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
