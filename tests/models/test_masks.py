"""The masks, written out. Rows are targets, columns sources."""

import jax.numpy as jnp
import numpy as np

from big_mm.models import text

# Captions of 4 and of 2 tokens in 4 slots, CLS after them.
TOKEN_MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_causal():
    np.testing.assert_array_equal(
        text.causal_mask(3)[0, 0].astype(int), [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    )


def test_cls_sees_the_caption_and_itself_and_is_seen_by_nothing_else():
    full, short = np.asarray(text.cls_mask(TOKEN_MASK)[:, 0], int)
    np.testing.assert_array_equal(
        full,
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ],
    )
    np.testing.assert_array_equal(
        short,
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],  # padding; nothing real sees it
            [1, 1, 1, 1, 0],
            [1, 1, 0, 0, 1],
        ],
    )


def test_bidirectional_cls():
    short = np.asarray(text.cls_mask(TOKEN_MASK, causal=False)[1, 0], int)
    np.testing.assert_array_equal(short, [[1, 1, 0, 0, 0]] * 4 + [[1, 1, 0, 0, 1]])


def test_legacy_is_shifted_by_one():
    # bos, word, eos and a pad: CLS sees the pad and not itself. The second row holds "!", id 0.
    tokens = jnp.array([[7, 5, 8, 0], [7, 0, 5, 8]])
    padded, exclamation = np.asarray(text.legacy_cls_mask(tokens)[:, 0], int)
    np.testing.assert_array_equal(
        padded,
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0],
        ],
    )
    np.testing.assert_array_equal(
        exclamation,
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 0, 1, 0],
            [1, 1, 0, 1, 1],
        ],
    )


def test_cache():
    np.testing.assert_array_equal(
        text.cache_mask(jnp.int32(2), 2, 5)[0, 0].astype(int), [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    )
