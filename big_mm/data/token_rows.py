"""Where texts begin and end in rows of tokens."""

import numpy as np
from jaxtyping import Bool, Int, Shaped

from big_mm.data.vocabulary import Tokenizer


def ends(tokens: Int[np.ndarray, "row length"], tokenizer: Tokenizer) -> Int[np.ndarray, " row"]:
    """The place of each row's eos (which may also be what rows begin with, or are padded with)."""
    return 1 + (tokens[:, 1:] == tokenizer.eos_id).argmax(axis=1)


def by_image(
    rows: Shaped[np.ndarray, "row length"], there: Bool[np.ndarray, "image text"]
) -> Shaped[np.ndarray, "image text length"]:
    """Rows of the texts that are `there`, by image; the others are those of the first text."""
    numbers = np.zeros(there.shape, np.int64)
    numbers[there] = np.arange(len(rows))
    return rows[numbers]


def continuations(
    encoded: Int[np.ndarray, "row length"],
    there: Bool[np.ndarray, "image text"],
    prefix: Int[np.ndarray, "image length"],
    given: Int[np.ndarray, " image"],
    tokenizer: Tokenizer,
) -> tuple[Int[np.ndarray, "image text length"], Bool[np.ndarray, "image text length"]]:
    """Rows of texts behind their image's prefix, by image, and which tokens are the texts' own:
    from the first in which one of the image's texts leaves the prefix, to eos.

    Args:
      encoded: prefix and text together, one row for each text that is `there`.
      given: how many tokens of `prefix` count.
    """
    at = np.arange(encoded.shape[1])
    tokens = np.full((*there.shape, len(at)), tokenizer.pad_id, np.int32)
    tokens[there] = encoded
    last = np.full(there.shape, -1)
    last[there] = ends(encoded, tokenizer)
    same = (tokens == prefix[:, None]) & (at < given[:, None, None])
    common = same.cumprod(axis=-1).sum(axis=-1)
    first = np.where(there, common, len(at)).min(axis=-1)
    return tokens, (first[:, None, None] <= at) & (at <= last[..., None])
