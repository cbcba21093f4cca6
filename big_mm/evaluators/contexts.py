"""Images by what they show an object with: sub-populations, and splits of growing distance
(MetaShift, arXiv:2202.06523).

    contexts = ContextSets(VisualGenome("objects.json"), ("cat", "dog"), merge=True)
    contexts.distances("dog(shelf)")        # of dogs' other contexts, the nearest first
    test = InContext(images, contexts, ("cat(shelf)", "dog(shelf)"))
    train = InContext(images, contexts, ("cat(sofa)", "dog(bench)"), without=test.chosen)
    GroupGap(LinearProbe(train, test), "context")
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.evaluators import annotations, base, files
from big_mm.metrics import context_graph
from big_mm.spec import UserError


class Annotations(Protocol):
    """What is seen in each image."""

    def objects(self) -> Mapping[str, frozenset[str]]:
        """Record key -> the names of its objects."""


@dataclasses.dataclass(frozen=True)
class VisualGenome:
    """Visual Genome's objects.json or scene_graphs.json, or GQA's sceneGraphs, cleaned up from it,
    which MetaShift is made of.

    Attributes:
      path: the file.
      key: how an image's number is written in the records' keys.
    """

    path: str
    key: str = "{}"

    def objects(self) -> Mapping[str, frozenset[str]]:
        content = files.read_json(self.path)
        if isinstance(content, dict):  # GQA's: by image, and by object
            images = [(name, image) for name, image in content.items()]
        else:
            rows = files.entries(self.path, content, ("image_id", "objects"))
            files.unique(self.path, "image", (row["image_id"] for row in rows))
            images = [(row["image_id"], row) for row in rows]
        return {self.key.format(name): self._names(name, image) for name, image in images}

    def _names(self, name: Any, image: Any) -> frozenset[str]:
        found = image.get("objects") if isinstance(image, Mapping) else None
        listed = list(found.values()) if isinstance(found, Mapping) else found
        if not isinstance(listed, list):
            raise UserError(f"{self.path}: image {name!r} has no objects")
        return frozenset(
            text.strip().lower()
            for item in listed
            for text in item.get("names", [item.get("name", "")])
            if text.strip()
        )


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The scene graphs of the embedded world's records: objects and background.

    Attributes:
      source: records with a scene; the pictures are not looked at.
      scene: their feature with the scene graph.
      named, background: what an object and the background are called, from their fields; "" leaves
        the background out.
    """

    source: Source
    scene: str = "scene"
    named: str = "{shape}"
    background: str = "{tone} background"

    def objects(self) -> Mapping[str, frozenset[str]]:
        made = {}
        for index in range(len(self.source)):
            try:
                record = self.source[index]
            except BadRecord:
                continue
            if not (text := base.texts(record.get(self.scene))):
                raise UserError(f"record {record['key']!r} has nothing in {self.scene!r}")
            graph = json.loads(text[0])
            names = [self.named.format(**item) for item in graph["objects"]]
            if self.background:
                names.append(self.background.format(**graph["background"]))
            made[str(record["key"])] = frozenset(names)
        return made


