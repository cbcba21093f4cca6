"""Triplets and galleries of edits are functions of seed and record."""

import dataclasses

import pytest

from big_mm.data import images, scenes
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Records of the easy world; every third has two equal objects and nothing to edit."""

    count: int = 6

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        record = scenes.features("train", 0, index, 32, world=scenes.WORLDS["easy"])
        scene = scenes.Scene.from_json(record["scene"])
        if index % 3 == 0:
            twin = scene.objects[0]
            scene = dataclasses.replace(scene, objects=(twin, twin))
        graph = scene.to_json().encode()
        return {"image": record["image"], "key": record["key"], "scene": [graph], "captions": []}

    def where(self, index):
        return f"record {index}"


def test_a_triplet_shows_what_its_words_say():
    source = scenes.Edited(Scenes())
    again = scenes.Edited(Scenes())
    words = []
    for index in range(len(source)):
        record = source[index]
        assert again[index] == record
        (said,) = record["captions"]
        words.append(said)
        before, after = (images.decode(record[k]) for k in ("image", "target_image"))
        assert before.shape == after.shape and (before != after).any()
    # A scene without anything to edit lends its place to the next, with words of its own seed.
    assert source[0]["key"] == source[1]["key"]
    other = scenes.Edited(Scenes(), seed=1)
    assert words != [other[i]["captions"][0] for i in range(len(other))]
    assert source.where(2) == "record 2"


def test_a_gallery_holds_scenes_and_different_edits():
    gallery = scenes.Variations(Scenes(), count=3, limit=2)
    assert len(gallery) == 2 * 4
    records = [gallery[i] for i in range(len(gallery))]
    assert len({record["key"] for record in records}) == 8
    for place in (0, 4):
        edits = gallery.edits[place // 4][1]
        assert len({edit.words for edit in edits}) == 3
        assert len({record["image"] for record in records[place : place + 4]}) == 4
        assert records[place]["key"] == gallery.key(place // 4)
        assert records[place + 2]["key"] == gallery.key(place // 4, 1)


def test_what_cannot_be_edited():
    bare = dataclasses.make_dataclass(
        "Bare",
        [],
        namespace={
            "__len__": lambda self: 1,
            "__getitem__": lambda self, index: {"image": b""},
            "where": lambda self, index: "there",
        },
    )()
    with pytest.raises(UserError, match="there has no scene graph"):
        scenes.Edited(bare)[0]
    with pytest.raises(UserError, match="none of the 1 scenes"):
        scenes.Edited(Scenes(1))[0]
    with pytest.raises(UserError, match="no scene has 2 edits"):
        len(scenes.Variations(Scenes(1)))
