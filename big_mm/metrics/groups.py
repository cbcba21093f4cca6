"""How evenly a metric is spread over groups of images."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from big_mm.metrics.statistics import Statistic, Values, Weights


@dataclasses.dataclass(frozen=True, eq=False)
class _Grouped(Statistic):
    total: Values
    count: Values
    group: Int[np.ndarray, " image"]

    def means(self, weights: Weights) -> Float[np.ndarray, " groups"]:
        """The metric of each group that has any images."""
        total = np.bincount(self.group, weights * self.total)
        count = np.bincount(self.group, weights * self.count)
        return total[count > 0] / count[count > 0]


class Worst(_Grouped):
    """The smallest of the groups' means (worst-group accuracy, arXiv:1911.08731)."""

    def __call__(self, weights: Weights) -> float:
        return float(self.means(weights).min())


class Gap(_Grouped):
    """The largest of the groups' means minus the smallest."""

    def __call__(self, weights: Weights) -> float:
        return float(np.ptp(self.means(weights)))


@dataclasses.dataclass(frozen=True, eq=False)
class AllRight(Statistic):
    """The share of groups in which everything is right (NLVR2's consistency, arXiv:1811.00491)."""

    right: Values
    group: Int[np.ndarray, " image"]

    def __call__(self, weights: Weights) -> float:
        there = np.bincount(self.group, weights)
        wrong = np.bincount(self.group, weights * (1 - self.right))
        return float((wrong[there > 0] == 0).mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Informedness(Statistic):
    """Mean over the classes that occur of true positive rate minus false positive rate.

    0 for any answer that does not depend on the image, 1 for none but right ones (Powers 2011; per
    class as arXiv:2310.08577 uses it).
    """

    label: Int[np.ndarray, " image"]
    predicted: Int[np.ndarray, " image"]

    def __call__(self, weights: Weights) -> float:
        return float(np.mean(list(self.of_classes(weights).values())))

    def of_classes(self, weights: Weights) -> dict[int, float]:
        """The informedness of each class that occurs, if another one does too."""
        made = {}
        for one in np.unique(self.label[weights > 0]).tolist():
            own, said = self.label == one, self.predicted == one
            if inside := weights @ own:
                outside = weights @ ~own
                false = weights @ (said & ~own) / outside if outside else 0.0
                made[one] = float(weights @ (said & own) / inside - false)
        return made
