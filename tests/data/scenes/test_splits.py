"""Held-out combinations stay held out, splits differ, and scenes are as their options say."""

import collections
import dataclasses

import numpy as np
import pytest

from big_mm.data import scenes
from big_mm.data.scenes import world
from big_mm.spec import UserError

NUM = 600


def drawn(split: str, num: int = NUM, seed: int = 0) -> list[scenes.Scene]:
    """The first scenes of a split, without the time it takes to caption them."""
    silent = scenes.Grammar(num_short=0, num_long=0)
    return [scenes.sample(split, seed, index, grammar=silent).scene for index in range(num)]


def kinds_of(split: str) -> list[set]:
    return [{item.kind for item in scene.objects} for scene in drawn(split)]


def test_held_out_combinations_are_balanced():
    assert len(scenes.SEEN_KINDS) == 52 and len(scenes.UNSEEN_KINDS) == 12
    assert not set(scenes.SEEN_KINDS) & set(scenes.UNSEEN_KINDS)
    for values in zip(*scenes.UNSEEN_KINDS, strict=True):
        counts = collections.Counter(values)
        assert len(counts) == 8 and set(counts.values()) == {1, 2}


def test_training_never_shows_a_held_out_combination():
    for kinds in kinds_of("train"):
        assert not kinds & set(scenes.UNSEEN_KINDS)


def test_unseen_scenes_show_nothing_else():
    for kinds in kinds_of("test_unseen"):
        assert kinds <= set(scenes.UNSEEN_KINDS)


@pytest.mark.parametrize(("name", "allowed"), [("seen", 52), ("unseen", 12)])
def test_zero_shot_scenes_have_one_labelled_object(name, allowed):
    labels = set()
    for scene in drawn(f"zero_shot_{name}"):
        (item,) = scene.objects
        assert scene.label == world.COLOURS.index(item.colour) * 8 + world.SHAPES.index(item.shape)
        assert scenes.class_kind(scene.label) == item.kind
        labels.add(scene.label)
    assert len(labels) == allowed


def test_retrieval_scenes_have_several_kinds_and_no_label():
    for scene in drawn("retrieval_unseen"):
        assert 2 <= len(scene.groups()) <= 3 and scene.label == -1


def test_splits_and_seeds_share_no_scene():
    texts = [
        scene.to_json()
        for split in ("train", "test_seen")
        for seed in (0, 1)
        for scene in drawn(split, 200, seed)
    ]
    assert len(set(texts)) == len(texts)


def test_the_training_mix():
    samples = drawn("train", 2000)
    counts = collections.Counter(len(scene.objects) for scene in samples)
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert 0.25 < counts[1] / 2000 < 0.31
    repeated = sum(max(map(len, scene.groups().values())) > 1 for scene in samples)
    assert repeated / 2000 > 0.4
    for field in ("shape", "colour", "size", "texture"):
        values = collections.Counter(getattr(o, field) for s in samples for o in s.objects)
        assert set(values) == set(getattr(world, field.upper() + "S"))
        assert min(values.values()) > 0.04 * sum(values.values())


def test_objects_overlap_little_and_stay_inside():
    options = scenes.World()
    for scene in drawn("train", seed=2):
        for i, item in enumerate(scene.objects):
            assert item.radius <= item.x <= 1 - item.radius
            assert item.radius <= item.y <= 1 - item.radius
            for other in scene.objects[:i]:
                assert world.separation(item, other) > 1 - options.max_overlap - 0.01


def test_relations_are_antisymmetric():
    opposite = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
    for scene in drawn("retrieval_seen", 100):
        for a in scene.objects:
            for b in scene.objects:
                found = world.relation(a, b)
                assert world.relation(b, a) == (opposite[found] if found else None)


def test_grammar_does_not_change_the_scene():
    plain = scenes.sample("train", 0, 7)
    terse = scenes.sample("train", 0, 7, grammar=scenes.Grammar(num_short=1, num_long=0))
    assert plain.scene == terse.scene
    assert (len(terse.short), terse.long) == (1, [])


def test_options_are_checked():
    with pytest.raises(UserError, match="count_weights"):
        scenes.World(count_weights=())
    with pytest.raises(UserError, match="kind_weights"):
        scenes.World(kind_weights=(0.0,))
    with pytest.raises(UserError, match="radii"):
        scenes.World(radii=((0.2, 0.2), (0.3, 0.3), (0.4, 0.4)))
    with pytest.raises(UserError, match="no split 'tain'.*train"):
        scenes.sample("tain", 0, 0)
    with pytest.raises(UserError, match="retrieval_seen.*2 to 6 objects"):
        scenes.sample("retrieval_seen", 0, 0, world=scenes.World(count_weights=(1.0,)))


def test_splits_keep_the_options_of_the_world():
    world = scenes.World(count_weights=(0.5, 0.3, 0.2))
    sizes = collections.Counter(
        len(scenes.sample("retrieval_seen", 0, index, world).scene.objects) for index in range(200)
    )
    assert set(sizes) == {2, 3} and sizes[2] > sizes[3]


def test_long_captions_tell_a_thousand_scenes_apart():
    """A bound on what retrieval can reach: few long captions fit two of 1,000 scenes."""
    one_long = scenes.Grammar(num_short=0, num_long=1)
    captions = [
        scenes.sample("retrieval_seen", 0, index, grammar=one_long).long[0] for index in range(1000)
    ]
    assert len(set(captions)) > 990


def test_scenes_survive_json():
    for scene in drawn("train", 50):
        again = scenes.Scene.from_json(scene.to_json())
        assert again == scene
        assert dataclasses.asdict(again) == dataclasses.asdict(scene)
        np.testing.assert_array_equal(
            scenes.render(again, 32).image, scenes.render(scene, 32).image
        )
