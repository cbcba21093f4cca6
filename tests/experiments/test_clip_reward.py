"""The rewards are their formulas; the head learns from captions and spoilt ones."""

import jax.numpy as jnp
import numpy as np

from big_mm.objectives.policy_gradient import Reward
from experiments.clip_reward import grammar


def test_the_reward_is_a_probability():
    judged = {"grammar_logit": jnp.array([0.0, jnp.log(3.0)])}
    np.testing.assert_allclose(grammar.Grammar()({}, {}, judged), [0.5, 0.75], atol=1e-6)
    assert isinstance(grammar.Grammar(), Reward)


def test_the_grammar_loss_is_the_cross_entropy_of_both():
    outputs = {
        "grammar_logit": jnp.array([2.0, -1.0]),
        "grammar_logit_corrupted": jnp.array([0.5, -3.0]),
    }
    mean, metrics = grammar.GrammarLoss()(outputs, {})
    expected = [np.log1p(np.exp(x)) for x in (-2.0, 1.0, 0.5, -3.0)]
    np.testing.assert_allclose(mean.compute(), np.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].compute(), 0.5)
    masked = grammar.GrammarLoss()(outputs, {"mask": jnp.array([True, False])})[0]
    np.testing.assert_allclose(masked.compute(), np.mean(expected[::2]), rtol=1e-6)
