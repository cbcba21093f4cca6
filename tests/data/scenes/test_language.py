"""Everything the grammar says is true, complete, short enough, and parses back."""

import re

import hypothesis
import pytest
from hypothesis import strategies as st

from big_mm.data import scenes
from big_mm.data.scenes import language, world
from big_mm.data.scenes.parsing import Group, Placement, Relation

indices = st.integers(0, 10**6)
splits = st.sampled_from(sorted(scenes.SPLITS))


def literal_counts(caption: str) -> dict[tuple[str, str], int]:
    """An independent reading: numbers and nouns of "NUMBER ... COLOUR SHAPE" by one pattern."""
    numbers = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    adjectives = r"(?:(?:small|tiny|medium|large|big|solid|plain|striped|dotted|spotted) )*"
    colours, shapes = "|".join(world.COLOURS), "|".join(world.SHAPES)
    found = {}
    caption = re.sub(rf"(\w+) that (?:is|are) ({colours})", r"\2 \1", caption)
    for number, colour, shape in re.findall(
        rf"\b({'|'.join(numbers)}) {adjectives}({colours}) ({shapes})(?:s|es)?\b", caption
    ):
        found[colour, shape] = found.get((colour, shape), 0) + numbers[number]
    return found


@hypothesis.settings(max_examples=200)
@hypothesis.given(splits, indices)
def test_every_caption_is_true_and_complete(split, index):
    sample = scenes.sample(split, 3, index)
    expected = {kind: len(members) for kind, members in sample.scene.groups().items()}
    for caption in (*sample.short, *sample.long, *sample.held_out):
        assert literal_counts(caption) == expected, caption
        assert scenes.parse_caption(caption).kinds() == expected, caption
        verdicts = scenes.check_caption(caption, sample.scene.to_json())
        assert all(verdicts.values()), (caption, verdicts)


@hypothesis.given(splits, indices)
def test_lengths_and_spelling(split, index):
    sample = scenes.sample(split, 4, index)
    for caption in (*sample.short, *sample.long, *sample.held_out):
        assert re.fullmatch(r"[a-z][a-z ,.:]*[a-z]", caption), caption
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption), caption
    assert all(len(caption.split()) <= language.MAX_SHORT_WORDS for caption in sample.short)
    assert all(len(caption.split()) <= language.MAX_LONG_WORDS for caption in sample.long)
    assert len(set(sample.short)) == len(sample.short) > 0


def test_held_out_phrasings_are_not_in_training():
    opening = re.compile(
        r"picture:|this picture|an image with|an? \w+ background with|.*that (is|are)"
    )
    for index in range(200):
        train, test = scenes.sample("train", 0, index), scenes.sample("test_seen", 0, index)
        assert not train.held_out and test.held_out
        assert not any(opening.match(c) for c in (*train.short, *train.long, *test.short))
        assert all(opening.match(caption) for caption in test.held_out)


def test_relations_and_regions_are_said_of_the_right_objects():
    """Recomputes, from the centres alone, what sentences about two single objects say."""
    told = 0
    pattern = re.compile(r"an? (\w+ \w+) (?:to the )?(left of|right of|above|below) an? (\w+ \w+)")
    for index in range(400):
        sample = scenes.sample("retrieval_seen", 1, index)
        at = {f"{o.colour} {o.shape}": (o.x, o.y) for o in sample.scene.objects}
        for subject, name, target in pattern.findall(" | ".join(sample.short)):
            dx, dy = (a - b for a, b in zip(at[subject], at[target], strict=True))
            offset = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[name]
            assert offset > 0.1 and offset >= min(abs(dx), abs(dy))
            told += 1
    assert told > 30


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("a red circle", [Group(1, "red", "circle")]),
        ("An ORANGE star.", [Group(1, "orange", "star")]),
        ("2 big spotted blue crosses", [Group(2, "blue", "cross", "large", "dotted")]),
        ("three small rings that are pink", [Group(3, "pink", "ring", "small")]),
        ("a cyan moon with stripes", [Group(1, "cyan", "moon", None, "striped")]),
        ("red circles", [Group(None, "red", "circle")]),
        ("a square and a red heart", [Group(1, None, "square"), Group(1, "red", "heart")]),
        ("nothing of the kind", []),
        ("", []),
    ],
)
def test_parses_groups(text, groups):
    assert list(scenes.parse_caption(text).groups) == groups


