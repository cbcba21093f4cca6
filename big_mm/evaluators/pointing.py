"""Whether the patch that is most like an object's name shows that object."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from big_mm.data import scenes
from big_mm.data.records import Source
from big_mm.evaluators import base, features, masks
from big_mm.evaluators.base import About
from big_mm.metrics.statistics import Mean
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class PointingGame(base.Evaluator):
    """The pointing game (arXiv:1608.00507) on patches, for scenes of several objects.

    Each object that its colour and shape single out is asked for by these words. A patch shows the
    object of which it has the most pixels. Chance is the share of patches that show it.

    Attributes:
      source: records with the features `scene` and `mask`.
      limit: only the first records.
    """

    source: Source
    limit: int | None = None

    about: ClassVar[dict[str, About]] = {
        "by_words": About(
            "Pointing game, by words",
            "objects shown by the patch that is nearest to the words of their name, on average",
            headline=True,
        ),
        "by_text": About(
            "Pointing game, by text",
            "objects shown by the patch that is nearest to the embedding of their name",
            headline=True,
        ),
    }

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: by_words, by_text, their chance levels, objects.

        Raises:
          UserError: no scene has an object to ask for, or the model no embeddings of tokens.
        """
        found = features.extract(predictor, self.source, "image_token_embeddings", limit=self.limit)
        records = features.read(self.source, found.index)
        queries = _queries(predictor)
        hits: dict[str, list[bool]] = {name: [] for name in queries}
        chance, owners = [], []
        for image, (patches, record) in enumerate(zip(found.values, records, strict=True)):
            for label, shown in _objects(record, math.isqrt(len(patches))):
                for name, vectors in queries.items():
                    hits[name].append(shown[(patches @ vectors[label]).argmax()])
                chance.append(shown.mean())
                owners.append(image)
        if not owners:
            raise UserError("no scene has two objects of which one is the only one of its kind")
        metrics: dict[str, Any] = {
            name: Mean.grouped(np.array(row, float), np.array(owners), len(found))
            for name, row in hits.items()
        }
        metrics |= {f"{name}_chance": float(np.mean(chance)) for name in hits}
        metrics["objects"] = float(len(owners))
        return base.Result(metrics, keys=found.keys)


def _queries(predictor: Predictor) -> dict[str, Float[np.ndarray, "classes width"]]:
    """The mean of each class name's words without bos and eos, and its text embedding."""
    names = ("text_embedding", "text_token_embeddings", "text_token_mask")
    outputs = predictor.text_outputs(scenes.CLASS_NAMES, names)
    word = outputs["text_token_mask"].copy()
    word[:, 0] = 0
    word[np.arange(len(word)), outputs["text_token_mask"].sum(axis=1).astype(int) - 1] = 0
    words = np.einsum("cl,cld->cd", word, outputs["text_token_embeddings"])
    return {"by_words": words, "by_text": outputs["text_embedding"]}


def _objects(
    record: Mapping[str, Any], grid: int
) -> Iterator[tuple[int, Bool[np.ndarray, " patch"]]]:
    """Class and patches of each object whose kind is its own, where there is another object."""
    scene = scenes.Scene.from_json(base.first_text(record["scene"]))
    numbers = masks.read(record, "mask")
    cover = np.stack([numbers == 1 + i for i in range(len(scene.objects))], axis=-1)
    side = len(numbers) // grid
    pixels = cover.reshape(grid, side, grid, side, -1).sum(axis=(1, 3)).reshape(grid * grid, -1)
    groups = scene.groups()
    for i, item in enumerate(scene.objects if len(scene.objects) > 1 else ()):
        if len(groups[item.kind]) == 1:
            most = (pixels[:, i] > 0) & (pixels.argmax(axis=1) == i)
            if most.any():
                yield scenes.class_index(item.kind), most
