"""Context sets from annotations, their distances, and what evaluators see of them."""

import dataclasses
import functools
import json

import numpy as np
import oracles
import pytest

from big_mm.data import scenes
from big_mm.evaluators import GroupGap, ZeroShot
from big_mm.evaluators.contexts import ContextSets, InContext, Scenes, VisualGenome
from big_mm.spec import UserError

PLACES = ("bed", "sofa", "shelf", "desk", "tree", "car")


def seen(i):
    """An animal between two neighbouring places of a row, every 24th image with both animals."""
    place = i // 4 % 6
    around = {PLACES[place], PLACES[min(place + i % 2, 5)]}
    return {"cat", "dog"} | around if i % 24 == 23 else {("cat", "dog")[i // 24 % 2]} | around


@dataclasses.dataclass(frozen=True)
class Seen:
    count: int = 240

    def objects(self):
        return {f"n{i}": frozenset(seen(i)) for i in range(self.count)}


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


@pytest.fixture
def contexts():
    return ContextSets(Seen(), ("cat", "dog"), smallest=5, dimensions=1)


def test_sets_are_those_of_the_annotations(contexts):
    assert list(contexts.sets) == ["cat", "dog"]
    expected = {f"n{i}" for i in range(240) if {"dog", "sofa"} <= seen(i) and "cat" not in seen(i)}
    assert contexts["dog(sofa)"] == expected and len(expected) > 20
    every = ContextSets(Seen(), smallest=5).sets
    assert set(every) == {"cat", "dog", *PLACES} - {n for n in PLACES if n not in every}
    assert every["cat"]["cat(dog)"] == every["dog"]["dog(cat)"]  # both may be seen now
    with pytest.raises(UserError, match="there is no set 'dog.moon.'; there are cat.bed., "):
        contexts["dog(moon)"]
    with pytest.raises(UserError, match="'cat' has 0 contexts of 99 images, fewer than 6"):
        dataclasses.replace(contexts, smallest=99)["cat(bed)"]
    with pytest.raises(UserError, match="no object has 6 contexts of 999"):
        ContextSets(Seen(), smallest=999).sets["cat"]


def test_distances_grow_along_the_row(contexts):
    distances = contexts.distances("dog(bed)")
    assert list(distances) == [f"dog({place})" for place in PLACES[1:]]
    assert min(distances.values()) > 0
    # Without any edge to the first two, the others still have distances among themselves.
    apart = {f"m{i}": frozenset({"dog", "moon"}) for i in range(9)}

    class Far(Seen):
        def objects(self):
            return super().objects() | apart

    far = dataclasses.replace(contexts, annotations=Far()).distances("dog(bed)")
    assert far.pop("dog(moon)") == float("inf") and far == pytest.approx(distances)


def test_merged_sets_are_communities(contexts):
    merged = dataclasses.replace(contexts, merge=True)
    alone, together = contexts.sets["cat"], merged.sets["cat"]
    assert len(together) < len(alone) and set(together) <= set(alone)
    assert frozenset().union(*together.values()) == frozenset().union(*alone.values())


def test_both_formats_of_visual_genome(tmp_path):
    rows = [(7, ["Cat ", "sofa"]), (8, ["dog", "sofa", "dog"])]
    ours, gqa = tmp_path / "objects.json", tmp_path / "sceneGraphs.json"
    ours.write_text(
        json.dumps(
            [{"image_id": n, "objects": [{"names": [x]} for x in found]} for n, found in rows]
        )
    )
    gqa.write_text(
        json.dumps(
            {
                str(n): {"objects": {str(j): {"name": x} for j, x in enumerate(found)}}
                for n, found in rows
            }
        )
    )
    expected = {"v7": {"cat", "sofa"}, "v8": {"dog", "sofa"}}
    assert VisualGenome(str(ours), "v{}").objects() == expected
    assert VisualGenome(str(gqa), "v{}").objects() == expected
    ours.write_text(json.dumps([{"image_id": 7, "objects": None}]))
    with pytest.raises(UserError, match="image 7 has no objects"):
        VisualGenome(str(ours)).objects()
    ours.write_text(json.dumps([{"image_id": 7, "objects": []}] * 2))
    with pytest.raises(UserError, match="image 7 comes up twice"):
        VisualGenome(str(ours)).objects()


def test_scene_graphs_of_the_embedded_world():
    drawn = [scenes.sample("train", 0, i).scene for i in range(5)]
    source = oracles.Numbered(5, lambda i: {"scene": [drawn[i].to_json().encode()]}, damaged=(3,))
    found = Scenes(source, named="{colour} {shape}").objects()
    assert list(found) == ["n0", "n1", "n2", "n4"]
    for i in (0, 1, 2, 4):
        kinds = {" ".join(kind) for kind in drawn[i].groups()}
        assert found[f"n{i}"] == kinds | {f"{drawn[i].background.tone} background"}
    assert "background" not in "".join(Scenes(source, background="").objects()["n0"])
    with pytest.raises(UserError, match="record 'n0' has nothing in 'graph'"):
        Scenes(source, "graph").objects()


def test_the_gap_between_contexts_is_measured(contract, contexts):
    """A model that takes every animal on a shelf for a cat."""
    chosen = ("cat(shelf)", "cat(car)", "dog(shelf)", "dog(car)")
    source = InContext(oracles.Numbered(240), contexts, chosen)
    for record in (source[0], source[len(source) - 1]):
        assert record["key"] in contexts[record["context"]]
        assert record["class_name"] == ("cat", "dog")[record["label"]]
    vector = functools.partial(np.eye(2).__getitem__)
    oracle = oracles.Oracle(
        contract,
        lambda n: vector(int("dog" in seen(n) and "shelf" not in seen(n))),
        lambda text: vector(int(text == "dog")),
    )
    result = GroupGap(ZeroShot(source, ("cat", "dog")), "context").evaluate(oracle, 0)
    values = result.values
    assert values["accuracy_dog(shelf)"] == values["accuracy_worst"] == 0
    assert values["accuracy_cat(shelf)"] == values["accuracy_dog(car)"] == 1
    assert values["accuracy_gap"] == 1 and values["groups"] == 4
    train = InContext(source.images, contexts, ("dog(desk)", "cat(desk)"), without=chosen)
    mine = {train[i]["key"] for i in range(len(train))}
    theirs = {source[i]["key"] for i in range(len(source))}
    assert mine and not mine & theirs
    with pytest.raises(UserError, match="no image is left of dog.desk."):
        len(InContext(source.images, contexts, ("dog(desk)",), without=("dog(desk)",)))
    with pytest.raises(UserError, match="images are not among the sound records"):
        len(InContext(oracles.Numbered(50), contexts, chosen))
