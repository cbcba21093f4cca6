"""Corrupted captions are what they say; rewards are their formulas; the head learns from both."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.objectives.policy_gradient import Reward
from big_mm.spec import UserError
from experiments.clip_reward import grammar

CAPTION = "a red circle and two blue stars".split()
WORDS = ("red", "ring", "zebra")


@pytest.mark.parametrize("way", ["_repeated", "_shortened", "_inserted", "_replaced", "_shuffled"])
def test_each_way_changes_only_what_it_says(way):
    corrupt = grammar.Corrupt(words=WORDS)
    for seed in range(30):
        found = getattr(corrupt, way)(CAPTION, np.random.default_rng(seed))
        more = collections.Counter(found) - collections.Counter(CAPTION)
        fewer = collections.Counter(CAPTION) - collections.Counter(found)
        if way == "_repeated":
            assert not fewer and 1 <= more.total() <= 9 and set(more) <= set(CAPTION)
        elif way == "_shortened":
            assert not more and 1 <= fewer.total() <= 3
        elif way == "_inserted":
            assert not fewer and 1 <= more.total() <= 3 and set(more) <= set(WORDS)
        elif way == "_replaced":
            assert len(found) == len(CAPTION) and set(more) <= set(WORDS)
        else:
            assert not more and not fewer


def test_the_result_differs_even_for_one_word():
    corrupt = grammar.Corrupt(words=WORDS)
    for seed in range(50):
        for caption in ("star", "red red", " ".join(CAPTION)):
            record = corrupt.random_map({"caption": caption}, np.random.default_rng(seed))
            assert record["corrupted"] != caption and record["caption"] == caption
    with pytest.raises(UserError, match="two or more"):
        grammar.Corrupt(words=("red",))


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
