"""The axes of one layer: against scikit-learn, planted directions, and a case checked by hand."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from analysis.axes.solvers import (
    STRENGTHS,
    choose_strength,
    gram_rotation,
    logistic,
    standardised,
    svd_rotation,
)
from analysis.base.errors import UserError
from analysis.base.files import load_pickle, save_pickle
from analysis.base.seeds import generator
from analysis.classifiers import AxisSet, fit_axes

SQUARE = np.array([[9.0, -6.0], [9, 2], [13, -6], [13, 2]])  # mean (11, -2), deviations 2 and 4
RIGHT = np.array([0, 0, 1, 1])


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices this small are slowed down by threads, by far on a machine that is busy."""
    with threadpool_limits(1):
        yield


def fit(hidden, labels, **changes):
    options = dict(lr_c=1.0, max_pc=8, n_random=1, n_shuffled=1, threshold="median", seed=0, layer=3)
    return fit_axes(hidden, labels, **{**options, **changes})


def noise_and_labels(n, dim, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dim)), rng.permutation(np.arange(n) % 2), rng


def easy():
    return noise_and_labels(150, 12)[:2]


def ill_conditioned(n=120, dim=400, condition=1e6):
    """Deviations from 1 to 1 / condition along random orthogonal directions, far from the origin."""
    data, labels, rng = noise_and_labels(n, dim)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    data = data * np.logspace(0, -np.log10(condition), dim) @ rotation
    return data + 0.02 * labels[:, None] * rotation[5] + 10 * rng.standard_normal(dim), labels


# ---------------------------------------------------------------- by hand


def test_scores_count_training_deviations_from_the_mean():
    axes = fit(SQUARE, RIGHT, n_shuffled=0)
    meandiff, pc1, pc2 = (axes.index(name) for name in ("meandiff", "pc1", "pc2"))
    np.testing.assert_allclose(axes.mean, [11, -2])
    np.testing.assert_allclose(axes.directions[[meandiff, pc1, pc2]], [[1, 0], [0, 1], [1, 0]], atol=1e-7)
    np.testing.assert_allclose(axes.scales[[meandiff, pc1, pc2]], [2, 4, 2])
    np.testing.assert_allclose(axes.variance_ratio, [0.8, 0.2])  # 16 and 4 of 20
    got = axes.scores(np.array([[11.0, -2.0], [15, -2], [11, 6], [8, -4]]))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[:, meandiff], [0, 2, 0, -1.5], atol=1e-6)
    np.testing.assert_allclose(got[:, pc1], [0, 0, 2, -0.5], atol=1e-6)
    assert axes.accuracy["meandiff"] == axes.accuracy["lr"] == 1


def test_training_scores_have_mean_0_and_deviation_1_on_every_axis():
    data, labels, _ = noise_and_labels(60, 20)
    axes = fit(data * np.arange(1, 21) + 5, labels)
    scores = axes.scores(data * np.arange(1, 21) + 5)
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(axes.directions, axis=1), 1, rtol=1e-6)


def test_threshold_is_the_median_of_the_training_scores_or_zero():
    data, labels, _ = noise_and_labels(61, 5)
    data = np.exp(data)  # skewed, so that median and mean differ
    axes = fit(data, labels)
    np.testing.assert_allclose(axes.thresholds, np.median(axes.scores(data), axis=0))
    assert abs(axes.threshold("pc1")) > 0.05
    assert axes.threshold("pc1") == axes.thresholds[axes.index("pc1")]
    assert fit(data, labels, threshold="zero").thresholds.tolist() == [0] * len(axes.names)


def test_accuracy_is_the_share_of_rows_on_their_labels_side():
    axes = fit(SQUARE, RIGHT, n_shuffled=0)
    rows = np.array([[12.0, 0], [10, 0], [12, 0], [20, 0]])
    assert axes.accuracy_on(rows, np.array([1, 0, 0, 1]))["meandiff"] == 0.75
    assert not any(name.startswith("pc") for name in axes.accuracy)


def test_an_empty_replys_nan_row_has_nan_scores():
    scores = fit(SQUARE, RIGHT, n_shuffled=0).scores(np.array([[np.nan, 1.0], [11, -2]]))
    assert np.isnan(scores[0]).all() and np.isfinite(scores[1]).all()


