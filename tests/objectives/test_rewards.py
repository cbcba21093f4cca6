"""Rewards are their formulas, and the metric's numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from big_mm.data.contract import Contract
from big_mm.data.tokenizers import SentencePiece
from big_mm.metrics import cider
from big_mm.objectives import rewards
from big_mm.objectives.policy_gradient import Reward
from tests import tiny


def test_clip_score():
    judged = {
        "image_embedding": jnp.array([[1.0, 0.0], [0.0, 1.0]]),
        "text_embedding": jnp.array([[0.6, 0.8], [0.8, -0.6]]),
    }
    np.testing.assert_allclose(rewards.ClipScore()({}, {}, judged), [1.5, 0.0], atol=1e-6)
    assert isinstance(rewards.ClipScore(), Reward)


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
