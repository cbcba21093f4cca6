"""The EMA teacher against a loop, its targets, and what it refuses."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.losses import contrastive
from big_mm.objectives.teacher import Teacher
from big_mm.spec import UserError
from big_mm.types import Aux, Mean
from tests.training.toy import Model

BATCH = {
    "image": np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3),
    "tokens": np.arange(10, dtype=np.int32).reshape(2, 5) % 9,
    "token_mask": np.ones((2, 5), bool),
}
LOSSES = {"contrastive": contrastive.Softmax()}


@dataclasses.dataclass(frozen=True)
class Distance:
    """Of the student's image embedding from the teacher's."""

    couples: ClassVar[tuple[str, ...]] = ()

    def __call__(self, outputs, batch):
        own, taught = outputs["image_embedding"], outputs["teacher_image_embedding"]
        return Mean.of(((own - taught) ** 2).sum(-1)), {}


def test_the_average_follows_the_parameters():
    objective = Teacher(Model(9), LOSSES, momentum=0.9, final_momentum=0.5, momentum_steps=4)
    params = objective.init(jax.random.key(0), BATCH)
    extra = objective.init_extra(jax.random.key(1), params)
    expected = np.asarray(params["image"]["in"]["kernel"])
    for step in range(6):
        params = jax.tree.map(lambda x: x + 1.0, params)
        extra = jax.jit(objective.update_extra)(extra, params, Aux({}))
        m = 0.5 + 0.4 * (1 + math.cos(math.pi * min(step / 4, 1))) / 2
        expected = m * expected + (1 - m) * np.asarray(params["image"]["in"]["kernel"])
    np.testing.assert_allclose(extra["teacher"]["image"]["in"]["kernel"], expected, rtol=1e-5)
    assert int(extra["step"]) == 6


def test_targets_are_the_teachers_and_give_no_gradient():
    objective = Teacher(Model(9), {"distance": Distance()})
    params = objective.init(jax.random.key(0), BATCH)
    extra = objective.init_extra(jax.random.key(1), params)
    moved = jax.tree.map(lambda x: x + 0.1, params)

    def loss(params, teacher):
        return objective.loss(params, extra | {"teacher": teacher}, BATCH, jax.random.key(2))[0]

    assert float(loss(params, params)) == 0.0
    own, taught = jax.grad(loss, argnums=(0, 1))(moved, params)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(own)) > 0
    assert all(not np.any(x) for x in jax.tree.leaves(taught))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.1}, "momentum=1.1 must be from 0 to 1"),
        ({"final_momentum": 1.0}, "a schedule needs both, a constant momentum neither"),
        ({"momentum_steps": 9}, "a schedule needs both, a constant momentum neither"),
    ],
)
def test_momenta_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        Teacher(Model(9), LOSSES, **options)