# ---------------------------------------------------------------- directions


@pytest.mark.parametrize("n, dim", [(40, 100), (100, 30)])
def test_principal_components_are_scikit_learns_with_their_signs(n, dim):
    data, labels, rng = noise_and_labels(n, dim)
    data = data @ rng.standard_normal((dim, dim)) + 3
    rank = min(n - 1, dim)
    pca = PCA(n_components=rank, svd_solver="full").fit(data)
    axes = fit(data, labels, max_pc=1000)
    found = axes.directions[[axes.index(f"pc{k}") for k in range(1, rank + 1)]]
    np.testing.assert_allclose(found, pca.components_, atol=2e-6)
    np.testing.assert_allclose(axes.variance_ratio, pca.explained_variance_ratio_, rtol=1e-5)


@pytest.mark.parametrize("make, lr_c", [(easy, 1e-3), (easy, 1e3), (ill_conditioned, 1.0)])
def test_lr_is_scikit_learns_on_the_unrotated_data(make, lr_c):
    data, labels = make()
    centred = data - data.mean(axis=0)
    scaled = centred / centred.std(axis=0)
    plain = LogisticRegression(C=lr_c, solver="lbfgs", tol=1e-10, max_iter=100_000)
    plain = plain.fit(scaled, labels).coef_[0]
    rotated, basis = svd_rotation(scaled, scaled.mean(axis=0), layer=0)
    weights = logistic(rotated, labels, lr_c, "lr", layer=0) @ basis
    np.testing.assert_allclose(weights, plain, atol=2e-6 * np.linalg.norm(plain))
    axes = fit(data, labels, lr_c=lr_c)
    plain = plain / centred.std(axis=0)  # from scaled coordinates to those of the data
    found = axes.directions[axes.index("lr")].astype(np.float64)
    assert found @ plain / np.linalg.norm(found) / np.linalg.norm(plain) > 1 - 1e-8
    np.testing.assert_allclose(found, plain / np.linalg.norm(plain), atol=2e-6)


def test_lr_does_not_depend_on_the_unit_or_the_origin_of_the_hidden_states():
    data, labels, _ = noise_and_labels(50, 80)
    one, other = fit(data, labels), fit(1000 * data + 7, labels)
    np.testing.assert_allclose(one.directions, other.directions, atol=1e-6)
    np.testing.assert_allclose(one.thresholds, other.thresholds, atol=1e-5)


def test_lr_and_meandiff_recover_a_planted_direction_and_point_to_label_1():
    data, labels, rng = noise_and_labels(600, 64)
    planted = rng.standard_normal(64)
    planted /= np.linalg.norm(planted)
    axes = fit((data + 3 * labels[:, None] * planted).astype(np.float32), labels, lr_c=0.01)
    cosine = dict(zip(axes.names, axes.directions @ planted, strict=True))
    assert cosine["meandiff"] > 0.95 and cosine["lr"] > 0.95 and abs(cosine["pc1"]) > 0.9
    assert abs(cosine["random0"]) < 0.5 and abs(cosine["lr_shuffled0"]) < 0.6
    fresh = np.random.default_rng(9).standard_normal((600, 64)) + 3 * labels[:, None] * planted
    accuracy = axes.accuracy_on(fresh, labels)
    assert accuracy["lr"] > 0.9 and accuracy["meandiff"] > 0.9  # an ideal observer reaches 0.933


def test_random_and_shuffled_axes_are_reproducible_and_differ_between_layers():
    data, labels, _ = noise_and_labels(30, 50)
    drawn = ["random0", "random1", "lr_shuffled0", "lr_shuffled1"]

    def rows(**changes):
        axes = fit(data, labels, n_random=2, n_shuffled=2, **changes)
        return axes.directions[[axes.index(name) for name in drawn]]

    first = rows()
    np.testing.assert_array_equal(first, rows())
    for other in (rows(seed=1), rows(layer=4)):
        assert (np.abs((first * other).sum(axis=1)) < 0.9).all()
    assert np.abs(first @ first.T - np.eye(4)).max() < 0.9


