"""Finding the text of an image and the image of a text."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float, Int

from big_mm import search
from big_mm.data.records import Source
from big_mm.evaluators import base, features
from big_mm.evaluators.base import About
from big_mm.evaluators.scoring import Likelihood, TextScorer
from big_mm.metrics import hubness, recall
from big_mm.metrics.recall import Pairs, Ranking
from big_mm.metrics.statistics import Mean, MedianRank, Statistic
from big_mm.predictor import Predictor
from big_mm.similarity import Cosine, Similarity
from big_mm.spec import UserError, choose
from big_mm.types import Outputs

_SHOWN = 6  # right and wrong queries of each direction
_SHOWN_RESULTS = 3
_KNOWN_KS = (1, 5, 10, 50, 100)
# Queries, gallery, and what is right.
Side = tuple[Any, Any, Pairs]
_HUBS = 10  # the depth at which hubs are counted


def _about() -> dict[str, About]:
    said = {
        "image_to_text": ("Image to text", "images for which a caption of their own", "captions"),
        "text_to_image": ("Text to image", "captions for which their own image", "images"),
    }
    made = {}
    for direction, (label, queries, items) in said.items():
        for k in _KNOWN_KS:
            place = f"among the {k} nearest {items}" if k > 1 else f"nearer than all other {items}"
            made[f"{direction}_r@{k}"] = About(
                f"{label} R@{k}", f"{queries} is {place}", headline=k <= 10
            )
        made[f"{direction}_median_rank"] = About(
            f"{label} median rank", "of the first right item", "score", lower_is_better=True
        )
        made[f"{direction}_hubness"] = About(
            f"{label} hubness",
            "skewness of how often an item is among the first ten: 0 for an even share",
            "score",
            lower_is_better=True,
        )
    made["texts"] = About("Captions", "captions that are ranked and that ask", unit="score")
    return made


@dataclasses.dataclass(frozen=True)
class Banks:
    """Dual inverted softmax against hubs (arXiv:2310.11612): similarities are divided by what the
    item has with a bank of queries and with a bank of gallery items.

    Attributes:
      source: records outside the evaluated ones, whose images and first captions are the banks.
      query_beta, gallery_beta: inverse temperatures of the two softmaxes, of cosines.
      dynamic: a bank counts only for queries whose nearest item is the nearest of some query of
        that bank.
      limit: only the first records.
    """

    source: Source
    query_beta: float = 20.0
    gallery_beta: float = 3.0
    dynamic: bool = False
    captions: str = "captions"
    limit: int | None = None

    def apply(
        self,
        queries: Float[np.ndarray, "query width"],
        gallery: Float[np.ndarray, "item width"],
        banks: Sequence[Float[np.ndarray, "_ width"]],
    ) -> tuple[Float[np.ndarray, "query longer"], Float[np.ndarray, "item longer"]]:
        """Vectors of the normalised similarities; `banks` are one of queries, one of items."""
        betas = self.query_beta, self.gallery_beta
        biases = [hubness.bias(gallery, b, beta) for b, beta in zip(banks, betas, strict=True)]
        active = None
        if self.dynamic:
            nearest = search.nearest(queries, gallery)
            hubs = [search.nearest(bank, gallery) for bank in banks]
            active = np.stack([np.isin(nearest, hub) for hub in hubs], axis=1)
        return hubness.normalised(queries, gallery, np.stack(biases), sum(betas), active)

    def protocol(self) -> str:
        kind = "dual dynamic inverted softmax" if self.dynamic else "dual inverted softmax"
        return f"{kind}, beta {self.query_beta:g} and {self.gallery_beta:g}"


@dataclasses.dataclass(frozen=True)
class Rerank:
    """A second order of the first items, by a closer look at image and caption together.

    Attributes:
      depth: items of each query to look at again.
      cosine: weight of the first stage's similarity, in the scorer's units.
      scorer: how likely the caption is given the image, or `scoring.Matching`.
    """

    depth: int = 16
    cosine: float = 0.0
    scorer: TextScorer = Likelihood(per="token")

    def protocol(self) -> str:
        return f"first {self.depth} by {self.scorer.protocol()} + {self.cosine:g} cosine"


@dataclasses.dataclass(frozen=True)
class Retrieval(base.Evaluator):
    """Recall at k among all images and all captions of the source, both ways.

    A query is a hit if any right item is in its top k: any of the image's captions (not the share
    of them), any image of the caption. Equal similarities count against the model. Chance is that
    of a random order. COCO's figures are of the 5,000 test images of Karpathy's split with
    captions_per_image=5 (never of 1,000-image folds), Flickr30k's of 1,000.

    Attributes:
      source: records with an image and captions.
      ks: the depths to report.
      similarity: of images and texts; one that is no cosine takes neither banks nor `rerank`.
      captions: the record's key with the captions; each is a text query.
      captions_per_image: the first so many captions of an image (5 for COCO); None: all.
      same_captions: "apart" (the field's rule: a caption that another image has too is wrong for
        it) or "shared": equal captions are one query, and right for all their images.
      prefix: put before each caption ("a photo of " helps some models by a point or two).
      map_at: depths of mAP, averaged over queries; a query's AP@k is divided by min(k, right
        items).
      banks: against hubs, if any.
      rerank: by a closer look at the first items, if any.
      batch_size: images prepared at a time.
      limit: only the first records. Recall depends on the size of the gallery.
    """

    source: Source
    ks: tuple[int, ...] = (1, 5, 10)
    similarity: Similarity = Cosine()
    captions: str = "captions"
    captions_per_image: int | None = None
    same_captions: str = "apart"
    prefix: str = ""
    map_at: tuple[int, ...] = ()
    banks: Banks | None = None
    rerank: Rerank | None = None
    batch_size: int = 256
    limit: int | None = None

    place: ClassVar[int] = 20
    about: ClassVar[dict[str, About]] = _about()

    def __post_init__(self) -> None:
        choose("same_captions", self.same_captions, ("apart", "shared"))
        if not isinstance(self.similarity, Cosine) and (self.banks or self.rerank):
            raise UserError(
                f"banks and rerank need the cosine of embeddings, not {self.similarity!r}: leave "
                "them out"
            )

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: by direction r@k, median_rank, map@k, hubness and chance levels; images, texts.

        Raises:
          UserError: a record without captions, or a model without embeddings.
        """
        found = _embed(predictor, self, self.source, self.limit)
        sides = self._sides(predictor, found)
        depth = max(*self.ks, *self.map_at, _SHOWN_RESULTS, _HUBS)
        if self.rerank is not None:
            depth = max(depth, self.rerank.depth)
        rankings = {}
        metrics: dict[str, float | Statistic] = {}
        for direction, side in sides.items():
            rankings[direction] = self._ranked(direction, side, depth, predictor)
        if self.rerank is not None:
            rankings = self._again(predictor, found, sides, rankings)
        owners = {"image_to_text": np.arange(found.images), "text_to_image": found.owner}
        for direction, (ranking, ranks) in rankings.items():
            of = _ByImage(owners[direction], found.images)
            relevance = sides[direction][2]
            items = len(found.texts) if direction == "image_to_text" else found.images
            for k in self.ks:
                metrics[f"{direction}_r@{k}"] = of.mean(ranking.hits(k))
                metrics[f"{direction}_r@{k}_chance"] = recall.chance(relevance, items, k)
            for k in self.map_at:
                metrics[f"{direction}_map@{k}"] = of.mean(ranking.average_precision(k))
            metrics[f"{direction}_median_rank"] = of.median(ranks)
            metrics[f"{direction}_hubness"] = hubness.skewness(ranking.indices[:, :_HUBS], items)
        metrics |= {"images": float(found.images), "texts": float(len(found.texts))}

        def picture(i: Any) -> str:
            return base.picture_of(self.source, predictor.contract, found.index[i])

        artifact = _shown({k: r for k, (r, _) in rankings.items()}, picture, found)
        return base.Result(metrics, {"examples": artifact}, found.keys, self._protocol())

    def _sides(self, predictor: Predictor, found: "_Embedded") -> dict[str, Side]:
        """Queries, gallery and what is right, by direction."""
        by_image, by_text = found.pairs
        counts = found.images, len(found.texts)
        sides = {
            "image_to_text": (found.image, found.text, Pairs(by_image, by_text, *counts)),
            "text_to_image": (found.text, found.image, Pairs(by_text, by_image, *counts[::-1])),
        }
        if self.banks is None:
            return sides
        held = _embed(predictor, self, self.banks.source, self.banks.limit, self.banks.captions)
        first = held.text[np.searchsorted(held.pairs[0], np.arange(held.images))]
        banks = {"image_to_text": (held.image, first), "text_to_image": (first, held.image)}
        return {
            direction: (*self.banks.apply(queries, gallery, banks[direction]), relevance)
            for direction, (queries, gallery, relevance) in sides.items()
        }

    def _ranked(
        self, direction: str, side: Side, depth: int, predictor: Predictor
    ) -> tuple[Ranking, Int[np.ndarray, " query"]]:
        """The ranking of one direction, and the rank of each query's first right item."""
        mesh, similarity = predictor.mesh, self.similarity
        if isinstance(similarity, Cosine):
            ranking = search.rank(*side, depth, mesh)
            return ranking, search.ranks(*side, ranking, mesh)

        def to_text(images: Outputs, texts: Outputs) -> Array:
            return similarity(images, texts)[0]

        def to_image(texts: Outputs, images: Outputs) -> Array:
            return similarity(images, texts)[1].T

        score = to_text if direction == "image_to_text" else to_image
        return search.rank_by(score, *side, depth, mesh)

    def _again(
        self,
        predictor: Predictor,
        found: "_Embedded",
        sides: Mapping[str, Side],
        rankings: Mapping[str, tuple[Ranking, Int[np.ndarray, " query"]]],
    ) -> dict[str, tuple[Ranking, Int[np.ndarray, " query"]]]:
        """The rankings with their first items in the order of the scorer."""
        rerank, wanted = self.rerank, []
        for direction, (ranking, _) in rankings.items():
            items = ranking.indices[:, : rerank.depth]
            pairs = np.repeat(np.arange(len(items)), items.shape[1]), items.ravel()
            wanted.append(np.stack(pairs if direction == "image_to_text" else pairs[::-1], axis=1))
        pairs = np.unique(np.concatenate(wanted), axis=0)
        closer = self._closer(predictor, found, pairs)
        made = {}
        codes = pairs[:, 0] * len(found.texts) + pairs[:, 1]
        for (direction, (ranking, ranks)), own in zip(rankings.items(), wanted, strict=True):
            places = np.searchsorted(codes, own[:, 0] * len(found.texts) + own[:, 1])
            scores = closer[places].reshape(len(ranks), -1)
            queries, gallery, _ = sides[direction]
            items = ranking.indices[:, : scores.shape[1]]
            cosines = np.einsum("qd,qkd->qk", queries, gallery[items])
            scores = (scores + rerank.cosine * cosines).astype(np.float32)
            right = ranking.right[:, : scores.shape[1]]
            order = np.lexsort((right, -scores), axis=1)
            indices, verdicts = ranking.indices.copy(), ranking.right.copy()
            indices[:, : scores.shape[1]] = np.take_along_axis(items, order, axis=1)
            verdicts[:, : scores.shape[1]] = np.take_along_axis(right, order, axis=1)
            first = np.where(verdicts.any(axis=1), 1 + verdicts.argmax(axis=1), ranks)
            made[direction] = Ranking(indices, verdicts, ranking.positives), first
        return made

    def _closer(
        self, predictor: Predictor, found: "_Embedded", pairs: Int[np.ndarray, "pair 2"]
    ) -> Float[np.ndarray, " pair"]:
        """The scorer's scores of sorted (image, text) pairs."""
        images, begin = np.unique(pairs[:, 0], return_index=True)
        ends = [*begin[1:], len(pairs)]
        rows = [pairs[a:b, 1] for a, b in zip(begin, ends, strict=True)]
        pictures = [self.source[found.index[i]]["image"] for i in images]
        texts = [[found.texts[j] for j in row] for row in rows]
        scores = self.rerank.scorer(predictor, pictures, texts, [self.prefix] * len(texts))
        return np.concatenate([own[: len(row)] for own, row in zip(scores, rows, strict=True)])

    def _protocol(self) -> dict[str, Any]:
        protocol = {
            "captions": self.captions_per_image or "all",
            "equal captions": self.same_captions,
            "prefix": self.prefix,
            "hit": "any right item in the top k; equal similarities count against the model",
        }
        if self.similarity != Cosine():
            protocol["similarity"] = repr(self.similarity)
        if self.banks is not None:
            protocol["hubs"] = self.banks.protocol()
        if self.rerank is not None:
            protocol["reranked"] = self.rerank.protocol()
        return protocol


