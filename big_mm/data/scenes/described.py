"""Records with plain captions of chosen detail, made from their scene graph."""

import dataclasses
from typing import Any

from big_mm.data.records import Source
from big_mm.data.scenes.language import DETAILS, describe
from big_mm.data.scenes.world import Scene
from big_mm.spec import UserError, choose


@dataclasses.dataclass(frozen=True)
class Described:
    """A source of scenes with a caption for each of `details`, before those that `out` holds.

    Attributes:
      source: records with a scene graph; its schema needs extra=("scene",).
      details: how much each caption says, see `language.describe`; one may be named repeatedly.
      out: the record's key with the captions.
    """

    source: Source
    details: tuple[str, ...]
    out: str = "captions"

    def __post_init__(self) -> None:
        for detail in self.details:
            choose("detail", detail, DETAILS)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        scene = scene_of(record, self.where(index))
        said = [describe(scene, detail) for detail in self.details]
        return record | {self.out: [*said, *record.get(self.out, ())]}

    def where(self, index: int) -> str:
        return self.source.where(index)


def scene_of(record: dict[str, Any], where: str) -> Scene:
    """The record's scene graph.

    Raises:
      UserError: it has none.
    """
    if "scene" not in record:
        raise UserError(f'{where} has no scene graph: give the schema extra=("scene",)')
    graph = record["scene"][0]
    return Scene.from_json(graph.decode() if isinstance(graph, bytes) else graph)
