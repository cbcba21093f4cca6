"""Which tokens are masked, what stands in for them, and the loss over them alone."""

import jax
import jax.numpy as jnp
import numpy as np

from big_mm.losses.masked import MaskedTokens, mask_tokens

ROWS, LENGTH, VOCAB, MASK_ID = 2000, 10, 50, 4


def test_shares_are_bert_and_bos_and_padding_stay():
    tokens = jnp.tile(jnp.arange(5, 5 + LENGTH), (ROWS, 1))
    token_mask = jnp.tile(jnp.arange(LENGTH) < 8, (ROWS, 1))
    options = {"share": 0.3, "mask_id": MASK_ID, "vocab_size": VOCAB}
    shown, masked = mask_tokens(jax.random.key(0), tokens, token_mask, **options)
    assert not masked[:, 0].any() and not masked[:, 8:].any()
    np.testing.assert_array_equal(shown[~masked], tokens[~masked])
    np.testing.assert_allclose(masked[:, 1:8].mean(), 0.3, atol=0.02)
    kept, hidden = (shown == tokens)[masked].mean(), (shown == MASK_ID)[masked].mean()
    np.testing.assert_allclose([kept, hidden], [0.1 + 0.1 / VOCAB, 0.8 + 0.1 / VOCAB], atol=0.02)
    again, _ = mask_tokens(jax.random.key(0), tokens, token_mask, **options)
    np.testing.assert_array_equal(shown, again)
    assert not mask_tokens(jax.random.key(0), tokens, token_mask, **options | {"share": 0.0})[
        1
    ].any()


def test_only_masked_tokens_of_sound_rows_count():
    logits = jax.random.normal(jax.random.key(1), (3, 4, 6))
    mask = jnp.array([[0, 1, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1]], bool)
    tokens = jnp.arange(12).reshape(3, 4) % 6
    batch = {"tokens": tokens, "mask": jnp.array([1, 1, 0])}
    mean, metrics = MaskedTokens()({"word_logits": logits, "word_mask": mask}, batch)
    logs = np.asarray(jax.nn.log_softmax(logits))
    at = [(0, 1), (0, 2), (1, 3)]
    expected = np.mean([-logs[i, j, tokens[i, j]] for i, j in at])
    np.testing.assert_allclose(mean.compute(), expected, rtol=1e-6)
    right = np.mean([logs[i, j].argmax() == tokens[i, j] for i, j in at])
    np.testing.assert_allclose(metrics["accuracy"].compute(), right, rtol=1e-6)
