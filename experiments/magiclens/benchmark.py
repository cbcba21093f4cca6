"""Edits of scenes as a benchmark of composed retrieval."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from big_mm.data.scenes import Variations
from big_mm.evaluators.composed_benchmarks import Query


@dataclasses.dataclass(frozen=True)
class SceneEdits:
    """Each edit of each scene asks for its result among all scenes and all results, of which the
    scene itself and its other edits are the nearest.
    """

    source: Variations

    recalls: ClassVar[tuple[int, ...]] = (1, 5)
    subset_recalls: ClassVar[tuple[int, ...]] = ()
    precisions: ClassVar[tuple[int, ...]] = (5,)
    keep_reference: ClassVar[bool] = True
    galleries: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        source = self.source
        return tuple(
            Query(source.key(i, j), source.key(i), made.words, (source.key(i, j),))
            for i, (_, edits) in enumerate(source.edits)
            for j, made in enumerate(edits)
        )

    def facts(self) -> dict[str, Any]:
        return {"gallery": "all scenes and their edits", "edits": self.source.count}