@dataclasses.dataclass(frozen=True)
class _Embedded:
    """A source's images and captions.

    Attributes:
      image, text: embeddings [image, width] and [text, width]; for another similarity than the
        cosine the outputs that it reads, by name.
      pairs: (image, text) numbers of each caption, by image.
      owner: the first image of each text.
      index, keys: where an image stands in the source, and its record key.
    """

    image: Any
    text: Any
    texts: list[str]
    pairs: tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"]]
    index: list[int]
    keys: list[str]

    @property
    def images(self) -> int:
        return len(self.index)

    @property
    def owner(self) -> Int[np.ndarray, " text"]:
        owners = np.zeros(len(self.texts), np.int64)
        owners[self.pairs[1][::-1]] = self.pairs[0][::-1]
        return owners


def _embed(
    predictor: Predictor,
    how: Retrieval,
    source: Source,
    limit: int | None,
    captions: str | None = None,
) -> _Embedded:
    seen, by_image = [], []
    similarity = how.similarity
    index: list[int] = []
    keys: list[str] = []
    for batch in features.embedded(predictor, source, how.batch_size, limit, similarity.image):
        seen.append({name: batch[name] for name in similarity.image})
        rows = base.captions_of(batch, captions or how.captions)
        by_image += [row[: how.captions_per_image] for row in rows]
        index += batch["index"].tolist()
        keys += list(map(str, batch["key"]))
    flat = [caption for row in by_image for caption in row]
    owners = np.repeat(np.arange(len(by_image)), [len(row) for row in by_image])
    numbers = np.arange(len(flat))
    if how.same_captions == "shared":
        numbers_of = {text: number for number, text in enumerate(dict.fromkeys(flat))}
        numbers = np.array([numbers_of[text] for text in flat])
        flat = list(numbers_of)
    text = predictor.text_outputs([how.prefix + caption for caption in flat], similarity.text)
    image = {name: np.concatenate([part[name] for part in seen]) for name in similarity.image}
    if isinstance(similarity, Cosine):
        (image,), (text,) = image.values(), text.values()
    return _Embedded(image, text, flat, (owners, numbers), index, keys)


