"""Small classification problems, the same for the tests and for the peers; NumPy alone."""

import numpy as np


def problem(count=600, width=12, classes=5, seed=0, offset=0.0):
    """Features of uneven scale, and labels that they only partly explain."""
    features = np.random.default_rng(seed).normal(size=(count, width))
    features = (features * np.arange(1, width + 1) ** -0.7 + offset).astype(np.float32)
    rng = np.random.default_rng(100 + seed)
    direction = np.random.default_rng(99).normal(size=(width, classes))
    scores = 2 * (features - offset) @ direction
    return features, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)


def objective(weights, bias, features, labels, c):
    """That of scikit-learn's LogisticRegression, in float64."""
    scores = features.astype(np.float64) @ weights + bias
    top = scores.max(axis=1)
    normalisers = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    losses = normalisers - scores[np.arange(len(labels)), labels]
    return float(c * losses.sum() + 0.5 * (weights**2).sum())
