"""Bias scores equal hand-computed ones, and grow with a planted bias."""

import numpy as np
import pytest
from scipy import linalg

from big_mm.metrics import bias


def test_equal_shares_deviate_by_nothing_and_one_alone_by_most():
    half = np.array([0.5, 0.5])
    assert bias.deviation(bias.shares(np.array([0, 1] * 5), 2), half) == 0
    assert bias.deviation(bias.shares(np.zeros(10, int), 2), half) == 0.5
    assert bias.deviation(np.array([0.7, 0.3]), np.array([0.4, 0.6])) == pytest.approx(0.3)
    assert bias.entropy(np.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))


def test_fair_sets_deviate_by_chance():
    """Enumerated: of two images, half of the sets are (1, 0) or (0, 1)."""
    half = np.array([0.5, 0.5])
    assert bias.fair_deviation(half, 1) == pytest.approx(0.5)
    assert bias.fair_deviation(half, 2) == pytest.approx(0.25)
    rng, reference = np.random.default_rng(0), np.array([0.2, 0.3, 0.5])
    drawn = rng.multinomial(10, reference, size=20_000) / 10
    expected = np.abs(drawn - reference).mean()
    assert bias.fair_deviation(reference, 10) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_error_of_a_classifier_is_taken_out(classes):
    true = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    confusion = np.full((classes, classes), 0.15 / (classes - 1))
    np.fill_diagonal(confusion, 0.85)
    np.testing.assert_allclose(bias.without_error(true @ confusion, 0.15), true)


def test_deviation_and_entropy_are_means_over_groups():
    label, group = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    reference = np.full((4, 2), 0.5)
    assert bias.Deviation(label, group, reference).value() == pytest.approx((0.5 + 0) / 2)
    assert bias.Entropy(label, group).value() == pytest.approx(np.log(2) / 2)
    only_first = np.array([1, 1, 0, 0])
    assert bias.Deviation(label, group, reference)(only_first) == 0.5
    assert bias.Entropy(label, group)(np.array([0, 0, 3, 1])) == pytest.approx(
        bias.entropy(np.array([3 / 4, 1 / 4]))
    )


def test_distribution_bias_is_the_area_under_the_frequencies():
    assert bias.distribution_bias([4, 4, 4]) == 2  # all equal: height 1, width 2
    assert bias.distribution_bias([1, 9, 5]) == pytest.approx(0.75 + 0.25)
    assert bias.distribution_bias([3]) == 0


def test_hallucination():
    assert bias.hallucination({"dog"}, {"dog"}) == 0
    assert bias.hallucination({"dog"}, {"dog", "cat"}) == 1 / 2
    assert bias.hallucination({"dog"}, {"cat"}) == 1
    assert bias.hallucination(set(), set()) == 0


def test_the_frechet_distance():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    second = rng.normal(size=(60, 4)) + 1
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = apart + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert bias.frechet(first, second) == pytest.approx(expected)
    assert bias.frechet(first, first) == pytest.approx(0, abs=1e-9)
    assert bias.frechet(first, first + 3) == pytest.approx(4 * 9)


def test_planted_clusters_are_found():
    rng = np.random.default_rng(1)
    centres = np.eye(6)[:5]
    truth = rng.integers(5, size=200)
    points = centres[truth] + 0.05 * rng.normal(size=(200, 6))
    clusters = bias.Clusters.of(points, 5)
    pairs = {(t, c) for t, c in zip(truth, clusters.labels, strict=True)}
    assert len(pairs) == 5  # one cluster for each planted one
    again = clusters.assign(points)
    np.testing.assert_array_equal(again, clusters.labels)
