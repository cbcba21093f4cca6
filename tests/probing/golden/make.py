"""Writes scikit_learn.json: what scikit-learn makes of the problems of problems.py.

    python tests/probing/golden/make.py

needs scikit-learn and NumPy, not big_mm. The file names the versions that made it.
"""

import json
import pathlib
import sys

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import problems  # noqa: E402

PROBLEM = {"count": 400, "width": 8, "classes": 5}


def main():
    features, labels = problems.problem(**PROBLEM)
    test, _ = problems.problem(**PROBLEM, seed=1)
    fits = {}
    for c in (0.01, 1.0, 100.0):
        model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
        model.fit(features.astype(np.float64), labels)
        value = problems.objective(model.coef_.T, model.intercept_, features, labels, c)
        fits[str(c)] = {
            "coef": model.coef_.tolist(),
            "intercept": model.intercept_.tolist(),
            "objective": value,
            "predicted": model.predict(test).tolist(),
        }
    neighbours = {}
    for weights in ("majority", "weighted"):
        rule = "uniform" if weights == "majority" else lambda d: np.exp((1 - d) / 0.07)
        for k in (1, 5, 20):
            knn = KNeighborsClassifier(k, weights=rule, metric="cosine", algorithm="brute")
            knn.fit(features.astype(np.float64), labels)
            neighbours[f"{weights} {k}"] = knn.predict(test.astype(np.float64)).tolist()
    x, y = _design(features[:100], features[:100]), 2.0 * np.eye(5)[labels[:100]] - 1
    ridge = Ridge(alpha=2.0**4, fit_intercept=False, solver="cholesky").fit(x, y)
    golden = {
        "versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
        "logistic": {"problem": PROBLEM, "fits": fits},
        "neighbours": {"problem": PROBLEM, "predicted": neighbours},
        "ridge": {
            "problem": PROBLEM,
            "rows": 100,
            "strength": 2.0**4,
            "scores": ridge.predict(_design(test[:20], features[:100])).tolist(),
        },
    }
    (HERE / "scikit_learn.json").write_text(json.dumps(golden) + "\n")


def _design(features, shots):
    shots = shots.astype(np.float64)
    scaled = (features - shots.mean(axis=0)) / (shots.std(axis=0) + 1e-5)
    return np.pad(scaled, ((0, 0), (0, 1)), constant_values=100.0)


if __name__ == "__main__":
    main()
