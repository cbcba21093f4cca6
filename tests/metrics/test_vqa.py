"""The rules equal the official programs', whose answers are in golden/ (make_vqa, make_read)."""

import functools
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from big_mm.metrics import vqa
from big_mm.spec import UserError

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "vqa_scores.json").read_text())


def test_the_accuracy_is_the_official_one():
    wrong = [case for case in CASES if abs(vqa.accuracy(*case[:2]) - case[2]) > 1e-12]
    assert not wrong and len(CASES) > 200
    assert len({round(score, 3) for _, _, score in CASES}) == 5  # 0, 0.3, 0.6, 0.9, 1 all occur


@pytest.mark.parametrize("place, rule", list(enumerate(("textvqa", "stvqa", "anls", "chartqa"), 2)))
def test_the_rules_for_text_in_images_are_the_official_ones(place, rule):
    cases = json.loads((GOLDEN / "read_scores.json").read_text())
    wrong = [case for case in cases if abs(vqa.accuracy(*case[:2], rule) - case[place]) > 1e-12]
    assert not wrong and len(cases) > 200
    assert {0, 1} < {case[place] for case in cases} or rule in ("stvqa", "chartqa")
    assert any(vqa.accuracy(*case[:2]) != case[place] for case in cases)


def test_normalisations_differ():
    assert vqa.normalize_read("Joe's") == "joe 's" and vqa.normalize("Joe's") == "joe's"
    assert vqa.normalize_read("1,000/b") == "1000 b"
    assert vqa.accuracy("Yes", ["yes"] * 10, "textvqa") == 1


@hypothesis.given(*[st.text("abc", max_size=6)] * 2)
def test_the_edit_distance(first, second):
    """Equal to the recursion over prefixes that defines it."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        exchange = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, exchange)

    assert vqa.edit_distance(first, second) == distance(len(first), len(second))
    assert vqa.similarity(first, first.upper() + " ") == 1


def test_answers_that_surprise():
    assert vqa.normalize("The Two dogs") == "2 dogs"
    assert vqa.normalize("none") == "0"
    assert vqa.normalize("left, right/up") == "left right up"
    assert vqa.normalize("1,000/b") == "1000b"  # the comma makes every sign vanish
    assert vqa.normalize("2.5 a.m.") == "2.5 am"
    assert vqa.normalize("somebody'd") == "somebodyd" and vqa.normalize("shed") == "shed"
    assert vqa.accuracy("Yes", ["yes"] * 10) == 0  # nothing is normalised where all agree
    assert vqa.accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


@hypothesis.given(st.integers(0, 10))
def test_the_share_of_right_is_that_of_ten_leave_one_out_sets(matches):
    people = ["x"] * matches + ["y"] * (10 - matches)
    sets = [people[:i] + people[i + 1 :] for i in range(10)]
    expected = sum(min(1, s.count("x") / 3) for s in sets) / 10
    assert vqa.accuracy("x", people) == pytest.approx(expected)
    assert vqa.accuracy("x", people, "aokvqa") == pytest.approx(min(1, matches / 3))


@hypothesis.given(st.text())
def test_whoever_repeats_the_people_is_right(answer):
    assert vqa.accuracy(answer, [answer] * 10) == 1
    assert vqa.accuracy(answer, [answer] * 9 + [answer + "x"]) == 1


def test_bad_input_is_named():
    with pytest.raises(UserError, match="no people's answers"):
        vqa.accuracy("a", [])
