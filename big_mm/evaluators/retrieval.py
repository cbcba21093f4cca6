"""Finding the text of an image and the image of a text."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from big_mm.data.records import Source
from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.metrics import recall
from big_mm.metrics.statistics import Mean, Statistic
from big_mm.predictor import Predictor

_SHOWN = 6  # right and wrong queries of each direction
_SHOWN_RESULTS = 3
_KNOWN_KS = (1, 5, 10, 50, 100)


def _about() -> dict[str, About]:
    made = {}
    for k in _KNOWN_KS:
        text, image = "is the nearest caption", "is the nearest image"
        if k > 1:
            text, image = f"is among the {k} nearest captions", f"is among the {k} nearest images"
        made |= {
            f"image_to_text_r@{k}": About(
                f"Image to text R@{k}",
                f"images for which a caption of their own {text} of all",
                headline=k <= 10,
            ),
            f"text_to_image_r@{k}": About(
                f"Text to image R@{k}",
                f"captions for which their own image {image} of all",
                headline=k <= 10,
            ),
        }
    made["texts"] = About("Captions", "captions that are ranked and that ask", unit="score")
    return dict(sorted(made.items(), key=lambda item: item[0].split("@")[0]))


@dataclasses.dataclass(frozen=True)
class Retrieval(base.Evaluator):
    """Recall at k among all images and all captions of the source, both ways.

    A query is a hit if any right item is in its top k: any of the image's captions (not the share
    of them), the caption's one image. Equal similarities count against the model, and so does a
    caption that also fits another image. Chance is that of a random order.

    Attributes:
      source: records with an image and captions.
      ks: the depths to report.
      captions: the record's key with the captions; each is a text query.
      captions_per_image: the first so many captions of an image (5 for COCO); None: all.
      prefix: put before each caption ("a photo of " helps some models by a point or two).
      batch_size: images prepared at a time.
      limit: only the first records. Recall depends on the size of the gallery.
    """

    source: Source
    ks: tuple[int, ...] = (1, 5, 10)
    captions: str = "captions"
    captions_per_image: int | None = None
    prefix: str = ""
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 20
    about: ClassVar[dict[str, About]] = _about()

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: image_to_text_r@k, text_to_image_r@k, their chance levels, images, texts.

        Raises:
          UserError: a record without captions, or a model without embeddings.
        """
        embeddings, texts = [], []
        index: list[int] = []
        keys: list[str] = []
        for batch in base.examples(self.source, predictor.contract, self.batch_size, self.limit):
            embeddings.append(predictor.encode_image(batch["image"]))
            texts += [
                row[: self.captions_per_image] for row in base.captions_of(batch, self.captions)
            ]
            index += batch["index"].tolist()
            keys += list(map(str, batch["key"]))
        image = np.concatenate(embeddings)
        flat = [caption for captions in texts for caption in captions]
        text = predictor.encode_text([self.prefix + caption for caption in flat])
        image_ids = np.arange(len(texts))
        text_ids = np.repeat(image_ids, [len(captions) for captions in texts])
        metrics: dict[str, float | Statistic] = {}
        rankings = {}
        for direction, query, item, query_ids, item_ids in (
            ("image_to_text", image, text, image_ids, text_ids),
            ("text_to_image", text, image, text_ids, image_ids),
        ):
            ranking = recall.rank(query, item, query_ids, item_ids, k=max(*self.ks, _SHOWN_RESULTS))
            for k in self.ks:
                hits = ranking.right[:, :k].any(axis=1)
                metrics[f"{direction}_r@{k}"] = Mean.grouped(hits, query_ids, len(texts))
                metrics[f"{direction}_r@{k}_chance"] = recall.chance(query_ids, item_ids, k)
            rankings[direction] = ranking
        metrics |= {"images": float(len(texts)), "texts": float(len(flat))}

        def picture(i: Any) -> str:
            return base.picture_of(self.source, predictor.contract, index[i])

        protocol = {
            "captions": self.captions_per_image or "all",
            "prefix": self.prefix,
            "hit": "any right item in the top k; equal similarities count against the model",
        }
        artifact = _shown(rankings, picture, texts, flat, text_ids)
        return base.Result(metrics, {"examples": artifact}, keys, protocol)


def _shown(
    rankings: dict[str, recall.Ranking],
    picture: Callable[[Any], str],
    texts: list[list[str]],
    flat: list[str],
    text_ids: Int[np.ndarray, " texts"],
) -> dict[str, Any]:
    """The first right and the first wrong queries of each direction, with what came first."""

    def by_image(i: int, found: Any, right: Any) -> dict[str, Any]:
        results = [{"text": flat[j], "right": bool(r)} for j, r in zip(found, right, strict=True)]
        return {"image": picture(i), "truth": texts[i][:2], "results": results}

    def by_text(i: int, found: Any, right: Any) -> dict[str, Any]:
        results = [
            {"image": picture(j), "right": bool(r)} for j, r in zip(found, right, strict=True)
        ]
        truth = picture(text_ids[i])
        return {"text": flat[i], "truth": truth, "results": results}

    shown: dict[str, Any] = {"kind": "retrieval"}
    for (direction, ranking), show in zip(rankings.items(), (by_image, by_text), strict=True):
        for verdict, wanted in (("right", True), ("wrong", False)):
            queries = np.flatnonzero(ranking.right[:, 0] == wanted)[:_SHOWN]
            shown[f"{direction}_{verdict}"] = [
                show(
                    int(i),
                    ranking.indices[i, :_SHOWN_RESULTS],
                    ranking.right[i, :_SHOWN_RESULTS],
                )
                for i in queries
            ]
    return shown
