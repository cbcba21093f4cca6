"""Records of scenes with edits of them, for composed retrieval."""

import dataclasses
import functools
from typing import Any

import numpy as np
import simplejpeg

from big_mm.data.records import Source
from big_mm.data.scenes.described import scene_of
from big_mm.data.scenes.edits import KINDS, Edit, edit
from big_mm.data.scenes.rendering import render
from big_mm.data.scenes.world import Scene
from big_mm.data.scenes.writer import to_jpeg
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Edited:
    """Triplets: `image`, the edit in words as the only caption, and `target_image`, encoded alike.

    The edit is a function of seed and record. A scene in which nothing can be edited gives its
    place to the next one.

    Attributes:
      source: records with an image and a scene graph; its schema needs extra=("scene",).
      kinds: of edits, see `edits.KINDS`.
    """

    source: Source
    kinds: tuple[str, ...] = KINDS
    seed: int = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for place in range(index, index + len(self)):
            record = self.source[place % len(self)]
            made = edits_of(record, self.where(index), self.kinds, (self.seed, index), 1)
            if made:
                target = picture(record, made[0].scene)
                return record | {"captions": [made[0].words], "target_image": target}
        raise UserError(f"none of the {len(self)} scenes can be edited by {self.kinds}")

    def where(self, index: int) -> str:
        return self.source.where(index)


@dataclasses.dataclass(frozen=True)
class Variations:
    """A gallery of near-copies: each scene, then several edits of it, as records of their own.

    A record has the key KEY or KEY/edit-N. `edits` says which edit leads to which.

    Attributes:
      source: as of `Edited`.
      count: different edits of a scene.
      limit: only the first scenes that have so many.
    """

    source: Source
    count: int = 2
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    limit: int | None = None

    @functools.cached_property
    def edits(self) -> tuple[tuple[int, tuple[Edit, ...]], ...]:
        """The scenes' places in the source, and the edits of each."""
        found: list[tuple[int, tuple[Edit, ...]]] = []
        for index in range(len(self.source)):
            if len(found) == self.limit:
                break
            record = self.source[index]
            seeds = (self.seed, index)
            made = edits_of(record, self.source.where(index), self.kinds, seeds, self.count)
            if len(made) == self.count:
                found.append((index, made))
        if not found:
            raise UserError(f"no scene has {self.count} edits of the kinds {self.kinds}")
        return tuple(found)

    def key(self, scene: int, edited: int | None = None) -> str:
        """Of the scene's record, or of one of its edits."""
        key = self.source[self.edits[scene][0]]["key"]
        return key if edited is None else f"{key}/edit-{edited}"

    def __len__(self) -> int:
        return len(self.edits) * (1 + self.count)

    def __getitem__(self, index: int) -> dict[str, Any]:
        scene, number = divmod(index, 1 + self.count)
        place, made = self.edits[scene]
        record = self.source[place]
        if not number:
            return record
        target = picture(record, made[number - 1].scene)
        return record | {"image": target, "key": self.key(scene, number - 1)}

    def where(self, index: int) -> str:
        scene, number = divmod(index, 1 + self.count)
        return f"{self.source.where(self.edits[scene][0])}, edit {number}"


def edits_of(
    record: dict[str, Any], where: str, kinds: tuple[str, ...], seeds: tuple[int, ...], count: int
) -> tuple[Edit, ...]:
    """Up to `count` different edits of a record's scene; none where nothing can be edited.

    Raises:
      UserError: the record has no scene graph.
    """
    scene, made = scene_of(record, where), {}
    rng = np.random.default_rng(seeds)
    for _ in range(10 * count):
        try:
            drawn = edit(rng, scene, kinds)
        except UserError:
            break
        made.setdefault(drawn.words, drawn)
    return tuple(made.values())[:count]


def picture(record: dict[str, Any], scene: Scene) -> bytes:
    """The scene as large and encoded as the record's picture."""
    height, *_ = simplejpeg.decode_jpeg_header(record["image"])
    return to_jpeg(render(scene, height).image)
