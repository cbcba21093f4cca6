"""The weighted sum of terms, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.losses import captioning, contrastive
from big_mm.objectives.base import Loss, Weighted
from big_mm.spec import UserError
from big_mm.types import Mean
from tests.training.toy import Model


class Constant:
    """A term of a given total and count."""

    couples = ()

    def __init__(self, total, count):
        self.mean = Mean(jnp.float32(total), jnp.float32(count))

    def __call__(self, outputs, batch):
        return self.mean, {"count": Mean.of(self.mean.count)}


BATCH = {
    "image": np.zeros((2, 4, 4, 3), np.uint8),
    "tokens": np.ones((2, 5), np.int32),
    "token_mask": np.ones((2, 5), bool),
}


def loss_of(objective):
    params = objective.init(jax.random.key(0), BATCH)
    return objective.loss(params, {}, BATCH, jax.random.key(1))


def test_the_sum_of_weights_times_means():
    terms = {"a": Constant(6.0, 2.0), "b": Constant(5.0, 10.0), "c": Constant(0.0, 0.0)}
    value, aux = loss_of(Weighted(Model(9), terms, {"b": 4.0}))
    assert float(value) == 3.0 + 4.0 * 0.5 + 0.0
    assert {name: float(term.compute()) for name, term in aux.terms.items()} == {
        "a": 3.0,
        "b": 0.5,
        "c": 0.0,
    }
    assert set(aux.metrics) == {"a/count", "b/count", "c/count"}


def test_a_share_of_the_global_counts():
    objective = Weighted(Model(9), {"a": Constant(6.0, 2.0)})
    _, aux = loss_of(objective)
    assert float(objective.scalar(aux.terms, {"a": jnp.float32(12.0)})) == 0.5


def test_library_terms_fit_the_protocol():
    for term in (captioning.CrossEntropy(), contrastive.Softmax(), contrastive.Sigmoid()):
        assert isinstance(term, Loss)


def test_a_loss_of_its_own_refuses_accumulation():
    class Own(Weighted):
        def loss(self, params, extra, batch, rng):
            return super().loss(params, extra, batch, rng)

    terms = {"contrastive": contrastive.Softmax()}
    Weighted(Model(9), terms).check_accumulation(2)
    Own(Model(9), terms).check_accumulation(1)
    with pytest.raises(UserError, match="accumulate=2: Own has a `loss` of its own"):
        Own(Model(9), terms).check_accumulation(2)


def test_a_weight_without_its_loss_and_no_loss_at_all():
    with pytest.raises(UserError, match="weights for .'captionin'., but the losses are"):
        Weighted(Model(9), {"captioning": captioning.CrossEntropy()}, {"captionin": 2.0})
    with pytest.raises(UserError, match="at least one loss"):
        Weighted(Model(9), {})
