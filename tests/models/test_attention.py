"""Attention against a plain reference, and its implementations against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh
from big_mm.models.attention import attention, splash
from big_mm.spec import UserError


def plain_attention(query, key, value, mask):
    out = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        scores = key[b, :, h] @ query[b, t, h] / np.sqrt(query.shape[-1])
        scores = np.where(mask[b, 0, t], scores, -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights / weights.sum() @ value[b, :, h]
    return out


def test_attention():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 3, 2, 4)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 5, 2, 4)).astype(np.float32)
    mask = rng.random((2, 1, 3, 5)) < 0.6
    mask[..., 0] = True
    got = attention(*(jnp.asarray(x) for x in (query, key, value, mask)))
    np.testing.assert_allclose(got, plain_attention(query, key, value, mask), atol=1e-5)


def test_attention_does_not_overflow():
    query = jnp.full((1, 2, 1, 4), 1e3)
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    assert np.isfinite(attention(query, query, value)).all()


def test_a_target_without_sources_gets_no_nan():
    query = jnp.ones((1, 2, 1, 4))
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    out = attention(query, query, value, jnp.zeros((1, 1, 2, 2), bool))
    np.testing.assert_allclose(out, value.mean(axis=1, keepdims=True).repeat(2, axis=1))


def heads(target=128, source=256, rows=2):
    shapes = ((rows, target, 2, 8), (rows, source, 2, 8), (rows, source, 2, 8))
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_grad(function, inputs):
    weight = jax.random.normal(jax.random.key(1), inputs[0].shape)
    return jax.jit(
        jax.value_and_grad(lambda *x: jnp.vdot(function(*x), weight), argnums=(0, 1, 2))
    )(*inputs)


def test_the_kernel_for_tpus_computes_the_same():
    inputs = heads()
    plain = value_and_grad(attention, inputs)
    kernel = value_and_grad(functools.partial(splash, interpret=True), inputs)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_the_kernel_runs_on_each_device_by_itself():
    devices = mesh.MeshConfig(data=2, fsdp=2, tensor=2).make(jax.devices()[:8])
    inputs = heads(target=128, source=128, rows=4)

    def split(*x):
        with mesh.using(devices):
            return splash(*x, interpret=True)

    placed = jax.device_put(inputs, mesh.batch_sharding(devices))
    got = jax.jit(split)(*placed)
    np.testing.assert_allclose(got, attention(*inputs), rtol=1e-4, atol=1e-4)


def test_elsewhere_the_kernel_is_plain_attention():
    inputs = heads()
    got = jax.jit(functools.partial(attention, implementation="splash"))(*inputs)
    np.testing.assert_allclose(got, attention(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("lengths", "masked"), [((64, 128), False), ((128, 128), True)])
def test_what_the_kernel_cannot_do_is_refused(lengths, masked):
    mask = jnp.ones((1, 1, *lengths), bool) if masked else None
    with pytest.raises(UserError, match="takes no mask and lengths that 128 divides"):
        attention(*heads(*lengths), mask, implementation="splash")


def test_no_other_implementation():
    with pytest.raises(UserError, match="'flash' is none of xla, cudnn, splash"):
        attention(*heads(), implementation="flash")
