"""Same-N observers: against scikit-learn, planted labels, chance, and changes that must not matter."""

import time

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from analysis.base.errors import UserError
from analysis.experiments import observers as ob
from analysis.statistics import kernel_logistic
from analysis.statistics.agreement import cohens_kappa
from tests import unchecked

NAN = np.nan
FIT = ["I ate an apple.", "We ate!", "I saw it."]


def scaled(n, dim, seed=0, condition=1.0):
    """Features of mean squared length 30, with deviations from 1 to 1 / condition."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((n, dim)) * np.logspace(0, -np.log10(condition), dim)
    return data * np.sqrt(ob.MEAN_SQUARE / (data**2).sum(axis=1).mean()), rng


def predict(features, labels, c=1.0, starts=None):
    starts = ob.fit_sizes(len(labels)) if starts is None else starts
    return ob.same_n_predictions(features @ features.T, labels, c, starts)


# ---------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("n, dim, condition", [(40, 200, 1), (150, 6, 1), (90, 90, 1e6), (70, 300, 1e6)])
def test_each_fit_is_scikit_learns_on_the_features(n, dim, condition, planted, c):
    features, rng = scaled(n, dim, condition=condition)
    planted_labels = (features @ rng.standard_normal(dim) > 0).astype(int)  # separable
    labels = planted_labels if planted else rng.integers(0, 2, n)
    sizes = [n // 4, n // 3, n // 2]
    assert all(0 < labels[:size].sum() < size for size in sizes)
    found = predict(features, labels, c, [0, *sizes])
    for start, stop in zip(sizes, [*sizes[1:], n], strict=True):
        plain = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-12 / c, max_iter=1000)
        expected = plain.fit(features[:start], labels[:start]).predict_proba(features[start:stop])[:, 1]
        np.testing.assert_allclose(found[start:stop], expected, atol=1e-6)


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("planted", [True, False])
@pytest.mark.parametrize("n, dim, condition", [(160, 300, 1), (120, 6, 1), (120, 90, 1e6)])
def test_a_running_fit_equals_a_refit_at_every_place(n, dim, condition, planted, c):
    features, rng = scaled(n, dim, condition=condition)
    planted_labels = (features @ rng.standard_normal(dim) > 0).astype(int)
    labels = planted_labels if planted else rng.integers(0, 2, n)
    gram = features @ features.T
    refits = ob.same_n_predictions(gram, labels, c, range(n))
    np.testing.assert_allclose(ob.predictions_at_every_place(gram, labels, c), refits, rtol=0, atol=1e-6)


def test_a_running_fit_is_exact_with_repeated_sentences_one_far_away_and_one_label_for_long():
    features, rng = scaled(90, 40)
    features[30:45] = features[:15]
    features[60] *= 300
    labels = rng.integers(0, 2, 90)
    labels[:25] = 1
    gram = features @ features.T
    found = ob.predictions_at_every_place(gram, labels, 1.0)
    np.testing.assert_allclose(found, ob.same_n_predictions(gram, labels, 1.0, range(90)), rtol=0, atol=1e-6)


def test_a_running_fit_seldom_needs_a_refit(monkeypatch):
    features, rng = scaled(300, 576)
    labels, fits = rng.integers(0, 2, 300), []
    newton = kernel_logistic.fit
    monkeypatch.setattr(kernel_logistic, "fit", lambda *args: fits.append(1) or newton(*args))
    ob.predictions_at_every_place(features @ features.T, labels, 1.0)
    assert len(fits) < 45


def test_a_running_fit_knows_nothing_that_comes_later():
    features, rng = scaled(60, 30)
    labels = rng.integers(0, 2, 60)
    before = ob.predictions_at_every_place(features @ features.T, labels, 1.0)
    changed, flipped = features.copy(), labels.copy()
    changed[41:] = rng.standard_normal(changed[41:].shape)
    flipped[40:] = 1 - flipped[40:]
    after = ob.predictions_at_every_place(changed @ changed.T, flipped, 1.0)
    np.testing.assert_allclose(after[:41], before[:41], rtol=0, atol=1e-9)


def test_600_places_take_a_few_seconds():
    features, rng = scaled(600, 2000)
    gram, labels = features @ features.T, rng.integers(0, 2, 600)
    begin = time.process_time()  # of the processor: other jobs do not count
    ob.predictions_at_every_place(gram, labels, 1.0)
    assert time.process_time() - begin < 6  # about 1 s, so that a slow machine passes too


def test_two_opposite_examples_by_hand():
    # x = +-1, labels 1 and 0: b = 0, and w minimises w^2 / 2 + 2 log(1 + exp(-w)), so that w = 2 / (1 + e^w)
    w = 0.7
    for _ in range(100):
        w -= (w - 2 * expit(-w)) / (1 + 2 * expit(w) * expit(-w))
    got = predict(np.array([[1.0], [-1], [1], [3]]), np.array([1, 0, 1, 1]), starts=[0, 2])
    np.testing.assert_allclose(got[2:], expit([w, 3 * w]), rtol=1e-9)


def test_one_sentence_far_from_the_others_does_not_stop_the_fits():
    features, rng = scaled(80, 100)
    features[20] *= 300
    labels = rng.integers(0, 2, 80)
    found = predict(features, labels, starts=[0, 40])
    plain = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    expected = plain.fit(features[:40], labels[:40]).predict_proba(features[40:])[:, 1]
    np.testing.assert_allclose(found[40:], expected, atol=1e-6)


def test_a_first_guess_from_fewer_examples_does_not_change_the_fit():
    features, rng = scaled(60, 40)
    labels = rng.integers(0, 2, 60)
    many, one = predict(features, labels, starts=range(60)), predict(features, labels, starts=[0, 59])
    assert many[59] == pytest.approx(one[59], abs=1e-9)


def test_a_fit_that_cannot_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(kernel_logistic, "_MAX_STEPS", 2)
    features, rng = scaled(60, 40)
    with pytest.raises(ValueError, match="did not converge in 2 steps.*lower c, now 1000"):
        predict(features, rng.integers(0, 2, 60), c=1000.0)


# ---------------------------------------------------------------- what a position may know


def test_a_prediction_depends_on_nothing_that_comes_later():
    features, rng = scaled(60, 30)
    labels = rng.integers(0, 2, 60)
    before = predict(features, labels)
    for i in (5, 11, 40, 59):
        changed, flipped = features.copy(), labels.copy()
        changed[i + 1 :] = 10 * rng.standard_normal(changed[i + 1 :].shape)
        flipped[i:] = 1 - flipped[i:]  # also the label that is predicted
        np.testing.assert_allclose(predict(changed, flipped)[: i + 1], before[: i + 1], rtol=0, atol=1e-12)
    flipped = labels.copy()
    flipped[10] = 1 - flipped[10]
    assert abs(predict(features, flipped)[11] - before[11]) > 0.01  # an earlier label does count


def test_later_sentences_do_not_change_the_words_of_earlier_ones():
    first, second = ["I saw a pear", "an apple ate it"], ["we saw pears"]
    whole, changed = ob.word_kernel(first + second, FIT), ob.word_kernel(first + ["zebras drum"], FIT)
    np.testing.assert_allclose(whole[:2, :2], changed[:2, :2], rtol=1e-12)
    np.testing.assert_allclose(whole[:2, :2], ob.word_kernel(first, FIT), rtol=1e-12)


def test_a_prediction_comes_from_the_largest_fit_that_is_not_larger_than_its_position():
    features, rng = scaled(20, 5)
    labels = np.arange(20) % 2
    found = predict(features, labels, starts=[0, 2, 8])
    np.testing.assert_allclose(found[2:8], predict(features[:8], labels[:8], starts=[0, 2])[2:], rtol=1e-12)
    np.testing.assert_allclose(found[8:], predict(features, labels, starts=[0, 8])[8:], atol=1e-9)


def test_without_both_labels_the_prediction_is_the_rule_of_succession():
    features, _ = scaled(7, 4)
    shares = [1 / 2, 2 / 3, 3 / 4, 4 / 5, 5 / 6, 5 / 6, 7 / 8]
    np.testing.assert_allclose(predict(features, np.ones(7)), shares)
    np.testing.assert_allclose(predict(features, np.zeros(7))[:4], [1 / 2, 1 / 3, 1 / 4, 1 / 5])
    np.testing.assert_allclose(predict(features[:1], np.array([1])), [0.5])
    mixed = predict(features, np.array([1, 1, 0, 1, 0, 0, 1]))
    np.testing.assert_allclose(mixed[:3], [1 / 2, 2 / 3, 3 / 4])
    assert np.isfinite(mixed).all()


def test_fit_sizes_grow_by_half_powers_of_two():
    assert ob.fit_sizes(12) == [0, 1, 2, 3, 4, 6, 8, 11]
    assert ob.fit_sizes(11) == ob.fit_sizes(9) == [0, 1, 2, 3, 4, 6, 8]
    assert ob.fit_sizes(600)[8:] == [16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512]
    assert [ob.fit_sizes(n) for n in range(4)] == [[], [0], [0, 1], [0, 1, 2]]


# ---------------------------------------------------------------- what it can learn


def test_accuracy_grows_to_1_on_a_planted_axis_and_stays_at_chance_on_random_labels():
    right, chance = [], []
    for seed in range(8):
        features, rng = scaled(400, 8, seed)
        labels = (features @ rng.standard_normal(8) > 0).astype(int)
        right.append((predict(features, labels) > 0.5) == labels)
        mixed = rng.integers(0, 2, 400)
        chance.append((predict(features, mixed) > 0.5) == mixed)
    right = np.mean(right, axis=0)
    assert right[:4].mean() < 0.8 < right[20:60].mean() < right[256:].mean()
    assert right[256:].mean() > 0.97
    assert np.mean(chance) == pytest.approx(0.5, abs=0.035)  # four standard errors of 3200 guesses


def test_words_tell_sentences_apart_by_the_word_that_decides_their_label():
    rng = np.random.default_rng(0)
    words = np.array("red blue green old new big small slow".split())
    sentences, fitting = ([" ".join(rng.permutation(words)[:4]) for _ in range(200)] for _ in range(2))
    labels = np.array(["red" in sentence for sentence in sentences]).astype(int)
    found = ob.same_n_predictions(ob.word_kernel(sentences, fitting), labels, 1.0, ob.fit_sizes(200))
    assert ((found > 0.5) == labels)[64:].all()


def test_predictions_are_deterministic():
    features, rng = scaled(50, 20)
    labels = rng.integers(0, 2, 50)
    assert (predict(features, labels) == predict(features, labels)).all()


def test_600_sentences_of_4096_features_take_less_than_a_second():
    features, rng = scaled(600, 4096)
    gram, labels = features @ features.T, rng.integers(0, 2, 600)
    begin = time.process_time()  # of the processor: other jobs do not count
    ob.same_n_predictions(gram, labels, 1.0, ob.fit_sizes(600))
    assert time.process_time() - begin < 1  # about 0.05 s, so that a slow machine passes too


# ---------------------------------------------------------------- inner products


def test_kernel_by_hand():
    # centred and halved: (1, 0), (0, -1), (1, 1)
    got = ob.kernel(np.array([[3, 5], [1, 3], [3, 7]]), np.array([1, 5]), 2.0)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [[1, 0, 1], [0, 1, -1], [1, -1, 2]])


@pytest.mark.parametrize("dim", [3, 2000])
def test_fitting_sentences_have_mean_0_and_mean_squared_length_30_whatever_their_size(dim):
    fitting = (5 + np.random.default_rng(0).standard_normal((40, dim)) * 1e4).astype(np.float32)
    gram = ob.kernel(fitting, *ob.center_and_scale(fitting))
    assert gram.diagonal().mean() == pytest.approx(30)
    np.testing.assert_allclose(gram.sum(axis=0), 0, atol=1e-8)


def test_word_kernel_counts_each_word_once_in_lower_case():
    fitting = ["a b", "a c"]  # shares: a 1, b 1/2, c 1/2; both squared lengths are 1/2, so the square is x 60
    got = ob.word_kernel(["A b, b!", "a d"], fitting)  # centred (b, c, d): (.5, -.5, 0), (-.5, -.5, 1)
    np.testing.assert_allclose(got, 60 * np.array([[0.5, 0], [0, 1.5]]), atol=1e-12)


# ---------------------------------------------------------------- agreement


def test_kappa_is_scikit_learns_along_the_last_axis():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, (3, 4, 30))
    b = np.where(rng.random(a.shape) < 0.7, a, 1 - a)
    expected = [[cohen_kappa_score(a[i, j], b[i, j]) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(cohens_kappa(a, b), expected, atol=1e-12)


def test_kappa_by_hand_with_missing_positions():
    # of 4 positions 3 agree; chance agrees in 1/2 * 1/4 + 1/2 * 3/4 = 1/2, so (3/4 - 1/2) / (1 - 1/2)
    a, b = np.array([1, 1, 0, 0, NAN, 1]), np.array([1, 0, 0, 0, 1, NAN])
    assert cohens_kappa(a, b) == pytest.approx(0.5)
    assert cohens_kappa(b, 1 - b) < 0 < cohens_kappa(b, b) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # of scikit-learn, which agrees
def test_kappa_is_nan_only_where_it_is_not_defined():
    ones, zeros, mixed = np.ones(4), np.zeros(4), np.array([0, 1, 0, 1])
    assert np.isnan(cohens_kappa(ones, ones)) and np.isnan(cohens_kappa(ones, np.full(4, NAN)))
    assert cohens_kappa(ones, zeros) == cohens_kappa(ones, mixed) == 0
    assert np.isnan(cohen_kappa_score(ones, ones))
    assert cohen_kappa_score(ones, zeros) == 0


# ---------------------------------------------------------------- bad input

EYE, MIXED = np.eye(4), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ob.same_n_predictions(EYE, MIXED[:3], 1.0, [0]), r"gram \(4, 4\) and labels \(3,\)"),
        (lambda: ob.same_n_predictions(EYE[:3], MIXED, 1.0, [0]), r"gram \(3, 4\)"),
        (lambda: ob.same_n_predictions(EYE[:0, :0], MIXED[:0], 1.0, []), "N >= 1"),
        (lambda: ob.same_n_predictions(EYE, 2 * MIXED, 1.0, [0]), r"labels are \[0, 2\]"),
        (lambda: ob.same_n_predictions(EYE * NAN, MIXED, 1.0, [0]), "not finite"),
        (lambda: ob.same_n_predictions(-9 * EYE, MIXED, 1.0, [0, 3]), "no matrix of inner products"),
        (lambda: ob.same_n_predictions(EYE, MIXED, 0.0, [0]), "c is 0.0"),
        (lambda: ob.same_n_predictions(EYE, MIXED, 1.0, []), "rising whole numbers from 0, all below 4"),
        (lambda: ob.same_n_predictions(EYE, MIXED, 1.0, [1, 2]), "from 0"),
        (lambda: ob.same_n_predictions(EYE, MIXED, 1.0, [0, 2, 2]), "rising"),
        (lambda: ob.same_n_predictions(EYE, MIXED, 1.0, [0, 4]), "below 4"),
        (lambda: ob.kernel(EYE, np.zeros(3), 1.0), r"features \(4, 4\) and center \(3,\)"),
        (lambda: ob.kernel(EYE[0], np.zeros(4), 1.0), r"features \(4,\)"),
        (lambda: ob.kernel(EYE, np.zeros(4), 0.0), "scale is 0.0"),
        (lambda: ob.kernel(EYE * NAN, np.zeros(4), 1.0), "not all finite"),
        (lambda: ob.center_and_scale(EYE[0]), r"shape \(4,\)"),
        (lambda: ob.center_and_scale(EYE[:1]), "2 or more"),
        (lambda: ob.word_kernel(["a b"], ["c d"]), "2 or more"),
        (lambda: cohens_kappa(MIXED, EYE), r"shapes \(4,\) and \(4, 4\)"),
        (lambda: unchecked(cohens_kappa)(1, 0), "shapes"),
        (lambda: cohens_kappa(MIXED, MIXED / 2), "0, 1 or NaN"),
    ],
)
def test_bad_input_says_what_to_give(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert not isinstance(caught.value, UserError)  # a slip in our code keeps its traceback


def test_sentences_that_tell_nothing_are_the_users_error():
    with pytest.raises(UserError, match="the same features"):
        ob.center_and_scale(np.ones((3, 2)))
    with pytest.raises(UserError, match="no bag of words"):
        ob.word_kernel(["?"], ["!", "..."])
