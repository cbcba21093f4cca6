"""Finding the image that an edit of another image describes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from big_mm.data.records import Source
from big_mm.evaluators import base, files
from big_mm.evaluators.base import About
from big_mm.evaluators.composed_benchmarks import Query
from big_mm.evaluators.composition import References, Sum, unit
from big_mm.metrics import composed
from big_mm.metrics.recall import Ranking
from big_mm.metrics.statistics import ClassMean, Mean, Statistic
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_SHOWN = 12
_SHOWN_RESULTS = 3


@dataclasses.dataclass(frozen=True)
class _Gallery:
    """The embedded records, by position.

    Attributes:
      place: key -> position.
      index: the records' numbers in the source.
      images: prepared pictures of the references, by key.
    """

    place: dict[str, int]
    image: Float[np.ndarray, "item width"]
    target: Float[np.ndarray, "item width"]
    index: list[int]
    images: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ComposedRetrieval(base.Evaluator):
    """Recall and mean average precision of a benchmark (`composed_benchmarks`), by its own rules.

    The query comes from `composition`; items are scored by inner product with unit embeddings.
    Equal scores count against the model. Chance is that of a random order. Statistics are over
    queries.

    Attributes:
      source: records with all images of the galleries, by key.
      benchmark: `Cirr`, `Circo`, `FashionIq`, `GeneCis` or `Triplets`.
      composition: `Sum`, `CaptionAndRewrite`, `PromptDirection`, or your own (`Composition`).
      captions, caption_weight: w of (1 - w) image + w mean caption, the items' side of weighted
        modality fusion (arXiv:2409.04918): a text feature of the records, such as offline captions.
      submission: where to write the server's files; {} becomes the file's name ("recall" and
        "recall_subset" of CIRR, "map" of CIRCO).
      batch_size: images prepared at a time.
    """

    source: Source
    benchmark: Any
    composition: Any = Sum()
    captions: str | None = None
    caption_weight: float = 0.0
    submission: str | None = dataclasses.field(default=None, metadata={files.WRITTEN: True})
    batch_size: int = 256

    place: ClassVar[int] = 25

    def __post_init__(self) -> None:
        if (self.captions is None) != (self.caption_weight == 0):
            raise UserError("captions and caption_weight go together")
        if self.submission is not None and self.submission.count("{}") != 1:
            raise UserError(f"the submission {self.submission!r} must hold {{}} exactly once")

    @property
    def about(self) -> dict[str, About]:
        rules, made = self.benchmark, {}
        for k in rules.recalls:
            text = f"edits whose target is among the first {k}"
            made[f"r@{k}"] = About(f"Composed R@{k}", text, headline=k == min(rules.recalls))
        for k in rules.subset_recalls:
            text = f"edits whose target is among the first {k} of their own few images"
            made[f"subset_r@{k}"] = About(f"Composed subset R@{k}", text)
        for k in rules.precisions:
            text = f"average precision among the first {k}, over all right images"
            made[f"map@{k}"] = About(f"Composed mAP@{k}", text, headline=k == min(rules.precisions))
        made["reference@1"] = About(
            "Reference first",
            "edits whose first result is the image that was to be edited",
            lower_is_better=True,
        )
        return made

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: r@k, subset_r@k, map@k as the benchmark has them (x_CATEGORY, x_ASPECT), their
        chance levels, queries, images; reference@1 where the reference may be found.

        Raises:
          UserError: an image of the benchmark is no sound record, a key comes up twice, a target is
            not in its gallery, targets are withheld and there is no submission, or a model that
            lacks what the composition needs.
        """
        rules = self.benchmark
        queries: tuple[Query, ...] = rules.queries
        if not queries:
            raise UserError("the benchmark has no queries")
        withheld = not all(query.targets for query in queries)
        if withheld and self.submission is None:
            raise UserError("the targets are withheld: set submission=FILE to have a server judge")
        _check_targets(queries, rules.galleries)
        gallery = self._embed(predictor, queries)
        references = [query.reference for query in queries]
        known = References(
            gallery.image[[gallery.place[key] for key in references]],
            np.stack([gallery.images[key] for key in references]) if gallery.images else None,
            [query.edit for query in queries],
        )
        vectors = self.composition(predictor, known)
        ranked = self._rank(vectors, gallery, queries, rules.recalls + rules.precisions)
        subset = self._rank_subset(vectors, gallery, queries)
        if self.submission is not None:
            for name, content in rules.submissions(ranked, subset).items():
                files.write_json(self.submission.replace("{}", name), content)
        metrics: dict[str, float | Statistic] = {}
        if not withheld:
            metrics = _recalls(rules, queries, ranked, subset, len(gallery.place))
            metrics |= _precisions(rules, queries, ranked)
        if rules.keep_reference and rules.recalls:
            copies = [row[0] == q.reference for q, row in zip(queries, ranked, strict=True)]
            metrics["reference@1"] = Mean.of(copies)
        metrics |= {"queries": float(len(queries)), "images": float(len(gallery.place))}
        protocol = rules.facts() | self.composition.protocol()
        if self.captions is not None:
            protocol["gallery captions"] = f"{self.captions}, weight {self.caption_weight}"
        shown = self._shown(predictor, gallery, queries, ranked if rules.recalls else subset)
        keys = [str(query.id) for query in queries]
        return base.Result(
            metrics, {"edits": {"kind": "queries", "queries": shown}}, keys, protocol
        )

    def _embed(self, predictor: Predictor, queries: Sequence[Query]) -> _Gallery:
        """The records that queries and galleries name (all, where a gallery is)."""
        galleries = self.benchmark.galleries
        everything = any(query.category not in galleries for query in queries)
        references = {query.reference for query in queries}
        wanted = references | {key for keys in galleries.values() for key in keys}
        wanted |= {key for query in queries for key in (*query.targets, *query.subset)}
        made = _Gallery({}, np.empty((0, 0)), np.empty((0, 0)), [], {})
        image, target = [], []
        for batch in base.examples(self.source, predictor.contract, self.batch_size):
            keys = list(map(str, batch["key"]))
            rows = [i for i, key in enumerate(keys) if everything or key in wanted]
            if not rows:
                continue
            for i in rows:
                if keys[i] in made.place:
                    raise UserError(f"the key {keys[i]!r} comes up twice among the records")
                made.place[keys[i]] = len(made.place)
                made.index.append(int(batch["index"][i]))
                if self.composition.sees and keys[i] in references:
                    made.images[keys[i]] = batch["image"][i]
            vectors = unit(predictor.encode_image(batch["image"][rows]))
            image.append(vectors)
            target.append(self._with_captions(predictor, vectors, batch, rows))
        if missing := sorted(wanted - set(made.place)):
            raise UserError(
                f"{len(missing)} images of the benchmark are not among the sound records, such as "
                f"{missing[0]!r}"
            )
        return dataclasses.replace(made, image=np.concatenate(image), target=np.concatenate(target))

    def _with_captions(
        self, predictor: Predictor, vectors: np.ndarray, batch: dict[str, Any], rows: list[int]
    ) -> np.ndarray:
        if self.captions is None:
            return vectors
        every = base.captions_of(batch, self.captions)
        texts = [every[i] for i in rows]
        encoded = unit(predictor.encode_text([text for row in texts for text in row]))
        ends = np.cumsum([len(row) for row in texts])
        means = np.stack([part.mean(axis=0) for part in np.split(encoded, ends[:-1])])
        return (1 - self.caption_weight) * vectors + self.caption_weight * means

    def _rank(
        self, vectors: np.ndarray, gallery: _Gallery, queries: Sequence[Query], ks: tuple[int, ...]
    ) -> list[list[str]]:
        """The keys that come first for each query in its gallery."""
        if not ks:
            return [[] for _ in queries]
        galleries = {
            name: np.array([gallery.place[key] for key in keys])
            for name, keys in self.benchmark.galleries.items()
        }
        everything = np.arange(len(gallery.place))
        among = []
        for query in queries:
            items = galleries.get(query.category, everything)
            if not self.benchmark.keep_reference:
                items = items[items != gallery.place[query.reference]]
            among.append(items)
        return _found(vectors, gallery, queries, among, max(ks))

    def _rank_subset(
        self, vectors: np.ndarray, gallery: _Gallery, queries: Sequence[Query]
    ) -> list[list[str]]:
        if not self.benchmark.subset_recalls:
            return [[] for _ in queries]
        among = [np.array([gallery.place[key] for key in query.subset]) for query in queries]
        return _found(vectors, gallery, queries, among, max(map(len, among)))

    def _shown(
        self,
        predictor: Predictor,
        gallery: _Gallery,
        queries: Sequence[Query],
        ranked: Sequence[Sequence[str]],
    ) -> list[dict[str, Any]]:
        """The first edits with the images found first."""

        def picture(key: str) -> str:
            place = gallery.index[gallery.place[key]]
            return base.picture_of(self.source, predictor.contract, place)

        return [
            {
                "image": picture(query.reference),
                "text": query.edit,
                "results": [
                    {"image": picture(key), "right": key in query.targets}
                    for key in row[:_SHOWN_RESULTS]
                ],
                "truth": picture(query.targets[0]) if query.targets else "",
            }
            for query, row in zip(queries[:_SHOWN], ranked[:_SHOWN], strict=True)
        ]


