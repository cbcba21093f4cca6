"""The closed form is big_vision's and scikit-learn's, and the choice of shots is its too."""

import json
import pathlib

import numpy as np
import pytest
from problems import problem

from big_mm.probing import ridge
from big_mm.probing.ridge import Ridge
from big_mm.spec import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.mark.parametrize("case", [0, 1], ids=["more columns", "more rows"])
def test_big_vision_is_reproduced(case):
    golden = json.loads((GOLDEN / "big_vision_fewshot.json").read_text())["results"][case]
    features, labels = problem(**golden["problem"])
    test, truth = problem(**golden["problem"], seed=1)
    fitted = Ridge.fit(features[: golden["rows"]], labels[: golden["rows"]], 5)
    for power, accuracy in golden["accuracies"].items():
        ours = (fitted.predict(test, 2.0 ** float(power)) == truth).mean()
        assert ours == pytest.approx(accuracy, abs=1e-6), power


def test_scikit_learn_is_reproduced():
    golden = json.loads((GOLDEN / "scikit_learn.json").read_text())["ridge"]
    features, labels = problem(**golden["problem"])
    test, _ = problem(**golden["problem"], seed=1)
    fitted = Ridge.fit(features[: golden["rows"]], labels[: golden["rows"]], 5)
    scores = fitted.scores(test[:20], golden["strength"])
    np.testing.assert_allclose(scores, golden["scores"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rows", [6, 40])
def test_both_forms_are_the_normal_equations(rows):
    features, labels = problem(width=12)
    x = features[:rows].astype(np.float64)
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
    y = 2.0 * np.eye(5)[labels[:rows]] - 1
    for strength in (2.0**-4, 2.0**10):
        plain = x @ np.linalg.solve(x.T @ x + strength * np.eye(13), x.T @ y)
        ours = Ridge.fit(features[:rows], labels[:rows], 5).scores(features[:rows], strength)
        np.testing.assert_allclose(ours, plain, rtol=1e-6, atol=1e-7)


def test_shots_are_drawn_class_by_class_and_nest():
    _, labels = problem(count=90)
    rng = np.random.default_rng(3)
    expected = [rng.permutation(np.where(labels == c)[0])[:2] for c in range(5)]
    assert ridge.shots(labels, 5, 2, seed=3).tolist() == np.concatenate(expected).tolist()
    assert set(ridge.shots(labels, 5, 1, 3)) <= set(ridge.shots(labels, 5, 5, 3))
    assert not np.array_equal(ridge.shots(labels, 5, 2, 3), ridge.shots(labels, 5, 2, 4))
    with pytest.raises(UserError, match="class 5 has 0 training examples, too few for 1 shots"):
        ridge.shots(labels, 6, 1, 0)


def test_the_chosen_strength_is_the_best_one():
    features, labels = problem(width=40, count=300)
    fitted = Ridge.fit(features[:20], labels[:20], 5)
    rest = features[20:], labels[20:]
    right = {s: (fitted.predict(rest[0], s) == rest[1]).mean() for s in ridge.STRENGTHS.tolist()}
    best = max(s for s in right if right[s] == max(right.values()))
    assert ridge.choose(fitted, *rest) == best
