"""Votes are scikit-learn's, and ties go to the smallest class."""

import json
import pathlib

import numpy as np
import pytest
from problems import problem

from big_mm.probing import neighbours

GOLDEN = pathlib.Path(__file__).parent / "golden" / "scikit_learn.json"


def predicted(features, labels, test, k, temperature):
    cosine = neighbours.unit(test) @ neighbours.unit(features).T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    similarities = np.take_along_axis(cosine, nearest, axis=1)
    return neighbours.vote(similarities, labels[nearest], 5, temperature)


@pytest.mark.parametrize("rule", ["majority 1", "majority 5", "majority 20"])
def test_the_majority_is_scikit_learns(rule):
    check(rule, None)


@pytest.mark.parametrize("rule", ["weighted 1", "weighted 5", "weighted 20"])
def test_the_weighted_vote_is_scikit_learns(rule):
    check(rule, 0.07)


def check(rule, temperature):
    golden = json.loads(GOLDEN.read_text())["neighbours"]
    features, labels = problem(**golden["problem"])
    test, _ = problem(**golden["problem"], seed=1)
    ours = predicted(features, labels, test, int(rule.split()[1]), temperature)
    assert ours.tolist() == golden["predicted"][rule]


def test_ties_go_to_the_smallest_class_and_weights_break_them():
    similarities = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    labels = np.array([[3, 1, 1, 3]])
    assert neighbours.vote(similarities, labels, 4, None).tolist() == [1]
    assert neighbours.vote(similarities, labels, 4, 0.07).tolist() == [3]


def test_a_cold_vote_does_not_overflow():
    similarities = np.array([[1.0, -1.0]], np.float32)
    assert neighbours.vote(similarities, np.array([[2, 0]]), 3, 1e-3).tolist() == [2]
