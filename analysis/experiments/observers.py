"""Same-N observers: logistic regressions that see the labelled examples that the model has seen.

In a report experiment the model reads N sentences one after the other, and it has seen i labelled examples
before it predicts label i. An observer predicts label i from the same examples as feature vectors: pooled
activations (the ideal observer), mean input embeddings (input only), or a bag of words.

Shape letters: N sentences of one experiment in their order, M sentences that fitted the axes, D features.

The inner products of the sentences are all that is needed (analysis/statistics/kernel_logistic.py): one
(N, N) matrix serves every axis and every number of examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit
from threadpoolctl import threadpool_limits

from analysis.base.errors import UserError
from analysis.statistics.designs import fit_sizes as fit_sizes
from analysis.statistics.kernel_logistic import RunningFit, fit

MEAN_SQUARE = 30.0
"""Mean squared length of a centred and scaled feature vector of the fitting sentences."""


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
        dual, intercept = fit(gram[:start, :start], labels[:start], c, dual, intercept)
        p1[start:stop] = expit(gram[start:stop, :start] @ dual + intercept)
    return p1


@threadpool_limits.wrap(limits=1, user_api="blas")  # matrices this small are slowed down by threads
def predictions_at_every_place(
    gram: Float[np.ndarray, "N N"], labels: Int[np.ndarray, " N"], c: float
) -> Float[np.ndarray, " N"]:
    """Return the observer's probability of label 1 at every place, from a fit on all examples before it.

    While these have one label only (or there is none), p = (ones + 1) / (i + 2), the rule of succession.
    Equal to a refit at every place to 1e-6; 600 places take 1 s of one core, 256 take 0.2 s.

    Args:
        gram: of ``kernel`` or ``word_kernel``.
        labels: 0 or 1.
        c: inverse L2 strength, > 0; 1 suits features scaled by ``center_and_scale``.

    Returns:
        Values in [0, 1], no NaN.

    Raises:
        ValueError: wrong shapes or values, or a fit that did not converge.
    """
    labels = _check(gram, labels, c, [0])
    running, found = RunningFit(gram, labels, c), np.empty(len(labels))
    ones = np.cumsum(labels) - labels
    for place, seen in enumerate(ones.tolist()):
        if seen in (0, place):
            found[place] = (seen + 1) / (place + 2)
            continue
        running.update(place)
        found[place] = running.probability(place)
    return found


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
