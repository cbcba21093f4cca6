"""An edit changes what its words say, and nothing else."""

import collections

import numpy as np
import pytest

from big_mm.data import scenes
from big_mm.data.scenes import edits
from big_mm.spec import UserError


def draws(count, kinds=edits.KINDS):
    rng = np.random.default_rng(0)
    for i in range(count):
        scene = scenes.sample("retrieval_seen", 0, i).scene
        try:
            yield scene, scenes.edit(rng, scene, kinds)
        except UserError:
            continue


def kinds_of(scene):
    return collections.Counter(item.kind for item in scene.objects)


def test_an_edit_does_what_it_says():
    seen = collections.Counter()
    for scene, edit in draws(200):
        before, after = kinds_of(scene), kinds_of(edit.scene)
        gone, new = list((before - after).elements()), list((after - before).elements())
        words = edit.words.split()
        assert len(gone) == 1 and f"the {gone[0][0]} {gone[0][1]}" in edit.words
        if edit.kind == "remove":
            assert not new and words[0] == "remove"
        else:
            assert len(new) == 1 and after[new[0]] == 1
            index = 0 if edit.kind == "recolour" else 1
            assert words[-1] == new[0][index] and new[0][1 - index] == gone[0][1 - index]
        seen[edit.kind] += 1
    assert set(seen) == set(edits.KINDS) and min(seen.values()) > 20


def test_the_picture_changes_where_the_object_is():
    for scene, edit in draws(20, ("recolour", "reshape")):
        first, second = (scenes.render(s, 48).image.astype(int) for s in (scene, edit.scene))
        changed = np.abs(first - second).sum(axis=-1) > 12
        pairs = zip(scene.objects, edit.scene.objects, strict=True)
        place = next(i for i, (a, b) in enumerate(pairs) if a != b)
        item = scene.objects[place]
        rows, columns = np.nonzero(changed)
        reach = 1.3 * item.radius * 48 + 1.5
        assert changed.any()
        assert np.hypot(columns - item.x * 48, rows - item.y * 48).max() <= reach


def test_colours_are_exchanged():
    scene = scenes.sample("retrieval_seen", 0, 3).scene
    swapped = scenes.swap_colours(scene, 0, 1)
    assert [o.colour for o in swapped.objects[:2]] == [o.colour for o in scene.objects[1::-1]]
    assert [o.shape for o in swapped.objects] == [o.shape for o in scene.objects]
    assert scenes.swap_colours(swapped, 0, 1) == scene


def test_a_scene_without_a_single_object_is_refused():
    world = scenes.World(count_weights=(0.0, 1.0), kind_weights=(1.0,))
    scene = scenes.sample("train", 0, 0, world).scene
    with pytest.raises(UserError, match="nothing to recolour: draw another one"):
        scenes.edit(np.random.default_rng(0), scene, ("recolour",))
