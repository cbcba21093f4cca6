"""Heads on tokens learn what is there, exactly repeatably, and ignore what does not count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_mm import mesh
from big_mm.probing import heads
from big_mm.probing.heads import IGNORE, AttentionalHead, PatchHead, Recipe
from big_mm.spec import UserError

ONE = mesh.single_device_mesh()
RECIPE = Recipe(epochs=12, batch_size=32, learning_rate=1e-2)


def needles(count, seed, classes=3, tokens=9, width=8):
    """The class is that of one token among noise, at any place: the mean hardly shows it."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, tokens, width)) * 0.3
    labels = rng.integers(0, classes, count)
    place = rng.integers(0, tokens, count)
    rows[np.arange(count), place, labels] += 3.0
    rows[np.arange(count), place, -1] += 3.0
    return rows.astype(np.float16), labels


def predict(head, params, rows, on=ONE):
    def function(x):
        return head.apply({"params": params}, x.astype(jnp.float32)).argmax(-1)

    return heads.apply(function, [rows], on, batch_size=20)


def test_the_pooler_finds_what_one_token_says():
    head = AttentionalHead(3, heads=2)
    params = heads.train(head, *needles(400, 0), RECIPE, ONE)
    rows, labels = needles(101, 1)
    assert (predict(head, params, rows) == labels).mean() > 0.97


def test_training_is_repeatable_and_does_not_depend_on_devices():
    head = AttentionalHead(3, heads=2)
    # Adam would enlarge the rounding of the keys' bias, whose gradient is zero, to a whole step.
    plain = optax.identity()
    short = dataclasses.replace(RECIPE, epochs=2, learning_rate=0.5, direction=plain)
    rows, labels = needles(100, 0)
    first, again = (heads.train(head, rows, labels, short, ONE) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    eight = heads.train(head, rows, labels, short, mesh.MeshConfig().make())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, eight)
    same = predict(head, first, rows)
    np.testing.assert_array_equal(same, predict(head, first, rows, mesh.MeshConfig().make()))


def test_the_optimizer_is_the_written_one():
    recipe = Recipe(learning_rate=0.1, warmup=0.2, weight_decay=0.5, clip_norm=1e9)
    recipe = dataclasses.replace(recipe, direction=optax.identity())
    optimizer = recipe.optimizer(10)
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    state, found = optimizer.init(params), []
    for _ in range(10):
        updates, state = optimizer.update(grads, state, params)
        found.append((float(updates["kernel"][0, 0]), float(updates["bias"][0])))
    rates = [0.1 * step / 2 for step in range(2)]
    rates += [0.05 * (1 + np.cos(np.pi * step / 8)) for step in range(8)]
    np.testing.assert_allclose(found, [(-2.0 * rate, -rate) for rate in rates], atol=1e-7)


def test_scores_of_patches_are_enlarged_as_elsewhere():
    """Half-pixel centres, clamped: what align_corners=False gives, written out for 2 -> 4."""
    head = PatchHead(1, 4)
    params = {"classifier": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}
    tokens = jnp.arange(4.0).reshape(1, 4, 1)
    scores = head.apply({"params": params}, tokens)[0, ..., 0]
    along = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    np.testing.assert_allclose(scores, along @ np.array([[0, 1], [2, 3]]) @ along.T, atol=1e-6)


def test_ignored_pixels_change_nothing():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 3, 3, 4)))
    labels = rng.integers(0, 4, (2, 3, 3))
    labels[0, 0] = IGNORE
    there = labels != IGNORE
    rest = optax.softmax_cross_entropy_with_integer_labels(scores[there], labels[there])
    loss = heads.cross_entropy(scores, jnp.asarray(labels), 0.0)
    assert float(loss) == pytest.approx(float(rest.mean()), rel=1e-6)
    smooth = heads.cross_entropy(scores, jnp.asarray(labels), 0.1)
    uniform = -jax.nn.log_softmax(scores[there]).mean(axis=-1)
    assert float(smooth) == pytest.approx(float((0.9 * rest + 0.1 * uniform).mean()), rel=1e-6)
    assert float(heads.cross_entropy(scores, jnp.full((2, 3, 3), IGNORE), 0.0)) == 0.0


def test_a_loss_that_diverged_is_refused():
    rows, labels = needles(40, 0)
    wild = dataclasses.replace(RECIPE, learning_rate=1e30, direction=optax.identity())
    with pytest.raises(UserError, match=r"lower its learning_rate \(1e\+30\)"):
        heads.train(AttentionalHead(3, heads=2), rows * 1e3, labels, wild, ONE)
