"""Probes beside scikit-learn on the same features: accuracies, objective, time.

    python benchmarks/probes.py --rows 50000 --width 512 --classes 10
    python benchmarks/probes.py --checkpoint runs/pairs --train 'DIR/train-*' --test 'DIR/test-*'

Features are drawn (a Gaussian for each class, seeded), or are a checkpoint's `image_features` of
records with a `label`; then the rate of the extraction is reported beside that of `encode_image`.
Without scikit-learn (it is no dependency: `pip install scikit-learn`) only ours runs.

"seconds" are wall-clock and "CPU" those of all threads, which a busy machine does not change much.
The objective is C * sum of losses + 1/2 ||w||^2 in float64 where each stopped, so the lower one is
nearer to the optimum; ours is in float32 on the devices, scikit-learn's in float64 on the CPU. The
first fit is not timed: it compiles.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import big_mm
from big_mm import mesh, search
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.evaluators import base, features
from big_mm.metrics.recall import SameId
from big_mm.probing import logistic, neighbours, ridge

try:
    import sklearn
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
except ImportError:
    sklearn = None

SHOTS = (5, 25)


@dataclasses.dataclass
class Data:
    """Training and test rows."""

    x: np.ndarray
    y: np.ndarray
    u: np.ndarray
    v: np.ndarray

    @property
    def classes(self) -> int:
        """By the training labels."""
        return int(self.y.max()) + 1


def drawn(rows: int, width: int, classes: int) -> Data:
    """Overlapping Gaussians of uneven scale, away from zero; a fifth as many test rows."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, width + 1) ** -0.5
    centres = rng.normal(size=(classes, width)) * scale * 0.25

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, classes, count)
        x = centres[y] + rng.normal(size=(count, width)) * scale + 0.3
        return x.astype(np.float32), y

    return Data(*sample(rows), *sample(rows // 5))


def extracted(arguments: argparse.Namespace) -> tuple[Data, dict[str, float]]:
    """A checkpoint's features, and images a second."""
    predictor = big_mm.load(arguments.checkpoint)
    if arguments.features:
        predictor = dataclasses.replace(predictor, features=arguments.features)
    schema = Schema(captions=None, label="label")
    train, test = (TFRecordSource(s, schema) for s in (arguments.train, arguments.test))
    first = next(base.examples(test, predictor.contract, 64))["image"]
    predictor.encode_image(first), predictor.image_outputs(first, ("image_features",))
    found, rates = [], {}
    for source, limit in ((train, arguments.limit), (test, arguments.limit)):
        start = time.perf_counter()
        found.append(features.extract(predictor, source, "image_features", limit=limit))
        rates["extract"] = len(found[-1]) / (time.perf_counter() - start)
    start, count = time.perf_counter(), 0
    for batch in base.examples(test, predictor.contract, 256, arguments.limit):
        count += len(predictor.encode_image(batch["image"]))
    rates["encode_image"] = count / (time.perf_counter() - start)
    (a, b) = found
    return Data(np.array(a.values), a.labels, np.array(b.values), b.labels), rates


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall-clock and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - start, time.process_time() - cpu


def objective(data: Data, weights: np.ndarray, bias: np.ndarray, c: float) -> float:
    """scikit-learn's, in float64."""
    scores = data.x.astype(np.float64) @ weights + bias
    top = scores.max(axis=1)
    normalisers = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
    return (
        c * (normalisers - scores[np.arange(len(scores)), data.y]).sum() + 0.5 * (weights**2).sum()
    )


def row(name: str, data: Data, ours: tuple, theirs: tuple | None, **more: Any) -> dict[str, Any]:
    """One line of the table; `ours` and `theirs` are predictions, seconds, CPU seconds."""
    line = {"probe": name, "ours": float((ours[0] == data.v).mean())}
    line |= {"seconds": ours[1], "CPU": ours[2]}
    if theirs is not None:
        line |= {"scikit-learn": float((theirs[0] == data.v).mean())}
        line |= {"their seconds": theirs[1], "their CPU": theirs[2]}
        line["different"] = int((ours[0] != theirs[0]).sum())
    print(json.dumps(line | more), flush=True)
    return line | more


def linear(data: Data, strengths: Sequence[float], whole: bool) -> list[dict[str, Any]]:
    """Logistic regression at given C, then perhaps the whole search."""
    model = logistic.LogisticRegression(data.x, data.y, data.classes)
    model.fit(1e-6)
    lines = []
    for c in strengths:
        fitted, seconds, cpu = timed(lambda c=c: model.fit(c))
        more = {"iterations": fitted.iterations, "gradient": fitted.gradient}
        more["objective"] = objective(data, fitted.weights, fitted.bias, c)
        theirs = None
        if sklearn is not None:
            peer, *times = timed(lambda c=c: _peer(data, c, None))
            theirs = (peer.predict(data.u.astype(np.float64)), *times)
            more["their iterations"] = int(peer.n_iter_[0])
            more["their objective"] = objective(data, peer.coef_.T, peer.intercept_, c)
        ours = (fitted.predict(data.u), seconds, cpu)
        lines.append(row(f"logistic regression, C={c:g}", data, ours, theirs, **more))

    if not whole:
        return lines
    held = np.arange(len(data.y)) % 10 == 0

    def searched(fit: Callable[[float, np.ndarray | None], Any]) -> Any:
        def accuracy(c: float) -> float:
            return float((fit(c, ~held).predict(data.x[held]) == data.y[held]).mean())

        return fit(logistic.best(logistic.sweep(accuracy)), None)

    fitted, seconds, cpu = timed(lambda: searched(model.fit))
    ours, more = (fitted.predict(data.u), seconds, cpu), {"C": fitted.c}
    theirs = None
    if sklearn is not None:
        peer, *times = timed(lambda: searched(functools.partial(_peer, data)))
        theirs, more["their C"] = (peer.predict(data.u.astype(np.float64)), *times), peer.C
    return [*lines, row("linear probe, C searched", data, ours, theirs, **more)]


def _peer(data: Data, c: float, rows: np.ndarray | None) -> Any:
    """scikit-learn's regression of some rows."""
    chosen = slice(None) if rows is None else rows
    peer = LogisticRegression(C=c, max_iter=1000)
    return peer.fit(data.x[chosen].astype(np.float64), data.y[chosen])


def few_shot(data: Data) -> list[dict[str, Any]]:
    """Ridge on a few examples a class, seed 0."""
    lines = []
    for count in SHOTS:
        rows = ridge.shots(data.y, data.classes, count, seed=0)
        x, y = data.x[rows].astype(np.float64), data.y[rows]
        ours = timed(lambda: ridge.Ridge.fit(x, y, data.classes).predict(data.u))  # noqa: B023
        theirs = None
        if sklearn is not None:
            mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5

            def design(values: np.ndarray) -> np.ndarray:
                scaled = (values - mean) / deviation  # noqa: B023
                return np.pad(scaled, ((0, 0), (0, 1)), constant_values=100.0)

            peer = Ridge(alpha=ridge.FIXED, fit_intercept=False)
            targets = 2.0 * np.eye(data.classes)[y] - 1
            _, *times = timed(lambda: peer.fit(design(x), targets))  # noqa: B023
            theirs = (peer.predict(design(data.u)).argmax(axis=1), *times)
        lines.append(row(f"{count}-shot ridge", data, ours, theirs))
    return lines


def nearest(data: Data, k: int) -> list[dict[str, Any]]:
    """The majority of k neighbours by cosine."""

    def vote() -> np.ndarray:
        gallery, queries = neighbours.unit(data.x), neighbours.unit(data.u)
        alike = SameId(np.zeros(len(queries), np.int64), np.zeros(len(gallery), np.int64))
        found = search.rank(queries, gallery, alike, k, mesh.MeshConfig().make()).indices
        return neighbours.vote(np.ones(found.shape, np.float32), data.y[found], data.classes, None)

    ours = timed(vote)
    theirs = None
    if sklearn is not None:
        peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(data.x, data.y)
        theirs = timed(lambda: peer.predict(data.u))
    return [row(f"{k} nearest neighbours, majority", data, ours, theirs)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000, help="training rows to draw")
    parser.add_argument("--width", type=int, default=512, help="features of a row")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--c", type=float, nargs="+", default=[0.01, 1.0], help="values of C")
    parser.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also search C, as the linear probe does (15 fits)",
    )
    parser.add_argument("--k", type=int, default=20, help="neighbours")
    parser.add_argument("--checkpoint", metavar="DIR", help="extract features instead")
    parser.add_argument("--train", metavar="SHARDS")
    parser.add_argument("--test", metavar="SHARDS")
    parser.add_argument("--limit", type=int, help="records of each set")
    parser.add_argument("--features", metavar="DIR", help="keep extracted features here")
    parser.add_argument("--out", metavar="FILE", help="write JSON")
    arguments = parser.parse_args()
    rates: dict[str, float] = {}
    if arguments.checkpoint:
        data, rates = extracted(arguments)
        print(json.dumps({f"{name}, images/s": rate for name, rate in rates.items()}))
    else:
        data = drawn(arguments.rows, arguments.width, arguments.classes)
    lines = (
        linear(data, arguments.c, arguments.search) + few_shot(data) + nearest(data, arguments.k)
    )
    if arguments.out:
        content = {
            "scikit-learn": getattr(sklearn, "__version__", None),
            "train": data.x.shape,
            "test": data.u.shape,
            "images a second": rates,
            "rows": lines,
        }
        pathlib.Path(arguments.out).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