def _check_targets(queries: Sequence[Query], galleries: Mapping[str, tuple[str, ...]]) -> None:
    """Raises UserError if a target cannot be found, as after a gallery was cut."""
    there = {name: set(keys) for name, keys in galleries.items()}
    for query in queries:
        if query.targets and query.targets[0] not in there.get(query.category, query.targets):
            raise UserError(
                f"query {query.id}: its target {query.targets[0]!r} is not in the gallery"
            )


def _found(
    vectors: np.ndarray,
    gallery: _Gallery,
    queries: Sequence[Query],
    among: list[np.ndarray],
    k: int,
) -> list[list[str]]:
    right = [[gallery.place[key] for key in query.targets] for query in queries]
    names = list(gallery.place)
    found = composed.nearest(vectors, gallery.target, among, right, k)
    return [[names[i] for i in row] for row in found]


def _recalls(
    rules: Any,
    queries: Sequence[Query],
    ranked: Sequence[Sequence[str]],
    subset: Sequence[Sequence[str]],
    images: int,
) -> dict[str, float | Statistic]:
    """Whether the first target is found; over several categories the mean of theirs."""
    made: dict[str, float | Statistic] = {}
    names, label = np.unique([query.category for query in queries], return_inverse=True)
    spare = 0 if rules.keep_reference else 1
    sizes = [len(rules.galleries.get(query.category, range(images))) - spare for query in queries]
    subset_sizes = [len(query.subset) for query in queries]
    for prefix, ks, rows, among in (
        ("r", rules.recalls, ranked, sizes),
        ("subset_r", rules.subset_recalls, subset, subset_sizes),
    ):
        for k in ks:
            hits = np.array([q.targets[0] in row[:k] for q, row in zip(queries, rows, strict=True)])
            hits = hits.astype(np.float64)
            made[f"{prefix}@{k}"] = ClassMean(hits, label) if len(names) > 1 else Mean.of(hits)
            chance = np.array([min(1.0, k / size) for size in among])
            made[f"{prefix}@{k}_chance"] = ClassMean(chance, label).value()
            for i, name in enumerate(names) if len(names) > 1 else ():
                made[f"{prefix}@{k}_{name}"] = Mean(hits * (label == i), (label == i).astype(float))
    if isinstance(r := made.get("r@5"), Mean) and isinstance(s := made.get("subset_r@1"), Mean):
        made["mean"] = Mean.of((r.total + s.total) / 2)
    return made


def _precisions(
    rules: Any, queries: Sequence[Query], ranked: Sequence[Sequence[str]]
) -> dict[str, float | Statistic]:
    made: dict[str, float | Statistic] = {}
    if not rules.precisions:
        return made
    aspects = sorted({aspect for query in queries for aspect in query.aspects})
    right = np.array([np.isin(r, q.targets) for q, r in zip(queries, ranked, strict=True)])
    positives = np.array([len(query.targets) for query in queries])
    places = np.broadcast_to(np.arange(right.shape[1]), right.shape)
    ranking = Ranking(places, right, positives)
    for k in rules.precisions:
        scores = ranking.average_precision(k)
        made[f"map@{k}"] = Mean.of(scores)
        for aspect in aspects if k == 10 else ():
            of = np.array([aspect in query.aspects for query in queries], np.float64)
            made[f"map@{k}_{aspect}"] = Mean(scores * of, of)
    return made
