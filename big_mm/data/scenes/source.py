"""Scenes rendered as they are read: a source without files."""

import dataclasses
from typing import Any

from big_mm.data.scenes import splits, writer
from big_mm.data.scenes.sampling import DEFAULT_WORLD, World
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """The records that `write` would write (`features`), about a millisecond each.

    Attributes:
      split: a name in `SPLITS`.
      count: of the records.
      captions: the feature that becomes `captions`.
    """

    split: str
    count: int
    image_size: int
    seed: int = 0
    world: World = DEFAULT_WORLD
    captions: str = "caption_short"

    def __post_init__(self) -> None:
        splits.restrict(self.world, self.split)
        if self.count < 1:
            raise UserError(f"SceneSource: count={self.count} must be at least 1")
        if self.captions not in self[0]:
            raise UserError(f"SceneSource: {self.split!r} has no captions={self.captions!r}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        record = writer.features(self.split, self.seed, index, self.image_size, self.world)
        return record | {"captions": record.get(self.captions)}

    def class_number(self, index: int) -> int:
        """The label of a record, without its picture."""
        return splits.sample_scene(self.split, self.seed, index, self.world).label

    def where(self, index: int) -> str:
        return f"scene {self.split}/{self.seed}/{index:08d}"
