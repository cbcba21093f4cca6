"""Probes reach what scikit-learn's formulas give on the same features, whatever the batches."""

import dataclasses
import json
import logging

import numpy as np
import oracles
import pytest
from featured import Featured

from big_mm.evaluators import (
    FewShot,
    LinearProbe,
    NearestNeighbours,
    TextProbe,
    probes,
    run_all,
    suite,
)
from big_mm.mesh import MeshConfig
from big_mm.probing import ridge
from big_mm.probing.logistic import LogisticRegression
from big_mm.spec import UserError

CLASSES, WIDTH, TRAIN, TEST = 4, 6, 120, 60
TRUE = np.random.default_rng(0).normal(size=(CLASSES, WIDTH))
NOISE = np.random.default_rng(1).normal(size=(TRAIN + TEST, WIDTH))


def feature(n):
    """Around the class's own direction, far from zero."""
    return 1.2 * TRUE[n % CLASSES] + NOISE[n] + 3.0


@dataclasses.dataclass(frozen=True)
class Shifted(oracles.Numbered):
    """Pictures from `first` on."""

    first: int = 0

    def __getitem__(self, index):
        return dataclasses.replace(self, count=0).record(index + self.first)

    def record(self, number):
        return oracles.Numbered.__getitem__(self, number)


def labelled(n):
    return {"label": 10 + n % CLASSES, "class_name": [f"class {n % CLASSES}".encode()]}


train = Shifted(TRAIN, labelled, damaged=(5, 40))
test = Shifted(TEST, labelled, damaged=(TRAIN + 3,), first=TRAIN)
SOUND = [n for n in range(TRAIN) if n not in (5, 40)]
SEEN = [n for n in range(TRAIN, TRAIN + TEST) if n != TRAIN + 3]
X, Y = np.float32([feature(n) for n in SOUND]), np.array([n % CLASSES for n in SOUND])
U, V = np.float32([feature(n) for n in SEEN]), np.array([n % CLASSES for n in SEEN])


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


@pytest.fixture
def predictor(contract):
    return Featured(contract, image_features=feature, other=lambda n: [np.nan, 1.0])


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_linear_probe_is_a_logistic_regression(predictor, batch_size):
    result = LinearProbe(train, test, c=0.3, batch_size=batch_size).evaluate(predictor, 0)
    fitted = LogisticRegression(X, Y, CLASSES, mesh=predictor.mesh).fit(0.3)
    right = fitted.predict(U) == V
    assert result.values["accuracy"] == pytest.approx(right.mean())
    assert 0.7 < right.mean() < 1
    per_class = [right[V == c].mean() for c in range(CLASSES)]
    assert result.values["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert result.values["examples"] == len(SEEN) == len(result.keys)
    frequent = np.bincount(Y).argmax()
    assert result.values["accuracy_chance"] == np.mean(V == frequent)
    table = result.artifacts["classes"]
    assert table["classnames"] == [f"class {c}" for c in range(CLASSES)]
    assert sum(table["right"]) == right.sum() and sum(table["examples"]) == len(SEEN)
    assert len(table["mistakes"]) == min(6, (~right).sum())
    assert result.protocol["C chosen on"] == "given" and result.protocol["training images"] == 118


def test_c_is_chosen_on_what_is_held_out_and_all_examples_are_fitted_in_the_end(predictor):
    result = LinearProbe(train, test, holdout=0.25).evaluate(predictor, 0)
    held = probes.held_out(Y, 0.25)
    assert [int((Y[held] == c).sum()) for c in range(CLASSES)] == [7, 7, 8, 8]
    regression = LogisticRegression(X, Y, CLASSES, mesh=predictor.mesh)

    def accuracy(c):
        return (regression.fit(c, ~held).predict(X[held]) == Y[held]).mean()

    chosen = result.protocol["C"]
    assert accuracy(chosen) >= max(accuracy(10.0**p) for p in (-6, -4, -2, 0, 2, 4, 6))
    assert result.values["accuracy"] == np.mean(regression.fit(chosen).predict(U) == V)
    assert result.protocol["C chosen on"] == "30 held out of each training class"


def test_a_validation_source_joins_the_training_examples(predictor):
    validation = Shifted(40, labelled)
    fewer = dataclasses.replace(train, count=80)
    result = LinearProbe(fewer, test, validation).evaluate(predictor, 0)
    assert result.protocol["C chosen on"] == "40 validation images"
    both = [n for n in SOUND if n < 80] + list(range(40))
    x, y = np.float32([feature(n) for n in both]), np.array(both) % CLASSES
    fitted = LogisticRegression(x, y, CLASSES, mesh=predictor.mesh).fit(result.protocol["C"])
    assert result.values["accuracy"] == np.mean(fitted.predict(U) == V)


def test_few_shot_is_the_mean_over_the_seeds(predictor):
    metrics = FewShot(train, test, shots=(1, 5)).run(predictor)
    for count in (1, 5):
        accuracies = []
        for seed in range(3):
            rows = ridge.shots(Y, CLASSES, count, seed)
            fitted = ridge.Ridge.fit(X[rows], Y[rows], CLASSES)
            accuracies.append(np.mean(fitted.predict(U, 2.0**10) == V))
        assert metrics[f"accuracy_{count}shot"] == pytest.approx(np.mean(accuracies))
    chosen = FewShot(train, test, Shifted(40, labelled), shots=(5,)).evaluate(predictor, 0)
    assert chosen.protocol["regularisation"] == "on validation images"


@pytest.mark.parametrize("votes", ["weighted", "majority"])
def test_neighbours_are_counted_as_in_ten_plain_lines(predictor, votes):
    metrics = NearestNeighbours(train, test, ks=(1, 3, 20), votes=votes).run(predictor)
    x, u = (
        a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X.astype(float), U.astype(float))
    )
    cosine = u @ x.T
    for k in (1, 3, 20):
        predicted = []
        for row in cosine:
            near = np.argsort(-row, kind="stable")[:k]
            weights = np.exp(row[near] / 0.07) if votes == "weighted" else np.ones(k)
            predicted.append(np.bincount(Y[near], weights, minlength=CLASSES).argmax())
        assert metrics[f"accuracy_k{k}"] == np.mean(predicted == V), k


