"""Logistic regression reaches the one optimum there is, in float32, for any devices and subset."""

import json
import pathlib

import jax
import numpy as np
import problems
import pytest
from problems import problem

from big_mm import mesh
from big_mm.probing import logistic
from big_mm.probing.logistic import GRID, LogisticRegression

GOLDEN = pathlib.Path(__file__).parent / "golden" / "scikit_learn.json"


def objective(model, *arguments):
    return problems.objective(model.weights, model.bias, *arguments)


def gradient(model, features, labels, c):
    scores = features.astype(np.float64) @ model.weights + model.bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return c * features.astype(np.float64).T @ shares + model.weights, c * shares.sum(0)


def test_what_is_penalised_is_the_distance_from_the_prior():
    features, labels = problem(offset=3.0)
    prior = np.random.default_rng(0).normal(size=(12, 5))
    regression = LogisticRegression(features, labels, 5, mesh=one_device())
    model = regression.fit(0.1, prior=prior)
    weights, bias = gradient(model, features, labels, 0.1)
    centred = weights - prior - features.mean(0, dtype=np.float64)[:, None] * bias
    assert max(np.abs(centred).max(), np.abs(bias).max()) < 3e-6 * 0.1 * len(labels)
    near = regression.fit(1e-9, prior=prior)
    np.testing.assert_allclose(near.weights, prior, atol=1e-5)
    far = regression.fit(0.1, prior=np.zeros((12, 5)))
    np.testing.assert_array_equal(far.weights, regression.fit(0.1).weights)


def one_device():
    return mesh.single_device_mesh()


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_gradient_vanishes_however_far_the_features_are_from_zero(c, offset):
    features, labels = problem(offset=offset)
    model = LogisticRegression(features, labels, 5, mesh=one_device()).fit(c)
    weights, bias = gradient(model, features, labels, c)
    centred = weights - features.mean(0, dtype=np.float64)[:, None] * bias
    assert max(np.abs(centred).max(), np.abs(bias).max()) < 3e-6 * c * len(labels)
    assert model.gradient <= 1e-6 and model.iterations < 200


def newton(features, labels, c, classes=5):
    """The optimum in float64 by Newton's method, on the mean objective."""
    x = np.pad(features.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    wide = x.shape[1]
    penalty = np.repeat(np.arange(wide) < wide - 1, classes) / (c * len(x))
    params, truth = np.zeros(wide * classes), np.eye(classes)[labels]

    def value(params):
        scores = x @ params.reshape(wide, classes)
        losses = np.log(np.exp(scores).sum(1)) - (scores * truth).sum(1)
        return losses.mean() + 0.5 * (penalty * params**2).sum()

    for _ in range(60):
        shares = np.exp(x @ params.reshape(wide, classes))
        shares /= shares.sum(1, keepdims=True)
        slope = (x.T @ (shares - truth) / len(x)).ravel() + penalty * params
        inner = shares[:, :, None] * (np.eye(classes) - shares[:, None])
        curvature = np.einsum("ni,ncd,nj->icjd", x, inner, x).reshape(len(slope), -1) / len(x)
        step = np.linalg.lstsq(curvature + np.diag(penalty), slope, rcond=1e-13)[0]
        length = 1.0
        while value(params - length * step) > value(params) and length > 1e-4:
            length /= 2
        params = params - length * step
    return params.reshape(wide, classes)[:-1]


def test_uneven_features_and_weak_regularisation_take_tens_of_iterations():
    features, labels = problem()
    features = features * np.float32(10.0) ** np.linspace(0, -3, 12, dtype=np.float32)
    model = LogisticRegression(features, labels, 5, mesh=one_device()).fit(1e6)
    assert model.gradient <= 1e-6 and model.iterations < 100
    # Directions that matter less are known less well.
    expected, deviation = newton(features, labels, 1e6), features.std(axis=0)[:, None]
    largest = np.abs(expected * deviation).max()
    np.testing.assert_allclose(model.weights * deviation, expected * deviation, atol=1e-4 * largest)


def test_nothing_near_the_optimum_is_lower():
    features, labels = problem()
    model = LogisticRegression(features, labels, 5, mesh=one_device()).fit(1.0)
    least = objective(model, features, labels, 1.0)
    rng = np.random.default_rng(1)
    for size in (1e-1, 1e-2, 1e-3):
        weights = model.weights + size * rng.normal(size=model.weights.shape)
        other = logistic.Linear(weights, model.bias + size * rng.normal(size=5))
        assert objective(other, features, labels, 1.0) > least


def test_a_subset_is_the_subset_alone_on_any_number_of_devices():
    features, labels = problem(900)
    rows = np.arange(900) % 3 > 0
    alone = LogisticRegression(features[rows], labels[rows], 5, mesh=one_device()).fit(0.5)
    part = LogisticRegression(features, labels, 5, mesh=mesh.MeshConfig().make())
    assert jax.device_count() == 8
    fitted = part.fit(0.5, rows)
    np.testing.assert_allclose(fitted.weights, alone.weights, atol=2e-4)
    np.testing.assert_allclose(fitted.bias, alone.bias, atol=2e-4)


@pytest.mark.parametrize("c", ["0.01", "1.0", "100.0"])
def test_scikit_learn_is_reproduced(c):
    golden = json.loads(GOLDEN.read_text())["logistic"]
    features, labels = problem(**golden["problem"])
    test, _ = problem(**golden["problem"] | {"seed": 1})
    model = LogisticRegression(features, labels, 5, mesh=one_device()).fit(float(c))
    theirs = golden["fits"][c]
    # The softmax does not notice a vector added to the weights of all classes; the penalty does.
    np.testing.assert_allclose(model.weights.T, theirs["coef"], atol=2e-4, rtol=2e-4)
    centred = model.bias - model.bias.mean()
    intercept = np.array(theirs["intercept"])
    np.testing.assert_allclose(centred, intercept - intercept.mean(), atol=5e-4)
    ours = objective(model, features, labels, float(c))
    assert ours == pytest.approx(theirs["objective"], rel=1e-7)
    assert model.predict(test).tolist() == theirs["predicted"]


@pytest.mark.parametrize("peak", [-6, -2.875, 0, 1.25, 5.5, 6])
def test_the_search_finds_the_peak_of_a_hill(peak):
    asked = []

    def accuracy(c):
        asked.append(np.log10(c))
        return 0.9 - 0.04 * abs(np.log10(c) - peak)

    tried = logistic.sweep(accuracy)
    assert np.log10(logistic.best(tried)) == pytest.approx(peak)
    assert asked[:7] == pytest.approx([-6, -4, -2, 0, 2, 4, 6])
    assert len(asked) == len(tried) <= 15 and set(tried) <= set(GRID.tolist())


def test_of_equal_accuracies_the_strongest_regularisation_wins():
    assert logistic.best(logistic.sweep(lambda c: 0.5)) == pytest.approx(1e-6)
