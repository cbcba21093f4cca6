"""Few-shot classification by least squares in closed form, as big_vision reports it.

Its `evaluators/fewshot_lsr.py`: features are standardised by mean and deviation of the shots, a
constant feature of 100 stands for the bias (so large that it is hardly regularised), targets are
+1 for the class and -1 for the others, and the class of the largest score is predicted.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Real

from big_mm.spec import UserError

_BIAS = 100.0
_EPSILON = 1e-5
# What big_vision's configs report, and the strengths a validation set may choose from.
FIXED = 2.0**10
STRENGTHS = 2.0 ** np.arange(-10, 21)


@dataclasses.dataclass(frozen=True, eq=False)
class Ridge:
    """(X^T X + strength I)^-1 X^T Y for any strength, from one eigendecomposition.

    With fewer rows than columns it is that of X X^T: X^T (X X^T + strength I)^-1 Y is the same.
    """

    mean: Float[np.ndarray, " width"]
    deviation: Float[np.ndarray, " width"]
    eigenvalues: Float[np.ndarray, " rank"]
    left: Float[np.ndarray, "columns rank"]
    right: Float[np.ndarray, "rank classes"]

    @classmethod
    def fit(
        cls, features: Real[np.ndarray, "n width"], labels: Int[np.ndarray, " n"], classes: int
    ) -> "Ridge":
        """Of these rows; float64."""
        values = features.astype(np.float64)
        mean, deviation = values.mean(axis=0), values.std(axis=0) + _EPSILON
        x = _with_bias((values - mean) / deviation)
        y = 2.0 * (labels[:, None] == np.arange(classes)) - 1.0
        if len(x) >= x.shape[1]:
            eigenvalues, q = np.linalg.eigh(x.T @ x)
            return cls(mean, deviation, eigenvalues, q, q.T @ (x.T @ y))
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        return cls(mean, deviation, eigenvalues, x.T @ q, q.T @ y)

    def scores(
        self, features: Real[np.ndarray, "m width"], strength: float = FIXED
    ) -> Float[np.ndarray, "m classes"]:
        """Around +1 for the class, -1 for the others."""
        x = _with_bias((features.astype(np.float64) - self.mean) / self.deviation)
        return x @ ((self.left / (self.eigenvalues + strength)) @ self.right)

    def predict(
        self, features: Real[np.ndarray, "m width"], strength: float = FIXED
    ) -> Int[np.ndarray, " m"]:
        """The class of the largest score, of equal ones the first."""
        return self.scores(features, strength).argmax(axis=1)


def shots(
    labels: Int[np.ndarray, " n"], classes: int, count: int, seed: int
) -> Int[np.ndarray, " shots"]:
    """Rows of `count` examples of each class, class by class.

    The rows of each class, in order, are permuted by one NumPy generator, class after class, and
    the first `count` are taken; so 5 shots contain the 1 shot of the same seed.

    Raises:
      UserError: a class has fewer examples.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for number in range(classes):
        rows = rng.permutation(np.flatnonzero(labels == number))
        if len(rows) < count:
            raise UserError(
                f"class {number} has {len(rows)} training examples, too few for {count} shots"
            )
        chosen.append(rows[:count])
    return np.concatenate(chosen)


def choose(
    ridge: Ridge, features: Real[np.ndarray, "m width"], labels: Int[np.ndarray, " m"]
) -> float:
    """The strength of the highest accuracy on these rows; of equal ones the largest."""
    x = _with_bias((features.astype(np.float64) - ridge.mean) / ridge.deviation)
    reduced = x @ ridge.left
    accuracies = [
        ((reduced / (ridge.eigenvalues + strength)) @ ridge.right).argmax(axis=1) == labels
        for strength in STRENGTHS[::-1]
    ]
    return float(STRENGTHS[::-1][int(np.argmax([a.mean() for a in accuracies]))])


def _with_bias(x: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n columns"]:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=_BIAS)
