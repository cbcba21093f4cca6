"""Mean IoU is that of a confusion matrix, and can be resampled."""

import numpy as np
import pytest

from big_mm.metrics import statistics
from big_mm.metrics.segmentation import MeanIoU

CLASSES = 4


def counts(predicted, true):
    """[image, class] counts of label maps, pixels of true 255 aside."""
    one = np.eye(CLASSES)
    there = (true != 255)[..., None]
    p, t = one[predicted] * there, one[np.where(true == 255, 0, true)] * there
    return MeanIoU((p * t).sum((1, 2)), p.sum((1, 2)), t.sum((1, 2)))


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    true = rng.integers(0, CLASSES, (6, 5, 5))
    predicted = np.where(rng.random(true.shape) < 0.6, true, rng.integers(0, CLASSES, true.shape))
    return predicted, np.where(rng.random(true.shape) < 0.1, 255, true)


def test_it_is_that_of_the_confusion_matrix(maps):
    predicted, true = maps
    there = true != 255
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (true[there], predicted[there]), 1)
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    assert counts(predicted, true).value() == pytest.approx(iou.mean())


def test_an_image_counted_twice_is_two_images(maps):
    predicted, true = maps
    rows = [0, 0, 2, 3, 3, 3]
    weights = np.bincount(rows, minlength=6)
    twice = counts(predicted[rows], true[rows]).value()
    assert counts(predicted, true)(weights) == pytest.approx(twice)
    found = statistics.intervals({"miou": counts(predicted, true)}, samples=200)["miou"]
    assert found.low < counts(predicted, true).value() < found.high


def test_a_class_nowhere_does_not_count_and_one_only_predicted_counts_as_zero():
    true = np.zeros((1, 2, 2), int)
    assert counts(true, true).value() == 1.0
    wrong = np.array([[[0, 0], [0, 2]]])
    assert counts(wrong, true).value() == pytest.approx((3 / 4 + 0) / 2)
