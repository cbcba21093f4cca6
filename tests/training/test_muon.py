"""Muon against singular values: matrices get orthogonal updates, the rest AdamW's."""

import jax
import numpy as np
import pytest

from big_mm.training.muon import Muon
from big_mm.training.optimizer import AdamW

SHAPES = {
    "image/layers/attention/qkv/kernel": (2, 16, 3, 4, 8),
    "image/layers/attention/out/kernel": (2, 4, 8, 16),
    "image/layers/mlp/up/kernel": (2, 16, 64),
    "pooler/attention/query/kernel": (16, 4, 8),
    "image/layers/attention/out/bias": (2, 16),
    "embedding": (50, 16),
    "patch/kernel": (12, 16),
}


def normal(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def update(optimizer):
    params, grads = normal(0), normal(1)
    transform = optimizer.transform(params)
    updates, _ = jax.jit(transform.update)(grads, transform.init(params), params)
    return jax.device_get(updates)


@pytest.fixture(scope="module")
def updates():
    return update(Muon(learning_rate=1.0, rms=0.2, clip_norm=None))


@pytest.mark.parametrize(
    ("path", "matrices"),
    [
        ("image/layers/attention/qkv/kernel", lambda x: x.swapaxes(1, 2).reshape(6, 16, 32)),
        ("image/layers/attention/out/kernel", lambda x: x.reshape(2, 32, 16)),
        ("image/layers/mlp/up/kernel", lambda x: x),
        ("pooler/attention/query/kernel", lambda x: x.reshape(1, 16, 32)),
    ],
)
def test_each_matrix_of_each_layer_is_nearly_orthogonal(updates, path, matrices):
    values = np.linalg.svd(matrices(updates[path]), compute_uv=False)
    values /= 0.2 * max(matrices(updates[path]).shape[1:]) ** 0.5
    # Five iterations of the quintic bring singular values near one, not to it.
    assert values.max() < 1.3 and np.median(values) > 0.65


def test_the_rest_is_adamw(updates):
    reference = update(AdamW(learning_rate=1.0, clip_norm=None))
    for path in ("image/layers/attention/out/bias", "embedding", "patch/kernel"):
        np.testing.assert_array_equal(updates[path], reference[path])
