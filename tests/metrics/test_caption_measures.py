"""Figures of captions: fit by a dual encoder, diversity, graphs, ratings."""

import json
import math
import pathlib
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from big_mm.metrics import arena, caption_graph, cider, clip_score, diversity
from big_mm.metrics.caption_graph import Graph

GOLDEN = pathlib.Path(__file__).parent / "golden" / "capture_scores.json"


def unit(*rows):
    rows = np.array(rows, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clip_score_of_hand_made_vectors():
    image, caption = unit([1, 0], [1, 0], [1, 0]), unit([1, 1], [-1, 1], [0, 1])
    found = clip_score.clip_score(image, caption)
    np.testing.assert_allclose(found, [2.5 / math.sqrt(2), 0, 0], atol=1e-12)
    references = [unit([0, 1], [1, 0]), unit([1, 0]), unit([0, -1])]
    first, second = 2.5 / math.sqrt(2), 1 / math.sqrt(2)
    expected = [2 * first * second / (first + second), 0, 0]
    found = clip_score.ref_clip_score(image, caption, references)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_distinct_and_vocabulary_of_hand_made_captions():
    captions = ["a dog on a dog", "a cat"]
    assert diversity.vocabulary(captions) == 4
    assert diversity.distinct(captions, 1) == 4 / 7
    assert diversity.distinct(captions, 2) == 4 / 5  # "a dog" comes up twice
    assert diversity.distinct(["a"], 2) == 0
    # "a b a b c": the pair "a b" comes again, one of four; three words have no run of four.
    assert diversity.repeated(["a b a b c", "a b c"], 2) == [1 / 4, 0.0]
    assert diversity.repeated(["a b c"], 4) == [0.0]


def test_captions_that_are_alike_and_that_share_nothing():
    frequency = cider.DocumentFrequency.of([["a b c d"], ["e f g h"], ["i j k l"]])
    same, other = ["a b c d"] * 3, ["a b c d", "e f g h", "i j k l"]
    assert diversity.mbleu(same) == pytest.approx(1, abs=1e-6)
    assert diversity.mbleu(other) == pytest.approx(0, abs=1e-6)
    assert diversity.self_cider(same, frequency) == pytest.approx(0, abs=1e-9)
    assert diversity.self_cider(other, frequency) == pytest.approx(1)
    mixed = diversity.self_cider(["a b c d", "a b c d", "e f g h"], frequency)
    shares = np.sqrt([2, 1])
    assert mixed == pytest.approx(-math.log(shares[0] / shares.sum()) / math.log(3))


RIGHT = Graph(("dog", "mat"), ("brown", "red"), (("dog", "on", "mat"),))


def test_graphs_match_exactly_then_by_synonym_then_softly():
    assert caption_graph.compare(RIGHT, RIGHT).capture == pytest.approx(1, abs=1e-5)
    less = Graph(("dog",), ("brown",))
    scores = caption_graph.compare(less, RIGHT)
    assert scores.precision["objects"] == pytest.approx(1, abs=1e-5)
    assert scores.recall["objects"] == pytest.approx(1 / 2, abs=1e-5)
    assert scores.capture == pytest.approx((5 * 2 / 3 + 5 * 2 / 3 + 0) / 12, abs=1e-5)
    puppy = Graph(("puppy", "mat"), ("brown", "red"), (("puppy", "on", "mat"),))
    same = lambda a, b: a == b or {a, b} == {"dog", "puppy"}  # noqa: E731
    assert caption_graph.compare(puppy, RIGHT).f1["relations"] == 0
    assert caption_graph.compare(puppy, RIGHT, same).capture == pytest.approx(1, abs=1e-5)
    half = lambda a, b: np.full((len(a), len(b)), 0.5)  # noqa: E731
    soft = caption_graph.compare(puppy, RIGHT, soft=half)
    assert soft.precision["objects"] == pytest.approx(1.5 / 2, abs=1e-5)
    assert soft.recall["relations"] == pytest.approx(0.5, abs=1e-5)


def embed(phrases):
    """As golden/make_capture.py has it."""
    rows = [np.random.default_rng(zlib.crc32(p.encode())).random(6) for p in phrases]
    return np.array([row / np.linalg.norm(row) for row in rows])


def test_capture_equals_the_official_program():
    cases = json.loads(GOLDEN.read_text())
    for candidate, reference, synonyms, soft, capture, scores in cases:
        made = [
            Graph(tuple(objects), tuple(attributes), tuple(map(tuple, relations)))
            for objects, attributes, relations in (candidate, reference)
        ]
        found = caption_graph.compare(
            *made,
            (lambda a, b: a in b or b in a) if synonyms else None,
            (lambda a, b: embed(a) @ embed(b).T) if soft else None,
        )
        assert found.capture == pytest.approx(capture, abs=1e-12)
        ours = [
            getattr(found, what)[kind]
            for kind in ("objects", "attributes", "relations")
            for what in ("precision", "recall", "f1")
        ]
        assert ours == pytest.approx(scores, abs=1e-12)
    assert len(cases) == 120


def test_what_is_dropped_or_swapped_scores_less():
    swapped = Graph(("dog", "mat"), ("brown", "blue"), (("mat", "on", "dog"),))
    dropped = Graph(("dog",), ("brown",))
    values = [caption_graph.compare(g, RIGHT).capture for g in (RIGHT, swapped, dropped)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 3
    assert caption_graph.compare(Graph(), Graph()).capture == 0
    # Attributes count as often as they are said; each matches once.
    twice = caption_graph.compare(Graph(attributes=("red", "red")), Graph(attributes=("red",)))
    assert twice.precision["attributes"] == pytest.approx(1 / 2, abs=1e-5)


def test_bradley_terry_recovers_planted_strengths():
    planted = np.array([1200.0, 1050.0, 950.0, 800.0])
    chance = 1 / (1 + 10 ** (-np.subtract.outer(planted, planted) / 400))
    wins = chance * 1e6 * (1 - np.eye(4))
    np.testing.assert_allclose(arena.bradley_terry(wins), planted, atol=0.01)
    rng = np.random.default_rng(0)
    drawn = np.triu(rng.binomial(2000, chance), 1)
    found = arena.bradley_terry(drawn + np.triu(2000 - drawn, 1).T * 1.0)
    np.testing.assert_allclose(found, planted, atol=25)
    never_lost = arena.bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))
    assert np.isfinite(never_lost).all() and never_lost[0] > never_lost[1]
    assert never_lost.mean() == pytest.approx(1000)


def test_ratings_are_statistics_over_images():
    rng = np.random.default_rng(1)
    wins = np.zeros((30, 2, 2))
    wins[:, 0, 1] = rng.integers(0, 2, 30)
    wins[:, 1, 0] = 1 - wins[:, 0, 1]
    first, second = arena.ratings(wins)
    assert first.value() + second.value() == pytest.approx(2000)
    odds = (wins[:, 0, 1].sum() + 0.1) / (wins[:, 1, 0].sum() + 0.1)
    assert first.value() - second.value() == pytest.approx(400 * math.log10(odds))
    drawn = np.bincount(rng.integers(30, size=30), minlength=30)
    again = arena.bradley_terry(np.repeat(wins, drawn, axis=0).sum(axis=0))[0]
    assert first(drawn) == pytest.approx(again)


@hypothesis.given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_agreement_is_kendalls(pairs):
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    expected = stats.kendalltau(first, second).statistic
    assert arena.agreement(first, second) == pytest.approx(expected, nan_ok=True)
