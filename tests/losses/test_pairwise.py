"""The pairwise engine with losses that are not in the library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm.losses.pairwise import Pairs, Rows, reduce_pairs


def hard_negatives(shared, queries, targets):
    """Of queries only; the harder a negative, the more it weighs (arXiv:2010.04592)."""
    logits = shared["scale"] * queries.values @ targets.values.T
    own = queries.labels[:, None] == targets.labels[None, :]
    negative = jnp.where(own, -1e30, logits)
    exponents = {"hard": (1 + shared["hardness"]) * negative, "weight": negative}
    return Pairs(logits, exponents, {"own": jnp.where(own, logits, 0)}), Pairs(logits, {}, {})


def late_interaction(shared, images, texts):
    """The mean over tokens of the best match (arXiv:2111.07783)."""
    similarity = jnp.einsum("inw,tlw->itnl", images.values["tokens"], texts.values["tokens"])
    logits = shared["scale"] * similarity.max(axis=3).mean(axis=2)
    own = images.labels[:, None] == texts.labels[None, :]
    both = Pairs(logits, {"logits": logits}, {"own": jnp.where(own, logits, 0)})
    return both, both


def rows_of(values):
    index = jnp.arange(len(jax.tree.leaves(values)[0]))
    return Rows.of(values, index % 20, index % 5 != 4)


def problem(name):
    rng = np.random.default_rng(0)
    if name == "hard negatives, more targets than queries":
        left, right = (rng.normal(size=(n, 4)).astype(np.float32) for n in (8, 20))
        return hard_negatives, {"scale": 2.0, "hardness": 0.5}, left, right
    left, right = (rng.normal(size=(8, n, 4)).astype(np.float32) for n in (3, 5))
    return late_interaction, {"scale": 2.0}, {"tokens": left}, {"tokens": right}


@pytest.mark.parametrize(
    "name", ["hard negatives, more targets than queries", "late interaction of tokens"]
)
@pytest.mark.parametrize("devices, exchange", [(1, "gather"), (4, "gather"), (4, "ring")])
def test_any_pairwise_loss_is_the_same_at_every_layout(name, devices, exchange):
    pairs, shared, left, right = problem(name)
    mesh = mesh_lib.MeshConfig().make(jax.devices()[:devices])
    whole = mesh_lib.replicated(mesh)
    shared, left, right = jax.device_put((shared, left, right), whole)

    def value(shared, left, right, exchange, tile):
        sides = rows_of(left), rows_of(right)
        with mesh_lib.using(mesh):
            reduced = reduce_pairs(pairs, shared, *sides, exchange=exchange, tile=tile)
        total = jnp.float32(0)
        for side, found in zip(sides, reduced, strict=True):
            for x in jax.tree.leaves((found.exponents, found.terms)):
                # Any function of what is reduced: here each number with a weight of its own.
                total += jnp.where(side.valid, jnp.sin(side.index) * x, 0).sum()
        return total, [found.best for found in reduced]

    function = jax.jit(
        jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True), static_argnums=(3, 4)
    )
    expected = function(shared, left, right, "gather", 0)
    got = function(shared, left, right, exchange, 3)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
