"""Plain captions of chosen detail, alone and before a record's own."""

import dataclasses

import hypothesis
import pytest
from hypothesis import strategies as st

from big_mm.data import scenes
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Records with the scene graph alone, as bytes in a list."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"scene": [scenes.sample("train", 5, index).scene.to_json().encode()]}

    def where(self, index):
        return f"scene {index}"


def scene_of(*kinds):
    """A scene with objects of these kinds, the first ones the largest."""
    drawn = scenes.sample("train", 0, 0).scene
    objects = [
        dataclasses.replace(drawn.objects[0], colour=colour, shape=shape, radius=1 / (i + 2))
        for i, (colour, shape) in enumerate(kinds)
    ]
    return dataclasses.replace(drawn, objects=tuple(objects))


def test_each_detail():
    scene = scene_of(("red", "circle"), ("red", "circle"), ("red", "star"), ("orange", "circle"))
    assert {detail: scenes.describe(scene, detail) for detail in scenes.DETAILS} == {
        "number": "four shapes",
        "groups": "two shapes, a shape and a shape",
        "shapes": "three circles and a star",
        "colours": "three red shapes and an orange shape",
        "kinds": "two red circles, a red star and an orange circle",
    }
    single = scene_of(("pink", "cross"))
    said = [scenes.describe(single, detail) for detail in scenes.DETAILS]
    assert said == ["one shape", "a shape", "a cross", "a pink shape", "a pink cross"]


@hypothesis.given(st.sampled_from(sorted(scenes.SPLITS)), st.integers(0, 10**6))
def test_kinds_are_the_whole_truth(split, index):
    scene = scenes.sample(split, 6, index).scene
    expected = {kind: len(members) for kind, members in scene.groups().items()}
    assert scenes.parse_caption(scenes.describe(scene, "kinds")).kinds() == expected


def test_captions_stand_before_the_records_own():
    source = scenes.Described(Scenes(), ("kinds", "number", "kinds"))
    scene = scenes.sample("train", 5, 3).scene
    kinds, number = scenes.describe(scene, "kinds"), scenes.describe(scene, "number")
    assert source[3]["captions"] == [kinds, number, kinds]
    assert (len(source), source.where(3)) == (20, "scene 3")
    twice = scenes.Described(source, ("number",))
    assert twice[3]["captions"] == [number, kinds, number, kinds]
    other = scenes.Described(source, ("number",), out="other")[3]
    assert (other["other"], other["captions"]) == ([number], [kinds, number, kinds])


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="detail='kind' is none of number, groups"):
        scenes.Described(Scenes(), ("kind",))
    with pytest.raises(UserError, match="detail='all'"):
        scenes.describe(scene_of(("red", "star")), "all")

    class Bare(Scenes):
        def __getitem__(self, index):
            return {}

    with pytest.raises(UserError, match="scene 2 has no scene graph"):
        scenes.Described(Bare(), ("kinds",))[2]
