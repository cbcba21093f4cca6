"""Statistics are the metrics of the images that are drawn, and their intervals cover."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from big_mm.metrics import bleu, captioning, statistics
from big_mm.metrics.statistics import ClassMean, Mean, Median, MedianRank
from big_mm.spec import UserError

WORDS = "a red circle and two green stars".split()


def caption_statistics(count):
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(3 * count)]
    references = [texts[count + i :: count][:2] for i in range(count)]
    return captioning.statistics(texts[:count], references)


def some(count=7):
    rng = np.random.default_rng(0)
    values, label = rng.normal(size=count), rng.integers(3, size=count)
    return {
        "mean": Mean.of(values),
        "grouped": Mean.grouped(rng.normal(size=20), rng.integers(count, size=20), count),
        "classes": ClassMean(values, label),
        "median": Median(values),
        "medians": Median.grouped(rng.normal(size=20), rng.integers(count, size=20), count),
        **caption_statistics(count),
    }


@hypothesis.given(st.lists(st.integers(0, 3), min_size=7, max_size=7).filter(any))
def test_weights_are_repeated_images(weights):
    rows = np.repeat(np.arange(7), weights)
    for name, statistic in some().items():
        repeated = statistic.take(rows)
        assert statistic(np.array(weights)) == pytest.approx(repeated.value(), nan_ok=True), name


def test_values_are_the_plain_definitions():
    values, label = np.array([1.0, 5, 2, 8]), np.array([0, 2, 2, 2])
    assert Mean.of(values).value() == 4
    assert ClassMean(values, label).value() == (1 + 5) / 2
    assert Median(values).value() == 3.5 and Median(values[:3]).value() == 2
    assert MedianRank(values).value() == 3
    several = Median.grouped([7, 1, 2, 9, 3], np.array([2, 0, 0, 2, 4]), 5)
    assert several.value() == 3 and several(np.array([1, 1, 0, 1, 0])) == 1.5
    assert Mean.grouped([1, 0, 0], np.array([1, 1, 3]), 5).value() == 1 / 3


def test_bleu_of_a_drawn_set_is_that_of_the_set():
    predictions = ["a red circle", "two stars", "a green star"]
    references = [["a red circle here"], ["two green stars"], ["a star", "a green star"]]
    drawn = [0, 0, 2]
    whole = bleu.bleu([predictions[i] for i in drawn], [references[i] for i in drawn])
    weighted = [b(np.array([2, 0, 1])) for b in bleu.bleu(predictions, references)]
    assert weighted == pytest.approx([b.value() for b in whole], rel=1e-12)


def test_the_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    found = statistics.intervals({"mean": Mean.of(values)}, samples=4000)["mean"]
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_intervals_cover():
    rng, covered = np.random.default_rng(3), 0
    for trial in range(200):
        right = rng.random(120) < 0.3
        found = statistics.intervals({"x": Mean.of(right)}, samples=200, seed=trial)["x"]
        covered += found.low <= 0.3 <= found.high
    assert 175 <= covered <= 199


def test_a_paired_test_sees_what_single_intervals_do_not():
    rng = np.random.default_rng(4)
    difficulty = rng.normal(0, 5, 300)
    first, second = Mean.of(difficulty), Mean.of(difficulty + rng.normal(0.3, 0.5, 300))
    found = statistics.differences({"x": first}, {"x": second})["x"]
    assert found.value == pytest.approx(0.3, abs=0.1) and found.low > 0 and found.p < 0.01
    alone = statistics.intervals({"a": first, "b": second})
    assert alone["a"].high > alone["b"].low
    same = statistics.differences({"x": first}, {"x": first})["x"]
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_other_images_are_refused():
    with pytest.raises(UserError, match="same images, here are 3 and 4"):
        statistics.differences({"x": Mean.of(np.ones(3))}, {"x": Mean.of(np.ones(4))})


def test_fields_are_by_image():
    for name, statistic in some().items():
        arrays = [getattr(statistic, f.name) for f in dataclasses.fields(statistic)]
        assert {len(a) for a in arrays} == {len(statistic)} == {7}, name


def test_draws_without_any_image_of_a_group_are_left_out():
    """One image of four counts: it is missing in about a third of the draws."""
    rare = Mean(np.array([1.0, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
    found = statistics.intervals({"rare": rare}, samples=50)["rare"]
    assert (found.low, found.high) == (1.0, 1.0)
    other = Mean(np.array([0.0, 0, 0, 0]), np.array([1.0, 0, 0, 0]))
    difference = statistics.differences({"rare": other}, {"rare": rare}, samples=50)["rare"]
    assert (difference.low, difference.high) == (1.0, 1.0) and difference.p < 0.1
