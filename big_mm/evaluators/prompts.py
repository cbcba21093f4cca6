"""Texts that stand for classes: templates, sentences and descriptions of each class, synonyms.

Long lists are the user's files. A list is read from `FILE.txt` (one a line) or `FILE.json`; an
object's member from `FILE.json#KEY`, as in CLIP_benchmark's files of class names and templates by
data set.
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from etils import epath

from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.evaluators import base, files
from big_mm.spec import UserError

PLAIN = ("{}",)
PHOTO = ("a photo of a {}.",)
# For photographs of one thing: distance, quality, number, rendering.
ENSEMBLE = (
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of one {}.",
    "a close photo of a {}.",
    "a {} seen from afar.",
    "a small, blurred photo of a {}.",
    "a photo of many {}.",
    "a drawing of a {}.",
)
_PLACE = re.compile(r"\{c?\}")


class Prompts(Protocol):
    """Texts of each class.

    Attributes:
      renormalize: an image's score for a class is its cosine with the mean of the texts' unit
        embeddings; False: the mean of its cosines with the texts.
    """

    renormalize: ClassVar[bool]

    def texts(self, classnames: Sequence[str]) -> list[list[str]]:
        """At least one text a class; raises UserError where there is none."""

    def protocol(self) -> dict[str, Any]:
        """What pins the texts."""


@dataclasses.dataclass(frozen=True)
class Templates:
    """Every class name in every template.

    Attributes:
      templates: sentences with one {} (or {c}), or a file of them.
    """

    templates: tuple[str, ...] | str = PLAIN

    renormalize: ClassVar[bool] = True

    def texts(self, classnames: Sequence[str]) -> list[list[str]]:
        templates = files.read_list(self.templates)
        return [fill(templates, name) for name in classnames]

    def protocol(self) -> dict[str, Any]:
        return {"templates": list(files.read_list(self.templates))}


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Sentences of each class from a file, as a language model wrote them (CuPL,
    arXiv:2209.03320); the released files of that paper are of this form.

    Attributes:
      path: {class name: [sentence, ...]} as JSON.
      templates: sentences with one {} that are added to each class's own.
    """

    path: str
    templates: tuple[str, ...] | str = ()

    renormalize: ClassVar[bool] = True

    def texts(self, classnames: Sequence[str]) -> list[list[str]]:
        table = read_table(self.path)
        templates = files.read_list(self.templates)
        made = [_entry(table, name, self.path) for name in classnames]
        if empty := [n for n, own in zip(classnames, made, strict=True) if not own + templates]:
            raise UserError(f"{self.path} has no sentence for the class {empty[0]!r}")
        return [
            own + (fill(templates, name) if templates else [])
            for name, own in zip(classnames, made, strict=True)
        ]

    def protocol(self) -> dict[str, Any]:
        return {"sentences": _digest(self.path), "templates": list(files.read_list(self.templates))}


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """Classification by description (arXiv:2210.07183): the mean similarity to "NAME, which has
    DESCRIPTOR" over a class's descriptors; a class without any is asked for by its name.

    Attributes:
      path: {class name: [descriptor, ...]} as JSON, as that paper's files.
      template: of the class name, before the descriptor.
    """

    path: str
    template: str = "{}"

    renormalize: ClassVar[bool] = False

    def texts(self, classnames: Sequence[str]) -> list[list[str]]:
        table = read_table(self.path)
        made = []
        for name in classnames:
            (head,) = fill([self.template], name)
            described = [f"{head}, {clause(d)}" for d in _entry(table, name, self.path)]
            made.append(described or [head])
        return made

    def protocol(self) -> dict[str, Any]:
        return {"descriptors": _digest(self.path), "template": self.template}


