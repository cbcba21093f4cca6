"""Which scenes belong to which split: held-out combinations, held-out phrasings, sub-tasks.

12 of the 64 colour-shape combinations are never seen in training: each colour and each shape is in
one or two of them, so every colour and every shape is trained on. A scene of an `unseen` split
consists of held-out combinations only, so that nothing in it can be recognised whole.
"""

import dataclasses
import functools
import zlib

import numpy as np

from big_mm.data.scenes.language import DEFAULT_GRAMMAR, Grammar
from big_mm.data.scenes.sampling import DEFAULT_WORLD, World
from big_mm.data.scenes.world import (
    COLOURS,
    MAX_OBJECTS,
    NUM_CLASSES,
    SHAPES,
    Kind,
    Scene,
    class_kind,
)
from big_mm.spec import UserError

# A diagonal of the table of colours and shapes, and every other cell of another one.
UNSEEN_KINDS: tuple[Kind, ...] = tuple(zip(COLOURS, SHAPES, strict=True)) + tuple(
    (COLOURS[i], SHAPES[(i + 3) % len(SHAPES)]) for i in range(0, len(COLOURS), 2)
)
SEEN_KINDS: tuple[Kind, ...] = tuple(
    kind for kind in map(class_kind, range(NUM_CLASSES)) if kind not in UNSEEN_KINDS
)


@dataclasses.dataclass(frozen=True)
class Split:
    """A population of scenes: the allowed kinds, the least and most objects and kinds a scene."""

    about: str
    kinds: tuple[Kind, ...]
    num_objects: tuple[int, int] = (1, MAX_OBJECTS)
    num_kinds: tuple[int, int] = (1, MAX_OBJECTS)


_ONE = {"num_objects": (1, 1)}
# With several kinds, descriptions of 1,000 scenes differ.
_MANY = {"num_objects": (2, MAX_OBJECTS), "num_kinds": (2, MAX_OBJECTS)}

SPLITS = {
    "train": Split("scenes of the 52 seen combinations", SEEN_KINDS),
    "test_seen": Split("new scenes of seen combinations", SEEN_KINDS),
    "test_unseen": Split("scenes of only the 12 held-out combinations", UNSEEN_KINDS),
    "zero_shot_seen": Split("one object, of a seen combination", SEEN_KINDS, **_ONE),
    "zero_shot_unseen": Split("one object, of a held-out combination", UNSEEN_KINDS, **_ONE),
    "retrieval_seen": Split("two or more kinds of objects, seen", SEEN_KINDS, **_MANY),
    "retrieval_unseen": Split("two or more kinds of objects, held out", UNSEEN_KINDS, **_MANY),
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """A scene and its captions; `held_out`: in phrasings that training never uses."""

    key: str
    scene: Scene
    short: list[str]
    long: list[str]
    held_out: list[str]


def find_split(name: str) -> Split:
    """The split of this name; `UserError` lists the names otherwise."""
    if name not in SPLITS:
        raise UserError(f"no split {name!r} of scenes; there are: {', '.join(SPLITS)}")
    return SPLITS[name]


@functools.lru_cache
def restrict(world: World, split: str) -> World:
    """The world of a split: what it excludes has no weight; the rest keeps its proportions."""
    chosen = find_split(split)
    return dataclasses.replace(
        world,
        count_weights=_within(chosen.num_objects, world.count_weights, split, "objects"),
        kind_weights=_within(chosen.num_kinds, world.kind_weights, split, "kinds of objects"),
    )


def _within(limits: tuple[int, int], weights: tuple[float, ...], split: str, what: str):
    low, high = limits
    kept = tuple(w if low <= n <= high else 0.0 for n, w in enumerate(weights, 1))
    if not sum(kept):
        raise UserError(
            f"split {split!r} has {low} to {high} {what} a scene, which the weights {weights} "
            f"of 1, 2, ... {what} exclude"
        )
    return kept


def sample(
    split: str,
    seed: int,
    index: int,
    world: World = DEFAULT_WORLD,
    grammar: Grammar = DEFAULT_GRAMMAR,
) -> Sample:
    """Record `index` of a split: a pure function of its arguments.

    The scene does not depend on the grammar, nor one kind of captions on another.
    """
    for_scene, for_captions, for_held_out = _generators(split, seed, index)
    scene = restrict(world, split).sample(for_scene, find_split(split).kinds)
    held_out = []
    if split != "train":
        held_out = grammar.short(for_held_out, scene, held_out=True)
        held_out += grammar.long(for_held_out, scene, held_out=True)
    return Sample(
        key=f"{split}/{seed}/{index:08d}",
        scene=scene,
        short=grammar.short(for_captions, scene),
        long=grammar.long(for_captions, scene),
        held_out=held_out,
    )


def sample_scene(split: str, seed: int, index: int, world: World = DEFAULT_WORLD) -> Scene:
    """The scene of `sample`, without its captions."""
    for_scene, *_ = _generators(split, seed, index)
    return restrict(world, split).sample(for_scene, find_split(split).kinds)


def _generators(split: str, seed: int, index: int) -> list[np.random.Generator]:
    """Of a record's scene, its captions, and those held out."""
    sequence = np.random.SeedSequence((zlib.crc32(split.encode()), seed, index))
    return [np.random.Generator(np.random.Philox(child)) for child in sequence.spawn(3)]
