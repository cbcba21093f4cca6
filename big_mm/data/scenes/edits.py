"""Edits of scenes in words, and the scenes they lead to: for composed retrieval and swaps."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from big_mm.data.scenes.sampling import nominal_rgb
from big_mm.data.scenes.world import COLOURS, SHAPES, Object, Scene
from big_mm.spec import UserError

KINDS = ("recolour", "reshape", "remove")


@dataclasses.dataclass(frozen=True)
class Edit:
    """What to do with a scene in words, one of KINDS, and the edited scene."""

    words: str
    kind: str
    scene: Scene


def edit(rng: np.random.Generator, scene: Scene, kinds: Sequence[str] = KINDS) -> Edit:
    """A random edit of one object that its colour and shape single out; all else stays.

    The changed object gets a colour and shape that no other one has, so that the words name one
    result. The last object is never removed.

    Raises:
      UserError: no object is singled out, or none can be edited so.
    """
    groups = scene.groups()
    single = [i for i, item in enumerate(scene.objects) if len(groups[item.kind]) == 1]
    allowed = [kind for kind in kinds if kind != "remove" or len(scene.objects) > 1]
    if not single or not allowed:
        raise UserError(f"the scene has nothing to {' or '.join(kinds)}: draw another one")
    place = single[int(rng.integers(len(single)))]
    kind = allowed[int(rng.integers(len(allowed)))]
    item = scene.objects[place]
    name = f"the {item.colour} {item.shape}"
    if kind == "remove":
        return Edit(f"remove {name}", kind, _with(scene, place, None))
    if kind == "recolour":
        free = [c for c in COLOURS if (c, item.shape) not in groups]
        colour = free[int(rng.integers(len(free)))]
        changed = dataclasses.replace(item, colour=colour, rgb=nominal_rgb(colour))
        return Edit(f"make {name} {colour}", kind, _with(scene, place, changed))
    free = [s for s in SHAPES if (item.colour, s) not in groups]
    shape = free[int(rng.integers(len(free)))]
    changed = dataclasses.replace(item, shape=shape)
    return Edit(f"turn {name} into a {shape}", kind, _with(scene, place, changed))


def swap_colours(scene: Scene, first: int, second: int) -> Scene:
    """The scene with the colours of two of its objects exchanged."""
    one, other = scene.objects[first], scene.objects[second]
    exchanged = _with(scene, first, dataclasses.replace(one, colour=other.colour, rgb=other.rgb))
    return _with(exchanged, second, dataclasses.replace(other, colour=one.colour, rgb=one.rgb))


def _with(scene: Scene, place: int, item: Object | None) -> Scene:
    before, after = scene.objects[:place], scene.objects[place + 1 :]
    return dataclasses.replace(scene, objects=before + (() if item is None else (item,)) + after)
