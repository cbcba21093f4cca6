"""Detailed captions compared by what they say: objects, attributes, relations."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np

from big_mm.data import scenes
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics import caption_graph
from big_mm.metrics.caption_graph import Graph
from big_mm.spec import UserError


class Parser(Protocol):
    """From a caption to its graph, lemmatised."""

    def __call__(self, caption: str) -> Graph: ...


@dataclasses.dataclass(frozen=True)
class SceneParser:
    """The embedded world's parser: shapes, what is said of them, how they stand to each other."""

    def __call__(self, caption: str) -> Graph:
        claims = scenes.parse_caption(caption)
        said = [(g.colour, g.size, g.texture, g.count and str(g.count)) for g in claims.groups]
        return Graph(
            tuple(dict.fromkeys(group.shape for group in claims.groups)),
            tuple(word for words in said for word in words if word),
            tuple(dict.fromkeys((r.subject[1], r.name, r.target[1]) for r in claims.relations)),
        )


@dataclasses.dataclass(frozen=True)
class GraphF1:
    """CAPTURE (arXiv:2405.19092) as a `Captioning.scorer`: the mean over the references of the
    weighted F1 of objects, attributes and relations (`metrics.caption_graph`).

    The published numbers use the FACTUAL parser, WordNet and a sentence encoder; give them as
    `parser`, `synonyms` and `soft` to reproduce them.

    Attributes:
      parser: a `Parser`.
      synonyms, soft: as `metrics.caption_graph.compare` takes them.
      references: the record's key with the reference captions.
    """

    parser: Any = SceneParser()
    synonyms: Any = None
    soft: Any = None
    references: str = "captions"

    about: ClassVar[dict[str, About]] = {
        "capture": About(
            "CAPTURE", "F1 of objects, attributes and relations, weighted 5 : 5 : 2", "score"
        ),
        "object_f1": About("Objects F1", "objects that caption and reference share", "score"),
        "attribute_f1": About("Attributes F1", "attributes that both name", "score"),
        "relation_f1": About("Relations F1", "relations that both state", "score"),
    }

    def __call__(self, prediction: str, record: Mapping[str, Any]) -> dict[str, float]:
        if not (truths := base.texts(record.get(self.references))):
            raise UserError(f"record {record['key']!r} has nothing in {self.references!r}")
        said = self.parser(prediction)
        found = [
            caption_graph.compare(said, self.parser(truth), self.synonyms, self.soft)
            for truth in truths
        ]
        return {
            "capture": float(np.mean([scores.capture for scores in found])),
            "object_f1": float(np.mean([scores.f1["objects"] for scores in found])),
            "attribute_f1": float(np.mean([scores.f1["attributes"] for scores in found])),
            "relation_f1": float(np.mean([scores.f1["relations"] for scores in found])),
        }