def test_a_shuffled_axis_is_the_lr_of_the_permuted_labels():
    data, labels, _ = noise_and_labels(30, 50)
    axes = fit(data, labels)
    again = fit(data, generator(0, "lr_shuffled", 0, 3).permutation(labels))
    np.testing.assert_allclose(axes.directions[axes.index("lr_shuffled0")], again.directions[0], atol=1e-6)


# ---------------------------------------------------------------- names and files


def test_names_hold_every_axis_once_in_order():
    axes = fit(SQUARE, RIGHT, n_random=2, n_shuffled=0, max_pc=1)
    assert axes.names == ("lr", "meandiff", "random0", "random1", "pc1")
    assert axes.index("random1") == 3
    assert fit(SQUARE, RIGHT, n_random=0, n_shuffled=0, max_pc=0).names == ("lr", "meandiff")


def test_an_unknown_axis_names_a_short_list_of_choices():
    data, labels, _ = noise_and_labels(30, 50)
    with pytest.raises(UserError, match=r"'svm'.*lr, meandiff, random0, lr_shuffled0, pc1\.\.pc8"):
        fit(data, labels).index("svm")


def test_a_pc_beyond_the_rank_or_max_pc_says_how_many_there_are_and_why():
    data, labels, _ = noise_and_labels(30, 50)
    with pytest.raises(UserError, match="'pc30'.*29 principal components.*rank 29"):
        fit(data, labels, max_pc=512).index("pc30")
    with pytest.raises(UserError, match="'pc9'.*8 principal components.*max_pc.*29"):
        fit(data, labels).index("pc9")


def test_rank_counts_only_directions_in_which_the_data_vary():
    data, labels, rng = noise_and_labels(40, 5)
    flat = data @ rng.standard_normal((5, 70)) + 1000 * rng.standard_normal(70)
    assert len(fit(flat, labels, max_pc=512).variance_ratio) == 5


def test_axes_survive_the_way_to_disk_and_back(tmp_path):
    axes = fit(SQUARE, RIGHT, n_shuffled=0)
    record = axes.as_record(trial_accuracy={"lr": 0.5})
    assert record["accuracy"]["lr"] == (1.0, 0.5) and np.isnan(record["accuracy"]["meandiff"][1])
    save_pickle({"meta": {}, "scores": np.zeros(3), **record}, tmp_path / "axes.pkl")
    back = AxisSet.from_record(load_pickle(tmp_path / "axes.pkl"))
    assert back.names == axes.names and back.accuracy == axes.accuracy
    np.testing.assert_array_equal(back.scores(SQUARE), axes.scores(SQUARE))
    for part in ("directions", "mean", "scales", "thresholds", "variance_ratio"):
        assert getattr(back, part).dtype == np.float32
    with pytest.raises(UserError, match="scales"):
        AxisSet.from_record({k: v for k, v in record.items() if k != "scales"})


# ---------------------------------------------------------------- errors


def test_one_class_names_it_and_the_missing_one():
    with pytest.raises(UserError, match="all 4 .*label 1: .*label 0"):
        fit(SQUARE, np.ones(4))


def test_a_hidden_state_that_is_not_finite_names_layer_and_row():
    data = SQUARE.copy()
    data[2:, 0] = [np.inf, np.nan]
    with pytest.raises(UserError, match="layer 3: 2 of 4 .*row 2.*--dtype float32 or bfloat16"):
        fit(data, RIGHT)


@pytest.mark.parametrize(
    "hidden, labels, words",
    [
        (SQUARE[:3], RIGHT[:3], "3 sentences.*n_axis"),
        (np.full((4, 2), 0.1), RIGHT, "layer 3.*same hidden state"),
        (SQUARE, np.array([0, 1, 1, 0]), "'lr' of layer 3.*same mean hidden state"),
        (SQUARE * 1e-60, RIGHT, "'lr' of layer 3 is constant"),
    ],
)
def test_data_that_no_axis_fits_are_the_users_error(hidden, labels, words):
    with pytest.raises(UserError, match=words):
        fit(hidden, labels, n_shuffled=0)


