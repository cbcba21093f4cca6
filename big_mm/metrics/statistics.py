"""Metrics as functions of each image's share in them, so that images can be drawn again.

A `Statistic` holds what every image contributes. Called with weights (how often each image counts)
it gives the metric; ones give the metric itself, multinomial draws its bootstrap distribution
(Efron & Tibshirani 1993, chapter 13), and the same draws for two models a paired test (Koehn 2004,
ACL W04-3250). The unit of drawing is the image: five captions of one image are drawn together.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Real

from big_mm.spec import UserError

Weights = Real[np.ndarray, " image"]
Values = Float[np.ndarray, " image"]


@dataclasses.dataclass(frozen=True, eq=False)
class Statistic(abc.ABC):
    """Base: fields are arrays whose first axis is the image."""

    @abc.abstractmethod
    def __call__(self, weights: Weights) -> float:
        """The metric of the images, each counted `weights` times."""

    def value(self) -> float:
        """The metric itself."""
        return self(np.ones(len(self)))

    def __len__(self) -> int:
        return len(next(iter(self.arrays().values())))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def take(self, rows: Int[np.ndarray, " rows"]) -> "Statistic":
        """The statistic of these images."""
        return type(self)(**{name: array[rows] for name, array in self.arrays().items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Mean(Statistic):
    """The sum of `total` over the sum of `count`, as of the captions of each image."""

    total: Values
    count: Values

    @classmethod
    def of(cls, values: Sequence[float | int] | np.ndarray) -> "Mean":
        """The plain mean of one number an image."""
        values = np.asarray(values, np.float64)
        return cls(values, np.ones_like(values))

    @classmethod
    def grouped(
        cls,
        values: Sequence[float | int] | np.ndarray,
        image: Int[np.ndarray, " value"],
        images: int,
    ) -> "Mean":
        """The mean of values that belong to images by number, as captions do."""
        total = np.bincount(image, np.asarray(values, np.float64), minlength=images)
        return cls(total, np.bincount(image, minlength=images).astype(np.float64))

    def __call__(self, weights: Weights) -> float:
        count = weights @ self.count
        return float(weights @ self.total / count) if count else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class MeanOfMeans(Statistic):
    """The mean over columns of each one's `Mean`, as of a metric in several languages."""

    total: Float[np.ndarray, "image column"]
    count: Float[np.ndarray, "image column"]

    def __call__(self, weights: Weights) -> float:
        count = weights @ self.count
        return float((weights @ self.total / count).mean()) if count.all() else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMean(Statistic):
    """The mean over the classes that occur of each one's mean."""

    values: Values
    label: Int[np.ndarray, " image"]

    def __call__(self, weights: Weights) -> float:
        count = np.bincount(self.label, weights)
        total = np.bincount(self.label, weights * self.values)
        return float((total[count > 0] / count[count > 0]).mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Median(Statistic):
    """The median of the values of all images; an image may have several, NaN being none."""

    values: Float[np.ndarray, "image ..."]

    @classmethod
    def grouped(
        cls,
        values: Sequence[float | int] | np.ndarray,
        image: Int[np.ndarray, " value"],
        images: int,
    ) -> "Median":
        """Of values that belong to images by number, as captions do."""
        order = np.argsort(image, kind="stable")
        counts = np.bincount(image, minlength=images)
        place = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = np.full((images, counts.max(initial=0)), np.nan)
        table[np.asarray(image)[order], place] = np.asarray(values, np.float64)[order]
        return cls(table)

    def __call__(self, weights: Weights) -> float:
        table = self.values.reshape(len(self.values), -1)
        values, weights = table.ravel(), np.repeat(weights, table.shape[1])
        there = ~np.isnan(values)
        values, weights = values[there], weights[there]
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        middle = [np.searchsorted(reached, reached[-1] / 2, side) for side in ("left", "right")]
        return float(values[order][np.minimum(middle, len(order) - 1)].mean())


@dataclasses.dataclass(frozen=True, eq=False)
class MedianRank(Median):
    """The median of ranks from 1, rounded down as open_clip and most retrieval papers do."""

    def __call__(self, weights: Weights) -> float:
        return float(np.floor(super().__call__(weights)))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of two models on the same images: second minus first, its interval, and the two-sided
    p-value: twice the share of draws on the other side of zero (ties on both), the data themselves
    being one draw more (Davison & Hinkley 1997, section 4.2), so never 0.
    """

    value: float
    low: float
    high: float
    p: float


def draws(images: int, samples: int, seed: int = 0) -> Iterator[Int[np.ndarray, " image"]]:
    """How often each image is drawn, `samples` times; the same for the same arguments."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(rng.integers(images, size=images), minlength=images)


def intervals(
    statistics: Mapping[str, Statistic], samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """The bootstrap interval of each metric; all metrics see the same draws."""
    if not statistics:
        return {}
    return {
        name: Interval(*_percentiles(found, level))
        for name, found in _resampled(statistics, samples, seed).items()
    }


def differences(
    first: Mapping[str, Statistic],
    second: Mapping[str, Statistic],
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """The paired comparison of the metrics that both have, image by image in the same order.

    Raises:
      UserError: not equally many images.
    """
    names = [name for name in first if name in second]
    for name in names:
        if len(first[name]) != len(second[name]):
            raise UserError(
                f"{name}: a paired test needs the same images, here are {len(first[name])} and "
                f"{len(second[name])}"
            )
    ours = _resampled({name: first[name] for name in names}, samples, seed)
    theirs = _resampled({name: second[name] for name in names}, samples, seed)
    made = {}
    for name in names:
        drawn = _drawn(theirs[name] - ours[name])
        side = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p = min(1.0, 2 * (side + 1) / (len(drawn) + 1))
        value = second[name].value() - first[name].value()
        made[name] = Difference(value, *_percentiles(drawn, level), p=p)
    return made


def _resampled(
    statistics: Mapping[str, Statistic], samples: int, seed: int
) -> dict[str, np.ndarray]:
    """[samples] values of each metric."""
    found: dict[str, list[float]] = {name: [] for name in statistics}
    by_size: dict[int, list[str]] = {}
    for name, statistic in statistics.items():
        by_size.setdefault(len(statistic), []).append(name)
    for size, names in by_size.items():
        for weights in draws(size, samples, seed):
            for name in names:
                found[name].append(statistics[name](weights))
    return {name: np.array(values) for name, values in found.items()}


def _drawn(values: np.ndarray) -> np.ndarray:
    """The draws in which the metric exists: that of a small group does not without its images."""
    there = values[~np.isnan(values)]
    return there if len(there) else values


def _percentiles(values: Sequence[float | int] | np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.percentile(_drawn(np.asarray(values)), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