def test_parses_everything_else():
    claims = scenes.parse_caption(
        "three shapes on a dark background: two red circles and a blue star. "
        "the blue star is to the left of the red circles. one is at the top"
    )
    red, blue = ("red", "circle"), ("blue", "star")
    assert claims.kinds() == {red: 2, blue: 1}
    assert (claims.total, claims.tone, claims.complete) == (3, "dark", True)
    assert claims.relations == (Relation(blue, "left of", red),)
    assert claims.placements == (Placement(1, red, "top"),)


@pytest.mark.parametrize(
    "text", ["a red circle and a big", "a red circle left of", "a blue a red ring"]
)
def test_broken_off_captions_are_incomplete(text):
    assert not scenes.parse_caption(text).complete


words = sorted(
    {word for i in range(300) for c in scenes.sample("train", 0, i).long for word in c.split()}
)


@hypothesis.given(st.one_of(st.text(), st.lists(st.sampled_from(words)).map(" ".join)))
def test_whatever_a_model_writes_is_judged(text):
    verdicts = scenes.check_caption(text, one_of_each())
    assert all(0 <= value <= 1 for value in verdicts.values())
    if verdicts["exact"]:
        assert verdicts["colours"] and verdicts["shapes"] and verdicts["counts"]
        assert verdicts["recall"] == 1


def one_of_each() -> scenes.Scene:
    """Two red circles at the left, a large dotted blue star at the right."""

    def item(colour, shape, size, texture, x, y):
        return scenes.Object(shape, colour, size, texture, x, y, 0.1, 0.0, (9, 9, 9), 0.0, 0.0)

    background = world.Background("dark", "plain", (0, 0, 0), (0, 0, 0), 0.0)
    objects = (
        item("red", "circle", "small", "solid", 0.2, 0.3),
        item("red", "circle", "large", "solid", 0.2, 0.6),
        item("blue", "star", "large", "dotted", 0.8, 0.5),
    )
    return scenes.Scene(objects, background, 0.0, 0)


@pytest.mark.parametrize(
    ("text", "failing"),
    [
        ("two red circles and a blue star", set()),
        ("a small red circle, a large red circle and a dotted blue star", set()),
        ("a blue star", {"colours", "shapes", "counts", "exact"}),
        ("two blue circles and a red star", {"exact", "true"}),
        ("a red circle and two blue stars", {"exact", "true"}),
        ("two red circles and a green star", {"colours", "exact", "true"}),
        ("two red circles and a blue ring", {"shapes", "exact", "true"}),
        ("three red circles and a blue star", {"counts", "exact", "true"}),
        ("two small red circles and a blue star", {"true"}),
        ("two red circles and a striped blue star", {"true"}),
        ("two red circles right of a blue star", {"true"}),
        ("two red circles and a blue star on a light background", {"true"}),
        ("four shapes: two red circles and a blue star", {"true"}),
        ("two red circles and a blue star. the blue star is at the top", {"true"}),
        ("two red circles and a blue star and a", set()),
        ("two red circles and a blue star and a green", {"exact", "true"}),
        ("hello", {"colours", "shapes", "counts", "exact", "true"}),
    ],
)
def test_verdicts(text, failing):
    verdicts = scenes.check_caption(text, one_of_each())
    names = ("colours", "shapes", "counts", "exact", "true")
    assert {name for name in names if not verdicts[name]} == failing


def test_partial_captions_earn_precision_and_recall():
    partial = scenes.check_caption("a blue star", one_of_each())
    assert (partial["precision"], partial["recall"]) == (1.0, 0.5)
    half_wrong = scenes.check_caption("a blue star and a pink ring", one_of_each())
    assert (half_wrong["precision"], half_wrong["recall"]) == (0.5, 0.5)


def test_class_names_parse_to_their_class():
    for index, name in enumerate(scenes.CLASS_NAMES):
        for prompt in scenes.PROMPTS:
            (group,) = scenes.parse_caption(prompt.format(name)).groups
            assert scenes.class_index((group.colour, group.shape)) == index
            assert group.count == 1