@pytest.mark.parametrize(
    "slip, words",
    [
        (lambda: fit(SQUARE, RIGHT[:3]), r"\(4, 2\).*\(3,\)"),
        (lambda: fit(SQUARE[0], RIGHT[:2]), "give"),
        (lambda: fit(SQUARE, np.array([0, 1, 2, 1])), r"\[0, 1, 2\]"),
        (lambda: fit(SQUARE, RIGHT, threshold="mean"), "median or zero"),
        (lambda: fit(SQUARE, RIGHT, n_shuffled=0).scores(np.zeros((4, 3))), r"\(4, 3\).*\(N, 2\)"),
    ],
)
def test_a_slip_in_our_code_is_not_the_users_error(slip, words):
    with pytest.raises(ValueError, match=words) as raised:
        slip()
    assert raised.type is ValueError


@pytest.mark.filterwarnings("ignore:newton-cg failed")
def test_a_regression_that_does_not_converge_names_axis_and_layer(monkeypatch):
    monkeypatch.setattr("analysis.axes.solvers._MAX_ITER", 2)
    data, labels, _ = noise_and_labels(50, 80)
    with pytest.raises(UserError, match="'lr' of layer 3.*did not converge.*lr_c"):
        fit(data, labels, lr_c=100.0)


# ---------------------------------------------------------------- strength, coordinates, held-out scales


def test_one_coordinate_with_nearly_all_variance_does_not_take_over_lr(rng):
    labels = np.tile([0, 1], 200)
    data = 0.1 * rng.standard_normal((400, 50)) + 0.2 * labels[:, None] * (np.arange(50) == 7)
    data[:, 0] = 1000 * rng.standard_normal(400)  # a massive activation
    fitting, others = np.arange(400) < 200, np.arange(400) >= 200
    axes = fit(data[fitting], labels[fitting], lr_c=None, held_out=data[others])
    assert axes.accuracy_on(data[others], labels[others])["lr"] > 0.75  # an ideal observer reaches 0.84


def test_the_strength_is_chosen_by_sentences_that_were_held_out(rng):
    labels = np.tile([0, 1], 150)
    noise = rng.standard_normal((300, 400))
    strong = noise + 4 * labels[:, None] * (np.arange(400) < 3)
    assert fit(noise, labels, lr_c=None).lr_c < fit(strong, labels, lr_c=None).lr_c
    assert fit(noise, labels, lr_c=0.3).lr_c == 0.3


def test_groups_are_held_out_together(rng):
    # pairs of equal states whose label is a coin: alone, a sentence's twin tells its label
    states = np.repeat(rng.standard_normal((100, 300)), 2, axis=0)
    labels = np.repeat(rng.integers(0, 2, 100), 2)
    features, _ = gram_rotation(standardised(states, states.mean(axis=0))[0])
    assert choose_strength(features, labels, np.repeat(np.arange(100), 2)) == STRENGTHS[0]
    assert choose_strength(features, labels, rng.permutation(200)) > STRENGTHS[0]


@pytest.mark.parametrize("n, dim", [(60, 40), (40, 60)])
def test_the_rotation_of_inner_products_keeps_the_data(n, dim, rng):
    data = rng.standard_normal((n, dim))
    features, basis = gram_rotation(data - data.mean(axis=0))
    np.testing.assert_allclose(features @ basis, data - data.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-6)


def test_a_coordinate_that_does_not_vary_has_no_weight(rng):
    data, labels = rng.standard_normal((80, 10)), np.tile([0, 1], 40)
    data[:, 4] = 12345.678
    axes = fit(data, labels)
    assert axes.directions[axes.index("lr"), 4] == 0 and np.isfinite(axes.directions).all()


def test_scores_of_new_sentences_have_deviation_1_and_even_sides(rng):
    data, labels = rng.standard_normal((600, 200)), np.tile([0, 1], 300)
    fitting, others = data[:300], data[300:]
    inside, outside = (fit(fitting, labels[:300], held_out=rest) for rest in (None, others))
    np.testing.assert_allclose(outside.scores(others).std(axis=0), 1, atol=1e-4)
    above = outside.scores(others) > outside.thresholds
    assert (np.abs(above.mean(axis=0) - 0.5) < 0.01).all()
    assert inside.scores(others)[:, inside.index("lr")].std() > 1.2  # the fault that is mended
    np.testing.assert_array_equal(inside.directions, outside.directions)