def test_equal_neighbours_come_in_the_order_of_the_records(contract):
    """All features are equal: the first records of all vote, whatever the query's class."""
    predictor = Featured(contract, image_features=lambda n: [1.0, 2.0])
    source = Shifted(30, lambda n: {"label": 1 if n < 3 else n % 2})
    shown = NearestNeighbours(source, Shifted(10, labelled_twice, first=30), ks=(3, 5))
    metrics = shown.run(predictor)
    assert metrics["accuracy_k3"] == metrics["accuracy_k5"] == 0.5


def labelled_twice(n):
    return {"label": n % 2}


def everything(**options):
    return {
        "linear": LinearProbe(train, test, c=1.0, **options),
        "few": FewShot(train, test, shots=(2, 5), **options),
        "near": NearestNeighbours(train, test, ks=(1, 10), **options),
    }


def test_probes_share_features_and_devices_change_nothing(contract, tmp_path):
    one = Featured(contract, image_features=feature)
    metrics = run_all(everything(), one, workdir=tmp_path, bootstrap=20)
    assert sorted(one.asked) == sorted(SOUND + SEEN)
    eight = Featured(contract, mesh=MeshConfig().make(), image_features=feature)
    assert run_all(everything(batch_size=11), eight) == pytest.approx(
        {k: v for k, v in metrics.items() if not k.endswith(("_low", "_high"))}
    )
    for name in ("linear/accuracy", "few/accuracy_5shot", "near/mean_per_class_k10"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    json.dumps(suite.stored(tmp_path), allow_nan=False)


def test_what_cannot_be_probed_is_refused(predictor):
    unlabelled = Shifted(9, lambda n: {})
    with pytest.raises(UserError, match="'n0' has no 'label': does the schema name one"):
        LinearProbe(unlabelled, test).run(predictor)
    other = Shifted(4, lambda n: {"label": 17}, first=TRAIN)
    with pytest.raises(UserError, match=r"class 17 has no training example \(record 'n120'\)"):
        NearestNeighbours(train, other).run(predictor)
    with pytest.raises(UserError, match="two classes; all training labels are 17"):
        LinearProbe(other, other).run(predictor)
    with pytest.raises(UserError, match="other of record 'n0' is not finite"):
        FewShot(train, test, output="other").run(predictor)
    with pytest.raises(UserError, match="training examples, too few for 31 shots"):
        FewShot(train, test, shots=(31,)).run(predictor)
    with pytest.raises(UserError, match="k=200 of 118 training images"):
        NearestNeighbours(train, test).run(predictor)
    with pytest.raises(UserError, match="votes"):
        NearestNeighbours(train, test, votes="median")
    with pytest.raises(UserError, match="one training example: nothing to hold out"):
        LinearProbe(Shifted(4, labelled), test).run(predictor)
    with pytest.raises(UserError, match="must be between 0 and 1"):
        LinearProbe(train, test, holdout=1.0).run(predictor)


def test_training_on_the_test_images_is_said(predictor, caplog):
    with caplog.at_level(logging.WARNING):
        result = NearestNeighbours(train, train, ks=(1,)).evaluate(predictor, 0)
    assert "118 of 118 test records have the key of a training record" in caplog.text
    assert result.protocol["test images also trained on"] == 118
    assert result.values["accuracy_k1"] == 1.0


class Talking(Featured):
    """Classes are embedded near their true direction."""

    def text_outputs(self, texts, keys):
        assert tuple(keys) == ("text_embedding",)
        return {keys[0]: oracles.unit([TRUE[int(text.split()[-1])] + 0.5 for text in texts])}

    def outputs(self, batch, keys=None):
        return {"logit_scale": np.float32(2.0)}


def test_a_probe_that_begins_at_the_texts_ends_between_them_and_the_images(contract):
    def embedding(n):
        return feature(n) / np.linalg.norm(feature(n))

    model = Talking(contract, image_embedding=embedding, image_features=lambda n: feature(n)[:3])
    prior = 2.0 * model.encode_text([f"class {c}" for c in range(CLASSES)]).astype(float).T
    x, u = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (X, U))
    zero_shot = np.mean((u @ prior).argmax(1) == V)
    values = TextProbe(train, test, c=1e-9, mix=1.0).run(model)
    assert values["accuracy_zero_shot"] == zero_shot
    np.testing.assert_allclose(values["accuracy_mixed"], values["accuracy"])
    values = TextProbe(train, test, c=30.0, mix=0.25).run(model)
    fitted = LogisticRegression(x, Y, CLASSES, mesh=model.mesh).fit(30.0, prior=prior)
    mixed = 0.25 * fitted.weights + 0.75 * prior
    assert values["accuracy"] == np.mean(fitted.predict(u) == V) > zero_shot
    assert values["accuracy_mixed"] == np.mean((u @ mixed + 0.25 * fitted.bias).argmax(1) == V)
    with pytest.raises(UserError, match="image_features has 3 components, the texts have 6"):
        TextProbe(train, test, c=1.0, output="image_features").run(model)
    with pytest.raises(UserError, match="mix=2.0 must be from 0 to 1"):
        TextProbe(train, test, mix=2.0)
