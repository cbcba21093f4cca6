"""Overlap of predicted and true regions, from pixel counts of each image and class."""

import dataclasses

import numpy as np
from jaxtyping import Float

from big_mm.metrics.statistics import Statistic, Weights

Counts = Float[np.ndarray, "image class"]


@dataclasses.dataclass(frozen=True, eq=False)
class MeanIoU(Statistic):
    """Intersection over union of each class over all images together, averaged over the classes
    that occur in the truth or in a prediction.

    Attributes:
      intersection: pixels of an image that are of the class and predicted so.
      predicted, true: pixels that are predicted so, and that are; pixels to ignore in neither.
    """

    intersection: Counts
    predicted: Counts
    true: Counts

    def per_class(self, weights: Weights) -> Float[np.ndarray, " class"]:
        """NaN for a class that does not occur."""
        intersection, predicted, true = (
            weights @ counts for counts in (self.intersection, self.predicted, self.true)
        )
        union = predicted + true - intersection
        return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)

    def __call__(self, weights: Weights) -> float:
        return float(np.nanmean(self.per_class(weights)))
