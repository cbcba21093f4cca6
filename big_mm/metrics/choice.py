"""Which of several candidates was chosen. Equal scores count against the model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


def chosen(
    scores: Float[np.ndarray, "n candidates"], right: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The best-scored candidate; of equals a wrong one, the first of these."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, right] = -np.inf
    beaten = scores[rows, right] > others.max(axis=1)
    return np.where(beaten, right, others.argmax(axis=1))


def winoground(
    scores: Sequence[Float[np.ndarray, "2 2"]],
) -> dict[str, Bool[np.ndarray, " group"]]:
    """Of image i and text j in scores[i, j], with i = j right (arXiv:2204.03162, section 3.2).

    `text`: each image prefers its own text; `image`: each text its own image; `group`: both.
    """
    text = np.array([s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0] for s in scores], bool)
    image = np.array([s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1] for s in scores], bool)
    return {"text": text, "image": image, "group": text & image}
