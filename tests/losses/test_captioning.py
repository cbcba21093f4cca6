"""Caption cross-entropy against a loop, with its options; chunks change nothing but memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.losses.captioning import CrossEntropy
from big_mm.spec import UserError

LENGTHS = (6, 4, 2, 5)


def case():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 6, 8)).astype(np.float32)
    kernel = rng.normal(size=(8, 11)).astype(np.float32)
    outputs = {
        "caption_logits": features @ kernel,
        "caption_features": features,
        "caption_kernel": kernel,
    }
    batch = {
        "tokens": rng.integers(0, 11, (4, 6)).astype(np.int32),
        "token_mask": np.arange(6) < np.array(LENGTHS)[:, None],
        "mask": np.array([True, True, True, False]),
    }
    return jax.tree.map(jnp.asarray, (outputs, batch))


def plain(outputs, batch, smoothing=0.0, z_loss=0.0):
    total = count = 0
    for row in np.flatnonzero(batch["mask"]):
        for i in range(LENGTHS[row] - 1):
            logits = np.asarray(outputs["caption_logits"][row, i], float)
            normaliser = np.log(np.exp(logits).sum())
            target = np.full(11, smoothing / 11)
            target[batch["tokens"][row, i + 1]] += 1 - smoothing
            total += (target * (normaliser - logits)).sum() + z_loss * normaliser**2
            count += 1
    return total, count


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}], ids=str)
@pytest.mark.parametrize("chunks", [1, 3])
def test_value(options, chunks):
    outputs, batch = case()
    mean, metrics = CrossEntropy(**options, chunks=chunks)(outputs, batch)
    total, count = plain(
        outputs, batch, options.get("label_smoothing", 0), options.get("z_loss", 0)
    )
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    assert mean.count == count == 9
    assert ("nll" in metrics) == bool(options)
    if options:
        np.testing.assert_allclose(metrics["nll"].total, plain(outputs, batch)[0], rtol=1e-5)


def test_accuracy():
    outputs, batch = case()
    _, metrics = CrossEntropy()(outputs, batch)
    hits = outputs["caption_logits"].argmax(-1)[:, :-1] == batch["tokens"][:, 1:]
    counted = (batch["token_mask"] & batch["mask"][:, None])[:, 1:]
    np.testing.assert_allclose(metrics["accuracy"].compute(), hits[counted].mean(), rtol=1e-6)


def test_padding_changes_nothing():
    outputs, batch = case()
    padding = ~(batch["token_mask"] & batch["mask"][:, None])
    # What stands at a padding position, as a token or as logits, counts for nothing.
    noisy = batch | {"tokens": jnp.where(padding, 10 - batch["tokens"], batch["tokens"])}
    logits = jnp.where(padding[..., None], 1e3, outputs["caption_logits"])
    a, b = CrossEntropy()(outputs, batch)[0], CrossEntropy()({"caption_logits": logits}, noisy)[0]
    np.testing.assert_allclose(a.total, b.total, rtol=1e-6)


def test_no_information_is_the_logarithm_of_the_vocabulary():
    outputs, batch = case()
    flat = {"caption_logits": jnp.zeros_like(outputs["caption_logits"])}
    np.testing.assert_allclose(CrossEntropy()(flat, batch)[0].compute(), np.log(11), rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=str)
def test_chunks_have_the_same_gradient(options):
    outputs, batch = case()

    def gradient(chunks):
        def loss(features, kernel):
            out = {"caption_features": features, "caption_kernel": kernel}
            out["caption_logits"] = features @ kernel
            return CrossEntropy(**options, chunks=chunks)(out, batch)[0].compute()

        return jax.grad(loss, argnums=(0, 1))(
            outputs["caption_features"], outputs["caption_kernel"]
        )

    for a, b in zip(gradient(1), gradient(2), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_chunks_never_hold_all_logits():
    outputs, batch = case()

    def shapes(chunks):
        def loss(features):
            logits = features @ outputs["caption_kernel"]
            out = outputs | {"caption_features": features, "caption_logits": logits}
            return CrossEntropy(chunks=chunks)(out, batch)[0].compute()

        compiled = jax.jit(jax.grad(loss)).lower(outputs["caption_features"]).compile()
        return compiled.as_text()

    assert "[4,6,11]" in shapes(1) or "[24,11]" in shapes(1)
    assert "[4,6,11]" not in shapes(3) and "[24,11]" not in shapes(3)


def test_chunks_that_do_not_divide():
    with pytest.raises(UserError, match="chunks=4 does not divide captions of 6 tokens"):
        CrossEntropy(chunks=4)(*case())


def test_large_logits():
    outputs, batch = case()
    huge = {"caption_logits": 1e4 * outputs["caption_logits"]}
    assert np.isfinite(CrossEntropy()(huge, batch)[0].total)