@dataclasses.dataclass(frozen=True)
class _ByImage:
    """Statistics over images of figures of queries."""

    owner: Int[np.ndarray, " query"]
    images: int

    def mean(self, values: Float[np.ndarray, " query"]) -> Mean:
        return Mean.grouped(values, self.owner, self.images)

    def median(self, values: Int[np.ndarray, " query"]) -> MedianRank:
        return MedianRank.grouped(values, self.owner, self.images)


def _shown(
    rankings: Mapping[str, Ranking],
    picture: Callable[[Any], str],
    found: _Embedded,
) -> dict[str, Any]:
    """The first right and the first wrong queries of each direction, with what came first."""

    def by_image(i: int, items: Any, right: Any) -> dict[str, Any]:
        results = [
            {"text": found.texts[j], "right": bool(r)} for j, r in zip(items, right, strict=True)
        ]
        own = found.pairs[1][found.pairs[0] == i][:2]
        truth = [found.texts[j] for j in own]
        return {"image": picture(i), "truth": truth, "results": results}

    def by_text(i: int, items: Any, right: Any) -> dict[str, Any]:
        results = [
            {"image": picture(j), "right": bool(r)} for j, r in zip(items, right, strict=True)
        ]
        truth = picture(found.owner[i])
        return {"text": found.texts[i], "truth": truth, "results": results}

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
