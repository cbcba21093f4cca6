"""Corrupted captions are what they say; rewards are their formulas; the head learns from both."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.data.contract import Contract
from big_mm.data.tokenizers import SentencePiece
from big_mm.metrics import cider
from big_mm.objectives.policy_gradient import Reward
from big_mm.spec import UserError
from experiments.clip_reward import grammar, rewards
from tests import tiny

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


def test_rewards_are_their_formulas():
    judged = {
        "image_embedding": jnp.array([[1.0, 0.0], [0.0, 1.0]]),
        "text_embedding": jnp.array([[0.6, 0.8], [0.8, -0.6]]),
        "grammar_logit": jnp.array([0.0, jnp.log(3.0)]),
    }
    np.testing.assert_allclose(rewards.ClipScore()({}, {}, judged), [1.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(rewards.Grammar()({}, {}, judged), [0.5, 0.75], atol=1e-6)
    assert isinstance(rewards.ClipScore(), Reward) and isinstance(rewards.Grammar(), Reward)


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


class Captions:
    """Records with two captions each."""

    def __len__(self):
        return len(tiny.TEXTS) - 1

    def __getitem__(self, index):
        return {"captions": list(tiny.TEXTS[index : index + 2])}

    def where(self, index):
        return str(index)


def test_cider_under_jit_is_the_metric(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tiny.tokenizer_bytes())
    tokenizer = SentencePiece(str(tmp_path / "tokenizer.model"))
    contract = Contract(tokenizer=tokenizer, image_size=16, max_len=tiny.MAX_LEN)
    reward = rewards.Cider(source=Captions()).bind(contract)
    said, own = ["a red circle", "a blue star", "a green ring"], ["a red circle", "a red star", ""]
    batches = [{"tokens": jnp.asarray(contract.text(texts)[0])} for texts in (said, own)]
    found = jax.jit(lambda written, batch: reward(written, batch, {}))(*batches)
    frequency = cider.DocumentFrequency.of([Captions()[i]["captions"] for i in range(15)])
    expected = cider.cider_d(said, [[text] for text in own], frequency)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] > found[1] > found[2] == 0
