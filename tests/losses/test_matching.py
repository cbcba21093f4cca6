"""Matching by hand, and negatives that follow the similarities and are never the positives."""

import jax
import jax.numpy as jnp
import numpy as np

from big_mm.losses.matching import Matching, hard_negatives


def test_the_first_pair_belongs_together_and_the_others_do_not():
    outputs = {
        "match_logits": jnp.array([[2.0, -1.0, 0.5], [-3.0, 4.0, 9.0], [7.0, 7.0, 7.0]]),
        "match_valid": jnp.array([[True, True, True], [True, True, False], [True, True, True]]),
    }
    mean, metrics = Matching()(outputs, {"mask": jnp.array([1, 1, 0])})
    chances = [1 / (1 + np.exp(x)) for x in (-2.0, -1.0, 0.5, 3.0, 4.0)]
    np.testing.assert_allclose(mean.compute(), -np.log(chances).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].compute(), 2 / 5, rtol=1e-6)


def test_negatives_follow_the_softmax_over_those_allowed():
    logits = jnp.array([[9.0, 1.0, 0.0, 2.0], [0.0, 0.0, 5.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    allowed = jnp.array([[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], bool)
    draw = jax.vmap(lambda rng: hard_negatives(rng, logits, allowed))
    chosen, found = draw(jax.random.split(jax.random.key(0), 4000))
    shares = np.stack([np.bincount(chosen[:, i], minlength=4) / 4000 for i in range(2)])
    weights = np.where(allowed[:2], np.exp(logits[:2]), 0.0)
    np.testing.assert_allclose(shares, weights / weights.sum(1, keepdims=True), atol=0.025)
    assert found[0].tolist() == [True, True, False]
    again = hard_negatives(jax.random.key(3), logits, allowed)
    assert again[0].tolist() == hard_negatives(jax.random.key(3), logits, allowed)[0].tolist()
