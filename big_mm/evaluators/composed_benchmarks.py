"""The composed-retrieval benchmarks' own files and rules.

Each benchmark knows its queries, galleries and metrics, and how its server wants results. Images
are records of the evaluator's source, found by their key.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, get_args

from big_mm.data.scenes import Variations
from big_mm.evaluators import files
from big_mm.spec import UserError, choose

_CIRR_TOP, _CIRR_SUBSET_TOP, _CIRCO_TOP = 50, 3, 50


@dataclasses.dataclass(frozen=True)
class Query:
    """A reference image, an edit in words, and what is right.

    Attributes:
      id: as the benchmark names it.
      reference: key of the reference image.
      edit: the words.
      targets: keys of the right images, the one that was edited for first; none where withheld.
      category: selects the gallery, and splits the metrics.
      subset: keys of the few images that the subset metrics choose among.
      aspects: kinds of edit by which mAP@10 is also given.
    """

    id: Any
    reference: str
    edit: str
    targets: tuple[str, ...] = ()
    category: str = ""
    subset: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()


class Benchmark(Protocol):
    """What the evaluator needs to know.

    `recalls`, `subset_recalls`, `precisions`: depths of R@k, R_subset@k and mAP@k.
    `keep_reference`: the reference may be found.
    """

    recalls: tuple[int, ...]
    subset_recalls: tuple[int, ...]
    precisions: tuple[int, ...]
    keep_reference: bool

    @property
    def queries(self) -> tuple[Query, ...]: ...

    @property
    def galleries(self) -> Mapping[str, tuple[str, ...]]:
        """The gallery's keys by category; a category that is absent has all records."""

    def facts(self) -> dict[str, Any]:
        """What pins the numbers, JSON-able."""

    def submissions(
        self, ranked: Sequence[Sequence[str]], subset: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        """Contents of the files for the server by name, from the found keys of each query."""


class _Benchmark:
    recalls: ClassVar[tuple[int, ...]] = ()
    subset_recalls: ClassVar[tuple[int, ...]] = ()
    precisions: ClassVar[tuple[int, ...]] = ()
    keep_reference: ClassVar[bool] = True
    galleries: Mapping[str, tuple[str, ...]] = {}

    def submissions(
        self, ranked: Sequence[Sequence[str]], subset: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        raise UserError(f"{type(self).__name__} has no server to submit to")


@dataclasses.dataclass(frozen=True)
class Triplets(_Benchmark):
    """Any set of edits: a JSON list of {"id", "reference", "edit", "targets"}, the last a list of
    keys whose first is the target. The gallery is all records but the reference.
    """

    path: str

    recalls: ClassVar[tuple[int, ...]] = (1, 5, 10)
    precisions: ClassVar[tuple[int, ...]] = (5, 10)
    keep_reference: ClassVar[bool] = False

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        needed = ("id", "reference", "edit", "targets")
        rows = files.entries(self.path, files.read_json(self.path), needed)
        files.unique(self.path, "id", (row["id"] for row in rows))
        return tuple(
            Query(row["id"], row["reference"], row["edit"], tuple(row["targets"])) for row in rows
        )

    def facts(self) -> dict[str, Any]:
        return {"gallery": "all records but the reference"}


@dataclasses.dataclass(frozen=True)
class SceneEdits(_Benchmark):
    """Each edit of each scene asks for its result among all scenes and all results, of which the
    scene itself and its other edits are the nearest.
    """

    source: Variations

    recalls: ClassVar[tuple[int, ...]] = (1, 5)
    precisions: ClassVar[tuple[int, ...]] = (5,)

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


@dataclasses.dataclass(frozen=True)
class Cirr(_Benchmark):
    """CIRR (arXiv:2108.04024): R@1, 5, 10, 50 and R_subset@1, 2, 3.

    The gallery is the whole split. The reference is taken out of every ranking (a random R_subset@1
    is 20 %, not 16.7 %); the subset is the query's six-image set without the reference. `mean` is
    (R@5 + R_subset@1) / 2.

    Attributes:
      captions: captions/cap.rc2.SPLIT.json.
      split: image_splits/split.rc2.SPLIT.json, whose names are the records' keys.
      version: of the annotations, for the server.
    """

    captions: str
    split: str
    version: str = "rc2"

    recalls: ClassVar[tuple[int, ...]] = (1, 5, 10, 50)
    subset_recalls: ClassVar[tuple[int, ...]] = (1, 2, 3)
    keep_reference: ClassVar[bool] = False

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        needed = ("pairid", "reference", "caption", "img_set")
        rows = files.entries(self.captions, files.read_json(self.captions), needed)
        files.unique(self.captions, "pairid", (row["pairid"] for row in rows))
        made = []
        for row in rows:
            members = tuple(m for m in row["img_set"]["members"] if m != row["reference"])
            target = (row["target_hard"],) if "target_hard" in row else ()
            if not set(target) <= set(members):
                raise UserError(
                    f"{self.captions}: the target of pair {row['pairid']} is not in its img_set"
                )
            made.append(
                Query(row["pairid"], row["reference"], row["caption"], target, subset=members)
            )
        return tuple(made)

    @functools.cached_property
    def galleries(self) -> Mapping[str, tuple[str, ...]]:
        content = files.read_json(self.split)
        if not isinstance(content, dict) or not content:
            raise UserError(f"{self.split}: expected image names and their paths")
        return {"": tuple(content)}

    def facts(self) -> dict[str, Any]:
        return {"gallery": "the whole split without the reference", "subset": "six less one"}

    def submissions(
        self, ranked: Sequence[Sequence[str]], subset: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        made = {}
        for metric, found, top in (
            ("recall", ranked, _CIRR_TOP),
            ("recall_subset", subset, _CIRR_SUBSET_TOP),
        ):
            rows = _tops(self.queries, found, top)
            made[metric] = {"version": self.version, "metric": metric} | rows
        return made


@dataclasses.dataclass(frozen=True)
class Circo(_Benchmark):
    """CIRCO (arXiv:2303.15247): mAP@5, 10, 25, 50 over all right images, R@k on the first alone,
    mAP@10 by kind of edit.

    AP@k is divided by min(right images, k). The gallery is all records, which are to be COCO 2017's
    123,403 unlabeled images; the reference stays in it, as in the official program. The shared
    concept of the annotations is not used, as it changes the scores.

    Attributes:
      annotations: annotations/val.json or test.json.
      key: how an image id is written in the records' keys: "{:012d}".
    """

    annotations: str
    key: str = "{:012d}"

    recalls: ClassVar[tuple[int, ...]] = (5, 10, 25, 50)
    precisions: ClassVar[tuple[int, ...]] = (5, 10, 25, 50)

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        needed = ("id", "reference_img_id", "relative_caption")
        rows = files.entries(self.annotations, files.read_json(self.annotations), needed)
        if [row["id"] for row in rows] != list(range(len(rows))):
            raise UserError(f"{self.annotations}: the ids must be 0, 1, 2, ... in this order")
        made = []
        for row in rows:
            targets = row.get("gt_img_ids", [])
            if targets and targets[0] != row.get("target_img_id", targets[0]):
                raise UserError(f"{self.annotations}: query {row['id']} lists its target not first")
            made.append(
                Query(
                    row["id"],
                    self.key.format(row["reference_img_id"]),
                    row["relative_caption"],
                    tuple(map(self.key.format, targets)),
                    aspects=tuple(row.get("semantic_aspects", ())),
                )
            )
        return tuple(made)

    def facts(self) -> dict[str, Any]:
        return {"gallery": "all records, the reference too", "AP@k over": "min(right images, k)"}

    def submissions(
        self, ranked: Sequence[Sequence[str]], subset: Sequence[Sequence[str]]
    ) -> dict[str, Any]:
        pattern = re.compile(re.sub(r"\\{.*?\\}", r"(\\d+)", re.escape(self.key)))
        numbers = []
        for row in ranked:
            read = [pattern.fullmatch(key) for key in row]
            if None in read:
                raise UserError(
                    f"the record key {row[read.index(None)]!r} is not written as {self.key!r}"
                )
            numbers.append([int(match[1]) for match in read])
        return {"map": _tops(self.queries, numbers, _CIRCO_TOP)}


Gallery = Literal["original", "union"]


@dataclasses.dataclass(frozen=True)
class FashionIq(_Benchmark):
    """FashionIQ (arXiv:1905.12794), validation: R@10 and R@50 of each category, and their means
    over the categories.

    Two galleries are in use and do not compare: the "original" ones of the split files (3,817
    dresses, 6,346 shirts, 5,373 tops and tees), and the "union" of the images that occur in the
    category's queries, which is smaller and easier. The reference stays in the gallery.

    Attributes:
      captions: category -> captions/cap.CATEGORY.val.json.
      splits: category -> image_splits/split.CATEGORY.val.json; not needed for "union".
      gallery: "original" or "union".
      join: between the two captions, each stripped of blanks and ".?,".
    """

    captions: Mapping[str, str]
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gallery: str = "original"
    join: str = " and "

    recalls: ClassVar[tuple[int, ...]] = (10, 50)

    def __post_init__(self) -> None:
        choose("gallery", self.gallery, get_args(Gallery))
        if self.gallery == "original" and set(self.captions) != set(self.splits):
            raise UserError("FashionIQ's original galleries need a split file for each category")

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        made = []
        for category, path in self.captions.items():
            rows = files.entries(path, files.read_json(path), ("target", "candidate", "captions"))
            for number, row in enumerate(rows):
                edit = self.join.join(caption.strip(".?, ") for caption in row["captions"])
                name = f"{category}/{number}"
                made.append(Query(name, row["candidate"], edit, (row["target"],), category))
        return tuple(made)

    @functools.cached_property
    def galleries(self) -> Mapping[str, tuple[str, ...]]:
        if self.gallery == "original":
            return {name: tuple(files.read_json(path)) for name, path in self.splits.items()}
        made: dict[str, dict[str, None]] = {}
        for query in self.queries:
            made.setdefault(query.category, {}).update(
                dict.fromkeys((query.reference, *query.targets))
            )
        return {name: tuple(keys) for name, keys in made.items()}

    def facts(self) -> dict[str, Any]:
        sizes = {name: len(keys) for name, keys in self.galleries.items()}
        return {"gallery": self.gallery, "gallery sizes": sizes, "captions joined by": self.join}


@dataclasses.dataclass(frozen=True)
class GeneCis(_Benchmark):
    """GeneCIS (arXiv:2306.07969): R@1, 2, 3 in the query's own gallery of 10 or 15 images, in which
    the reference is not. The condition is the edit, as it stands ("wall", "red").

    The object tasks show whole images of COCO 2017's validation set; the attribute tasks objects
    cut out of Visual Genome, which `crops.Crops` makes into records. The released sum of image and
    text adds embeddings that are not of unit length, `composition.Sum` unit ones.

    Attributes:
      path: change_object.json, focus_object.json, change_attribute.json or focus_attribute.json.
      key: how an image's number is written in the records' keys; None: "{:012d}" for COCO, "{}" for
        Visual Genome.
    """

    path: str
    key: str | None = None

    subset_recalls: ClassVar[tuple[int, ...]] = (1, 2, 3)

    @functools.cached_property
    def queries(self) -> tuple[Query, ...]:
        made = []
        for number, row in enumerate(self._rows):
            images = (row["reference"], row["target"], *row["gallery"])
            reference, *subset = (self._name(image) for image in images)
            made.append(
                Query(number, reference, row["condition"], (subset[0],), subset=tuple(subset))
            )
        return tuple(made)

    @functools.cached_property
    def galleries(self) -> Mapping[str, tuple[str, ...]]:
        return {"": tuple(dict.fromkeys(key for query in self.queries for key in query.subset))}

    @functools.cached_property
    def crops(self) -> Mapping[str, tuple[str, tuple[float, ...]]]:
        """The objects of an attribute task: their key -> the image's, and x, y, width, height."""
        made = {}
        for row in self._rows:
            for image in (row["reference"], row["target"], *row["gallery"]):
                if "instance_bbox" not in image:
                    raise UserError(f"{self.path} shows whole images: it has no boxes to cut out")
                box = tuple(map(float, image["instance_bbox"]))
                made[self._name(image)] = self._image(image), box
        return made

    def facts(self) -> dict[str, Any]:
        return {"gallery": "the query's own"}

    @functools.cached_property
    def _rows(self) -> list[Mapping[str, Any]]:
        needed = ("reference", "target", "gallery", "condition")
        return files.entries(self.path, files.read_json(self.path), needed)

    def _image(self, image: Mapping[str, Any]) -> str:
        for field, usual in (("val_image_id", "{:012d}"), ("image_id", "{}")):
            if field in image:
                return (usual if self.key is None else self.key).format(image[field])
        raise UserError(f"{self.path}: an image has neither val_image_id nor image_id: {image}")

    def _name(self, image: Mapping[str, Any]) -> str:
        box = image.get("instance_bbox")
        return self._image(image) + (f"@{','.join(f'{x:g}' for x in box)}" if box else "")


def _tops(queries: Sequence[Query], found: Sequence[Sequence[Any]], top: int) -> dict[str, Any]:
    """The first `top` of each query by its id.

    Raises:
      UserError: fewer were found.
    """
    for query, row in zip(queries, found, strict=True):
        if len(row) < top:
            raise UserError(
                f"the server wants {top} images for query {query.id}, the gallery gives {len(row)}"
            )
    return {str(q.id): list(row[:top]) for q, row in zip(queries, found, strict=True)}