@dataclasses.dataclass(frozen=True)
class ContextSets:
    """The sets of a class: "cat(sofa)" are the images that show a cat and a sofa.

    Attributes:
      annotations: `VisualGenome`, `Scenes`, or your own (`Annotations`).
      classes: the objects to tell apart; images that show several of them belong to none. None
        named: all objects are classes, side by side.
      smallest: images of a set; smaller ones are left out.
      fewest: sets of a class. Of all objects, those with fewer are no classes.
      least_overlap: of two sets for an edge between them (`context_graph.overlap`).
      dimensions: of the positions behind distances; the paper's are 5. They tell apart more than
        dimensions + 1 sets.
      merge: sets that form a community are one, called after its largest.
    """

    annotations: Any
    classes: tuple[str, ...] = ()
    smallest: int = 25
    fewest: int = 6
    least_overlap: float = 0.2
    dimensions: int = 5
    merge: bool = False

    @functools.cached_property
    def sets(self) -> Mapping[str, Mapping[str, frozenset[str]]]:
        """Class -> set -> the keys of its images.

        Raises:
          UserError: a class with too few sets, or no class at all.
        """
        named = set(self.classes)
        found: dict[str, dict[str, set[str]]] = collections.defaultdict(
            lambda: collections.defaultdict(set)
        )
        for key, names in self.annotations.objects().items():
            of = names & named if named else names
            if named and len(of) != 1:
                continue
            for subject in of:
                for other in names - {subject}:
                    found[subject][f"{subject}({other})"].add(key)
        made = {}
        for subject in self.classes or sorted(found):
            large = {
                name: frozenset(keys)
                for name, keys in sorted(found[subject].items())
                if len(keys) >= self.smallest
            }
            if len(large) >= self.fewest:
                made[subject] = self._merged(large) if self.merge else large
            elif named:
                raise UserError(
                    f"{subject!r} has {len(large)} contexts of {self.smallest} images, fewer than "
                    f"{self.fewest}: lower smallest or fewest, or take another class"
                )
        if not made:
            raise UserError(f"no object has {self.fewest} contexts of {self.smallest} images")
        return made

    def __getitem__(self, name: str) -> frozenset[str]:
        """The keys of a set's images. Raises UserError if there is no such set."""
        return self.sets[self.class_of(name)][name]

    def class_of(self, name: str) -> str:
        """The class of a set.

        Raises:
          UserError: there is no such set.
        """
        for subject, sets in self.sets.items():
            if name in sets:
                return subject
        there = [other for sets in self.sets.values() for other in sets]
        shown = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise UserError(f"there is no set {name!r}; there are {shown}")

    def distances(self, name: str) -> dict[str, float]:
        """How far the other sets of a class are from one of them, the nearest first: between their
        spectral positions in the meta-graph (`context_graph.spectral`). Sets that no path of
        overlaps joins to it are infinitely far, and take no part in the positions.

        Raises:
          UserError: no such set, or too few that are joined to it.
        """
        sets = self.sets[self.class_of(name)]
        weights = context_graph.overlap(list(sets.values()), self.least_overlap)
        part = context_graph.parts(weights)
        names = np.array(list(sets))
        joined = part == part[int(np.flatnonzero(names == name)[0])]
        places = context_graph.spectral(weights[np.ix_(joined, joined)], self.dimensions)
        own = places[int(np.flatnonzero(names[joined] == name)[0])]
        far = dict.fromkeys(names.tolist(), float("inf"))
        found = np.linalg.norm(places - own, axis=1)
        far |= dict(zip(names[joined].tolist(), found.tolist(), strict=True))
        del far[name]
        return dict(sorted(far.items(), key=lambda item: item[1]))

    def _merged(self, sets: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
        names = list(sets)
        weights = context_graph.overlap(list(sets.values()), self.least_overlap)
        made = {}
        for group in context_graph.communities(weights):
            largest = max((names[i] for i in group), key=lambda name: len(sets[name]))
            made[largest] = frozenset().union(*(sets[names[i]] for i in group))
        return made


@dataclasses.dataclass(frozen=True)
class InContext:
    """The images of some sets as records: with `label`, the class by its place among the chosen
    ones in alphabetical order, `class_name`, and `context`, the set.

    Attributes:
      images: the source of the images; its keys are read once, from all records.
      contexts: the sets.
      chosen: names of sets. An image of several of them belongs to the first.
      without: names of sets whose images are left out, such as all that is tested on.
    """

    images: Source
    contexts: ContextSets
    chosen: tuple[str, ...]
    without: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, name = self._rows[index]
        subject = self.contexts.class_of(name)
        own = {"label": self._classes.index(subject), "class_name": subject, "context": name}
        return self.images[place] | own

    def where(self, index: int) -> str:
        return self.images.where(self._rows[index][0])

    @functools.cached_property
    def _classes(self) -> list[str]:
        return sorted({self.contexts.class_of(name) for name in self.chosen})

    @functools.cached_property
    def _rows(self) -> list[tuple[int, str]]:
        """Place and set of each image, in the order of the source."""
        left_out = frozenset().union(*(self.contexts[name] for name in self.without))
        of: dict[str, str] = {}
        for name in self.chosen:
            for key in self.contexts[name] - left_out:
                of.setdefault(key, name)
        if not of:
            raise UserError(f"no image is left of {', '.join(self.chosen) or 'no chosen set'}")
        places = annotations.places(self.images, of, "the annotations")
        return sorted((place, of[key]) for key, place in places.items())
