"""The linear algebra behind the axes: one decomposition, and a logistic regression that is known to converge.

Shape letters: N sentences that fit the axes, D hidden size, R rank of the centred data.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import expit

from analysis.base.errors import UserError

_MAX_ITER = 200
_TOL = 1e-8
_GRADIENT = 1e-5

# At the optimum rounding may hide that a step lowers the loss: convergence is judged below, by the gradient.
# Set for good, since what one thread sets and takes back would hit the others.
for _told in ("Line Search failed", "The line search algorithm did not converge", "newton-cg failed to conv"):
    warnings.filterwarnings("ignore", _told, module="sklearn.utils.optimize")


def svd_rotation(data: np.ndarray, mean: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates (N, R) of the centred data and the principal components (R, D) they refer to.

    The sign is scikit-learn's: the largest entry of each component is positive. The data are decomposed
    directly: the eigenvectors of their Gram matrix would lose half of the digits, and with activations
    whose largest component outweighs the others, the small components altogether.
    """
    # numpy's, since scipy's lets no other thread run
    left, singular, basis = np.linalg.svd(data - mean, full_matrices=False)
    # what rounding leaves of a direction without variance, also where the mean dwarfs the deviations
    size = np.hypot(singular[0], np.linalg.norm(mean) * np.sqrt(len(data)))
    rank = min((singular > size * max(data.shape) * np.finfo(np.float64).eps).sum(), len(data) - 1)
    if rank == 0:
        raise UserError(f"layer {layer}: all fitting sentences have the same hidden state: check the layer")
    signs = np.sign(basis[np.arange(rank), np.abs(basis[:rank]).argmax(axis=1)])
    return left[:, :rank] * (singular[:rank] * signs), basis[:rank] * signs[:, None]


def mean_difference(features: np.ndarray, labels: np.ndarray, name: str, layer: int) -> np.ndarray:
    difference = features[labels == 1].mean(axis=0) - features[labels == 0].mean(axis=0)
    if not np.linalg.norm(difference) > 1e-12:  # features have deviations near 1
        raise UserError(
            f"axis {name!r} of layer {layer} has no direction, both labels have the same mean hidden state: "
            "check that the labels belong to the sentences, or fit on more of them"
        )
    return difference


def standardised(data: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the data (N, D) with every coordinate at mean 0 and deviation 1, and the deviations (D,).

    A few coordinates of language models are hundreds of times as large as the others. With one scale for all
    they would be the whole logistic regression; with a scale each, all have the same say. A coordinate that
    does not vary stays 0, and its deviation is infinite.
    """
    centred = data - mean
    deviations = centred.std(axis=0)
    rounding = 64 * np.finfo(np.float64).eps * np.abs(mean)
    deviations[deviations <= rounding] = np.inf
    return centred / deviations, deviations


def gram_rotation(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (N, R) whose inner products are those of ``data`` (N, D), and the basis (R, D).

    ``data`` is ``coordinates @ basis``. By the eigenvectors of the (N, N) inner products: components below
    1e-5 of the largest are lost, which a regression with a penalty does not see.
    """
    power, left = np.linalg.eigh(data @ data.T)
    kept = power > max(power[-1], 0.0) * 1e-10
    root = np.sqrt(power[kept])
    return left[:, kept] * root, (left[:, kept] / root).T @ data


STRENGTHS = tuple(10.0**k for k in range(-5, 2))
"""Inverse L2 strengths that cross-validation chooses from."""
FOLDS = 5


def choose_strength(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> float:
    """Return the inverse L2 strength of STRENGTHS with the largest likelihood of held-out sentences.

    Args:
        features: (N, R), see gram_rotation; center and scales come from all N, without their labels.
        labels: (N,) 0 or 1.
        groups: (N,) sentences of one group are held out together.

    Returns:
        The strength that maximises the sum of log likelihoods over FOLDS folds of groups (fewer if there are
        fewer groups); 1 where a fold would lack a class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(np.unique(groups)))
    splits = list(GroupKFold(folds).split(features, labels, groups)) if folds > 1 else []
    if not splits or any(len(np.unique(labels[fitting])) < 2 for fitting, _ in splits):
        return 1.0
    likelihood = np.zeros(len(STRENGTHS))
    for fitting, others in splits:
        model = LogisticRegression(solver="lbfgs", tol=1e-3, max_iter=500, warm_start=True)
        side = 2.0 * labels[others] - 1.0
        for k, c in enumerate(STRENGTHS):
            model.C = c
            model.fit(features[fitting], labels[fitting])
            margin = side * (features[others] @ model.coef_[0] + model.intercept_[0])
            likelihood[k] -= np.logaddexp(0, -margin).sum()
    return STRENGTHS[int(likelihood.argmax())]


def logistic(features: np.ndarray, labels: np.ndarray, c: float, name: str, layer: int) -> np.ndarray:
    """Return the weights (R,) that minimise |w|^2 / 2 + c * (sum of log losses), intercept free.

    The loss is strongly convex in w, so that |w - optimum| <= |gradient|: a gradient that is small next
    to |w| bounds the angle to the optimum, which the solver's own stopping rule does not.

    Raises:
        UserError: the gradient is not that small.
    """
    from sklearn.linear_model import LogisticRegression

    mean_difference(features, labels, name, layer)  # without a difference the optimum is w = 0
    tol = _TOL / max(1.0, c * len(labels))  # the solver divides the loss by c N
    # without matrices of second derivatives: a third of the time of newton-cholesky for 600 sentences
    model = LogisticRegression(C=c, solver="newton-cg", tol=tol, max_iter=_MAX_ITER)
    weights = model.fit(features, labels).coef_[0]
    side = 2.0 * labels - 1.0
    # expit of the negative margin keeps its digits where 1 - expit(margin) would round to 0
    missing = expit(-side * (features @ weights + model.intercept_[0]))
    gradient = np.linalg.norm(weights - c * features.T @ (side * missing))
    if model.n_iter_[0] >= _MAX_ITER or not gradient <= _GRADIENT * np.linalg.norm(weights):
        raise UserError(
            f"axis {name!r} of layer {layer}: the logistic regression did not converge in "
            f"{model.n_iter_[0]} steps (gradient {gradient:.1e}): lower lr_c, now {c:g}"
        )
    return weights
