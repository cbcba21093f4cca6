"""Hubs: gallery items that are near to everything, and taking them out of a ranking.

Dual inverted softmax (arXiv:2310.11612) divides exp(beta * s(q, g)) by its sum over a bank of
queries and by its sum over a bank of gallery items. In logarithms each bank is one number an item,
so that the normalised ranking is that of inner products with one more component.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def bias(
    gallery: Float[np.ndarray, "item width"],
    bank: Float[np.ndarray, "bank width"],
    beta: float,
    chunk: int = 2048,
) -> Float[np.ndarray, " item"]:
    """log sum over the bank of exp(beta * similarity with the item), without overflow."""
    total = np.full(len(gallery), -np.inf)
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk].astype(np.float64)
        for offset in range(0, len(gallery), chunk):
            columns = slice(offset, offset + chunk)
            scores = beta * (gallery[columns].astype(np.float64) @ part.T)
            total[columns] = np.logaddexp(total[columns], np.logaddexp.reduce(scores, axis=1))
    return total


def normalised(
    queries: Float[np.ndarray, "query width"],
    gallery: Float[np.ndarray, "item width"],
    biases: Float[np.ndarray, "bank item"],
    beta: float,
    active: Bool[np.ndarray, "query bank"] | None = None,
) -> tuple[Float[np.ndarray, "query longer"], Float[np.ndarray, "item longer"]]:
    """Vectors whose inner products are s(q, g) - sum of the item's active biases / beta.

    Args:
      beta: the sum of the banks' own.
      active: which banks count for which query; default: all.
    """
    if active is None:
        active = np.ones((len(queries), len(biases)), bool)
    # The mean does not change a ranking, and is rounded away in float32.
    centred = (biases - biases.mean(axis=1, keepdims=True)) / beta
    longer = np.concatenate([queries, active], axis=1).astype(np.float32)
    return longer, np.concatenate([gallery, -centred.T], axis=1).astype(np.float32)


def skewness(found: Int[np.ndarray, "query k"], items: int) -> float:
    """Skewness of the number of queries that each gallery item is among the first k of: 0 for
    an even share, large if few items are found by many (Radovanovic et al. 2010, section 2).
    """
    counts = np.bincount(np.ravel(found), minlength=items).astype(np.float64)
    spread = counts.std()
    return float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread else 0.0
