"""Counting runs of words."""

import collections

Ngram = tuple[str, ...]


def count(caption: str, max_n: int) -> collections.Counter[Ngram]:
    """How often each run of 1..max_n words occurs; words are separated by any white space."""
    words = caption.split()
    return collections.Counter(
        tuple(words[i : i + n]) for n in range(1, max_n + 1) for i in range(len(words) - n + 1)
    )
