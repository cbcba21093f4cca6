"""Attention against a plain reference; what the stack's options may and may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import trees
from big_mm.models import layers
from big_mm.spec import UserError
from tests.models import tiny_models as tiny


def plain_attention(query, key, value, mask):
    out = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        scores = key[b, :, h] @ query[b, t, h] / np.sqrt(query.shape[-1])
        scores = np.where(mask[b, 0, t], scores, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ value[b, :, h]
    return out


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
def test_attention(implementation):
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 5, 2, 4)).astype(np.float32)
    mask = rng.random((2, 1, 3, 5)) < 0.6
    mask[..., 0] = True
    got = layers.attention(
        *(jnp.asarray(x) for x in (query, key, value, mask)), implementation=implementation
    )
    np.testing.assert_allclose(got, plain_attention(query, key, value, mask), atol=1e-5)


def test_attention_does_not_overflow():
    query = jnp.full((1, 2, 1, 4), 1e3)
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    assert np.isfinite(layers.attention(query, query, value)).all()


def test_a_target_without_sources_gets_no_nan():
    query = jnp.ones((1, 2, 1, 4))
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    out = layers.attention(query, query, value, jnp.zeros((1, 1, 2, 2), bool))
    np.testing.assert_allclose(out, value.mean(axis=1, keepdims=True).repeat(2, axis=1))


X = jax.random.normal(jax.random.key(0), (2, 5, tiny.WIDTH))
CONTEXT = jax.random.normal(jax.random.key(1), (2, 7, 6))


@functools.cache
def gradient(**options):
    """Value and gradient of a stack with the same parameters whatever the options."""
    stack = tiny.blocks(cross_attention=True, **options)
    params = tiny.blocks(cross_attention=True).init(jax.random.key(2), X, context=CONTEXT)

    def loss(params):
        return (stack.apply(params, X, context=CONTEXT, train=True) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "options",
    [{"remat": name} for name in layers.REMAT if name != "none"]
    + [{"unroll": 2}, {"unroll": 2, "remat": "full"}, {"implementation": "xla"}],
    ids=str,
)
def test_options_that_change_no_number(options):
    for a, b in zip(jax.tree.leaves(gradient()), jax.tree.leaves(gradient(**options)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_remat_recomputes():
    def matmuls(name):
        stack = tiny.blocks(remat=name)
        params = stack.init(jax.random.key(0), X)
        loss = jax.grad(lambda p: stack.apply(p, X).sum())
        return str(jax.make_jaxpr(loss)(params)).count("dot_general")

    assert matmuls("full") > matmuls("dots_no_batch") > matmuls("dots") == matmuls("none")


def test_parameters_are_stacked_by_layer():
    params = tiny.blocks(depth=3).init(jax.random.key(0), X)["params"]
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(params))
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_layers_run_in_order():
    stack, one = tiny.blocks(depth=2), tiny.blocks(depth=1)
    params = stack.init(jax.random.key(0), X)
    y = X
    for i in range(2):
        y = one.apply(jax.tree.map(lambda p, i=i: p[i : i + 1], params), y)
    np.testing.assert_allclose(stack.apply(params, X), y, atol=1e-5)


def test_dropout_only_while_training():
    stack = tiny.blocks(dropout=0.5)
    params = stack.init(jax.random.key(0), X)
    run = functools.partial(stack.apply, params, X)
    first, second = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(run(), run())


def test_no_bias():
    params = tiny.blocks(use_bias=False).init(jax.random.key(0), X)["params"]
    biases = [path for path in trees.flatten(params) if path.endswith("bias")]
    assert biases and all("norm" in path for path in biases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width=16 is not a multiple of heads=3"),
        ({"remat": "some"}, "'some' is none of none, full, dots"),
        ({"activation": "relu"}, "'relu' is none of gelu"),
        ({"implementation": "flash"}, "'flash' is none of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        tiny.blocks(**options)
