"""Spoilt captions are spoilt as they say."""

import collections

import numpy as np
import pytest

from big_mm.data.corruption import WAYS, Corrupt
from big_mm.data.damage import BadRecord
from big_mm.spec import UserError

CAPTION = "a red circle and two blue stars".split()
WORDS = ("red", "ring", "zebra")


@pytest.mark.parametrize("way", WAYS)
def test_each_way_changes_only_what_it_says(way):
    corrupt, caption = Corrupt(words=WORDS, ways=(way,)), {"caption": " ".join(CAPTION)}
    for seed in range(30):
        found = corrupt.random_map(caption, np.random.default_rng(seed))["corrupted"].split()
        more = collections.Counter(found) - collections.Counter(CAPTION)
        fewer = collections.Counter(CAPTION) - collections.Counter(found)
        if way == "repeated":
            assert not fewer and 1 <= more.total() <= 9 and set(more) <= set(CAPTION)
        elif way == "shortened":
            assert not more and 1 <= fewer.total() <= 3
        elif way == "inserted":
            assert not fewer and 1 <= more.total() <= 3 and set(more) <= set(WORDS)
        elif way == "replaced":
            assert len(found) == len(CAPTION) and set(more) <= set(WORDS)
        else:
            assert not more and not fewer


def test_the_result_differs_even_for_one_word():
    corrupt = Corrupt(words=WORDS)
    for seed in range(50):
        for caption in ("star", "red red", " ".join(CAPTION)):
            record = corrupt.random_map({"caption": caption}, np.random.default_rng(seed))
            assert record["corrupted"] != caption and record["caption"] == caption


@pytest.mark.parametrize("ways, caption", [(WAYS, " "), (("shuffled",), "red red")])
def test_what_cannot_be_spoilt_is_a_bad_record(ways, caption):
    with pytest.raises(BadRecord):
        corrupt = Corrupt(words=WORDS, ways=ways)
        corrupt.random_map({"caption": caption}, np.random.default_rng(0))


def test_options_are_checked():
    with pytest.raises(UserError, match="two or more"):
        Corrupt(words=("red",))
    with pytest.raises(UserError, match="way='swapped' is none of"):
        Corrupt(words=WORDS, ways=("swapped",))
