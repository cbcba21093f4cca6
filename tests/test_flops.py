"""Counted operations against closed forms."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from big_mm import flops, mesh
from big_mm.losses import captioning
from big_mm.models.layers import Transformer
from big_mm.objectives.base import Weighted
from big_mm.spec import UserError
from big_mm.training import state as states
from tests.models import tiny_models as tiny

X, W = jnp.ones((6, 5)), jnp.ones((5, 5))
ONE = 2 * 6 * 5 * 5  # operations of X @ W


def count(function, *args):
    return sum(flops.executed_flops(function, *args).values())


def test_products_in_every_kind_of_call():
    assert count(jnp.dot, X, W) == ONE
    assert count(jax.jit(jnp.dot), X, W) == ONE
    assert count(lambda x, w: jnp.einsum("bnk,kbm->nbm", x, w), X[None], W[:, None]) == ONE
    assert count(lambda x, w: jax.lax.scan(lambda c, _: (c @ w, 0), x, length=7), X, W) == 7 * ONE
    assert count(lambda x, w: jax.lax.fori_loop(0, 3, lambda i, c: c @ w, x), X, W) == 3 * ONE
    assert count(lambda x, w: jax.lax.map(lambda row: row @ w, x), X, W) == ONE
    assert count(jax.checkpoint(jnp.dot), X, W) == ONE
    assert count(lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ W @ W, lambda: x), X) == 2 * ONE


def test_products_that_nothing_needs_do_not_count():
    def program(x, w):
        unused = [w @ w]
        kept, _ = jax.lax.scan(lambda c, _: ((c[0] @ w, c[1] @ w @ w), 0), (x, x), length=2)
        del unused
        return kept[0]

    assert count(program, X, W) == 2 * ONE


def test_a_loop_of_unknown_length_is_refused():
    def program(x, w):
        return jax.lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ w, x)

    with pytest.raises(UserError, match="while loop cannot be counted"):
        count(program, X, W)
    halve = functools.partial(jax.lax.while_loop, lambda c: c.sum() > 1, lambda c: c / 2)
    assert count(lambda x, w: halve(x @ w), X, W) == ONE


def both(function):
    return jax.value_and_grad(function, argnums=(0, 1))


def test_gradients_and_rematerialisation():
    def loss(x, w):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    assert count(loss, X, W) == 2 * ONE
    assert count(both(loss), X, W) == 6 * ONE
    assert count(both(jax.checkpoint(loss)), X, W) == 8 * ONE


def test_custom_derivatives():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert count(product, X, W) == ONE
    assert count(both(lambda x, w: product(x, w).sum()), X, W) == 3 * ONE

    @jax.custom_jvp
    def square(x):
        return x @ W

    square.defjvp(lambda primals, tangents: (primals[0] @ W, tangents[0] @ W))
    assert count(square, X) == ONE
    assert count(jax.grad(lambda x: square(x).sum()), X) == ONE  # the value itself is not needed


def test_shards_count_for_every_device():
    devices = mesh.MeshConfig(data=2).make(jax.devices()[:2])
    split = jax.shard_map(
        jnp.dot, mesh=devices, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False
    )
    assert count(split, X, W) == ONE  # half the rows on each of two devices
    copied = jax.shard_map(jnp.dot, mesh=devices, in_specs=P(), out_specs=P(), check_vma=False)
    assert count(copied, X, W) == 2 * ONE


def test_convolutions():
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert count(convolve, image, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    grouped = functools.partial(convolve, feature_group_count=2)
    assert count(grouped, image, kernel[:, :, :2]) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


def test_kernels_count_once_a_grid_cell():
    def cell(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    kernel = pl.pallas_call(
        cell,
        out_shape=jax.ShapeDtypeStruct((6, 5), jnp.float32),
        grid=(3,),
        in_specs=[pl.BlockSpec((2, 5), lambda i: (i, 0)), pl.BlockSpec((5, 5), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((2, 5), lambda i: (i, 0)),
        interpret=True,
    )
    assert count(kernel, X, W) == ONE


def test_scopes_are_modules():
    stack = Transformer(width=16, depth=3, heads=2, mlp_dim=32, remat="full")
    x = jax.ShapeDtypeStruct((2, 4, 16), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), x)
    forward = flops.executed_flops(stack.apply, params, x)
    backward = flops.executed_flops(
        jax.grad(lambda p, x: jnp.sum(stack.apply(p, x, train=True))), params, x
    )
    assert forward["Transformer/layers/mlp/up"] == 3 * 2 * (2 * 4) * 16 * 32
    # The step of full rematerialisation: forward, forward again, two products for each.
    assert backward["Transformer/layers/mlp/up"] == 4 * forward["Transformer/layers/mlp/up"]


@pytest.mark.parametrize("chunks", [1, 2])
def test_model_flops(chunks):
    objective = Weighted(tiny.captioner(), {"captioning": captioning.CrossEntropy(chunks=chunks)})
    batch = tiny.batch()
    params = jax.eval_shape(functools.partial(states.init_params, objective, batch, 0))

    def logits(params, batch):
        return objective.model.apply({"params": params}, batch)["caption_logits"]

    assert flops.model_flops(objective, params, batch) == 3 * count(logits, params, batch)
