"""Which scenes belong to which split: held-out combinations, held-out phrasings, sub-tasks.

12 of the 64 colour-shape combinations are never seen in training: each colour and each shape is in
one or two of them, so every colour and every shape is trained on. A scene of an `unseen` split
consists of held-out combinations only, so that nothing in it can be recognised whole.
"""

import dataclasses
import zlib

import numpy as np

from big_mm.data.scenes.language import DEFAULT_GRAMMAR, Grammar
from big_mm.data.scenes.sampling import DEFAULT_WORLD, World
from big_mm.data.scenes.world import COLOURS, NUM_CLASSES, SHAPES, Kind, Scene, class_kind
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
    """A population of scenes: the allowed kinds, and changes of the world's options."""

    kinds: tuple[Kind, ...]
    world: dict = dataclasses.field(default_factory=dict)
    about: str = ""


_ONE = {"count_weights": (1.0,)}
# Two or three kinds, so that descriptions differ among 1,000 scenes.
_MANY = {"count_weights": (0.0, 0.25, 0.25, 0.2, 0.15, 0.15), "kind_weights": (0.0, 0.5, 0.5)}

SPLITS = {
    "train": Split(SEEN_KINDS, about="scenes of the 52 seen combinations"),
    "test_seen": Split(SEEN_KINDS, about="new scenes of seen combinations"),
    "test_unseen": Split(UNSEEN_KINDS, about="scenes of only the 12 held-out combinations"),
    "zero_shot_seen": Split(SEEN_KINDS, _ONE, "one object, a seen combination, with label"),
    "zero_shot_unseen": Split(UNSEEN_KINDS, _ONE, "one object, held out, with label"),
    "retrieval_seen": Split(SEEN_KINDS, _MANY, "2 to 6 objects of 2 or 3 seen kinds"),
    "retrieval_unseen": Split(UNSEEN_KINDS, _MANY, "2 to 6 objects of 2 or 3 held-out kinds"),
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
    chosen = find_split(split)
    world = dataclasses.replace(world, **chosen.world)
    sequence = np.random.SeedSequence((zlib.crc32(split.encode()), seed, index))
    for_scene, for_captions, for_held_out = (
        np.random.Generator(np.random.Philox(child)) for child in sequence.spawn(3)
    )
    scene = world.sample(for_scene, chosen.kinds)
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