@dataclasses.dataclass(frozen=True)
class MostFrequentName:
    """Each class under the name that the training captions use most (REAL-Prompt,
    arXiv:2401.12425); without any occurrence its first name stands.

    Attributes:
      names: {class name: [name, ...]} as JSON.
      captions: the records to count in; a caption counts once for a name, whole words in any case.
      key: the record's key with the captions.
      limit: only the first records.
      prompts: what is made of the names.
    """

    names: str
    captions: Source
    key: str = "captions"
    limit: int | None = None
    prompts: Any = Templates()

    @property
    def renormalize(self) -> bool:
        return self.prompts.renormalize

    def texts(self, classnames: Sequence[str]) -> list[list[str]]:
        table = read_table(self.names)
        choices = [_entry(table, name, self.names) or [name] for name in classnames]
        counts = count_names([n for names in choices for n in names], self._texts())
        return self.prompts.texts([max(names, key=lambda n: counts[n]) for names in choices])

    def protocol(self) -> dict[str, Any]:
        return {"names": _digest(self.names), "counted": self.limit or "all"} | (
            self.prompts.protocol()
        )

    def _texts(self) -> list[str]:
        texts = []
        for index in range(min(len(self.captions), self.limit or len(self.captions))):
            try:
                record = self.captions[index]
            except BadRecord:
                continue
            (row,) = base.captions_of(
                {self.key: [record[self.key]], "key": [record["key"]]}, self.key
            )
            texts += row
        return texts


@dataclasses.dataclass(frozen=True)
class Differential:
    """A second look at the classes that are hard to tell apart (FuDD, arXiv:2311.07593): the `k`
    likeliest classes of an image are ranked again, each by the texts that set it apart from the
    others. A class without such a text keeps its first embedding.

    Attributes:
      path: {class name: {other class name: [what tells the first from the other, ...]}} as JSON.
      k: classes to look at again; 1 changes nothing.
    """

    path: str
    k: int = 5

    def texts(self, name: str, other: str) -> list[str]:
        """What tells a class from another; may be empty."""
        found = read_table(self.path).get(name, {})
        if not isinstance(found, Mapping):
            raise UserError(f"{self.path}: {name!r} must hold texts by other class")
        return list(found.get(other, ()))

    def protocol(self) -> dict[str, Any]:
        return {"second look": f"{self.k} classes, {_digest(self.path)}"}


def fill(templates: Sequence[str], name: str) -> list[str]:
    """A class name in every template.

    Raises:
      UserError: no template, or one that does not hold exactly one {}.
    """
    if not templates:
        raise UserError("zero-shot classification needs at least one template, such as '{}'")
    for template in templates:
        if len(_PLACE.findall(template)) != 1:
            raise UserError(f"the template {template!r} must hold {{}} exactly once")
    return [_PLACE.sub(lambda _: name, template) for template in templates]


def clause(descriptor: str) -> str:
    """A descriptor as a relative clause, by the wording of arXiv:2210.07183's program."""
    first = descriptor.split(" ", 1)[0].lower()
    if first in ("a", "an", "used"):
        return f"which is {descriptor}"
    if first in ("has", "often", "typically", "may", "can"):
        return f"which {descriptor}"
    return f"which has {descriptor}"


def count_names(names: Sequence[str], texts: Sequence[str]) -> collections.Counter[str]:
    """In how many texts each name occurs as whole words, whatever the case."""
    words = {name: re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.I) for name in names}
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(name for name, pattern in words.items() if pattern.search(text))
    return counts


@functools.cache
def read_table(path: str) -> dict[str, Any]:
    """A JSON object by class name.

    Raises:
      UserError: no such file, or no object in it.
    """
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} is not an object by class name")
    return found


def _entry(table: Mapping[str, Any], name: str, path: str) -> list[str]:
    if name not in table:
        raise UserError(f"{path} has no entry for the class {name!r}")
    found = table[name]
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{path}: the entry of {name!r} is not a list of texts")
    return found


def _digest(path: str) -> str:
    digest = hashlib.sha256(files.read_text(path).encode()).hexdigest()
    return f"{epath.Path(path).name} (sha256 {digest[:8]})"
