"""Objects, attributes and relations that two captions share: CAPTURE (arXiv:2405.19092).

The parser from text to graph is the caller's; so are synonyms and a soft similarity of phrases.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

_EPS = 1e-6
_WEIGHTS = {"objects": 5, "attributes": 5, "relations": 2}

Relation = tuple[str, str, str]
Synonyms = Callable[[str, str], bool]
# Similarities, about 0 to 1, of each of the first phrases with each of the second.
Soft = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "first second"]]


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a caption says.

    Attributes:
      objects: lemmas, each once.
      attributes: words, as often as they belong to an object.
      relations: (subject, relation, object), each once.
    """

    objects: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    relations: tuple[Relation, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 of each kind, and `capture`: (5 objects + 5 attributes +
    2 relations) / 12 of the F1s. A kind that both captions lack scores 0, as in the official
    program: two captions without relations reach at most 10/12.
    """

    precision: dict[str, float]
    recall: dict[str, float]
    f1: dict[str, float]

    @property
    def capture(self) -> float:
        total = sum(weight * self.f1[kind] for kind, weight in _WEIGHTS.items())
        return total / sum(_WEIGHTS.values())


def compare(
    candidate: Graph,
    reference: Graph,
    synonyms: Synonyms | None = None,
    soft: Soft | None = None,
) -> Scores:
    """Matches equal items first, then synonyms, each item once; what remains counts by its largest
    soft similarity, towards precision and towards recall.
    """
    precision, recall, f1 = {}, {}, {}
    for kind in _WEIGHTS:
        said, true = getattr(candidate, kind), getattr(reference, kind)
        own, theirs = _matches(said, true, synonyms, soft)
        p, r = own / (len(said) + _EPS), theirs / (len(true) + _EPS)
        precision[kind], recall[kind], f1[kind] = p, r, 2 * p * r / (p + r + _EPS)
    return Scores(precision, recall, f1)


def _matches(said: Sequence, true: Sequence, synonyms: Synonyms | None, soft: Soft | None):
    """How much of what was said is true, and how much of the truth was said."""
    rules: list[Callable] = [lambda a, b: a == b]
    if synonyms is not None:
        rules.append(lambda a, b: all(map(synonyms, _parts(a), _parts(b))))
    left, open_ = list(said), list(true)
    for rule in rules:
        for item in list(left):
            if (other := next((o for o in open_ if rule(item, o)), None)) is not None:
                left.remove(item)
                open_.remove(other)
    matched = float(len(said) - len(left))
    if soft is None or not left or not open_:
        return matched, matched
    phrases = [[" ".join(_parts(item)) for item in items] for items in (left, open_)]
    similarity = np.asarray(soft(*phrases), np.float64)
    return matched + similarity.max(axis=1).sum(), matched + similarity.max(axis=0).sum()


def _parts(item: str | Relation) -> Sequence[str]:
    return [item] if isinstance(item, str) else item
