"""Says true things about a scene: a grammar with paraphrases, short and long.

The words here are the single source for the generator and for the parser (parsing.py), so every
sentence of the grammar parses back to the facts it was made from. Templates and noun phrases
marked held out are never used for training: they test phrasings that a model has not met.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import re

import numpy as np

from big_mm.data.scenes.world import (
    NUM_CLASSES,
    Kind,
    Object,
    Scene,
    class_kind,
    common_region,
    group_relation,
)
from big_mm.spec import choose

MAX_SHORT_WORDS = 12
MAX_LONG_WORDS = 32

COUNT_WORDS = ("one", "two", "three", "four", "five", "six")
SIZE_WORDS = {
    "small": ("small", "tiny"),
    "medium": ("medium", "medium"),
    "large": ("large", "big"),
}
TEXTURE_WORDS = {
    "solid": ("solid", "plain"),
    "striped": ("striped", "striped"),
    "dotted": ("dotted", "spotted"),
}
# Said after the noun: "a red star with stripes".
TEXTURE_PHRASES = {"striped": "with stripes", "dotted": "with dots"}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
REGION_WORDS = {
    "top left": ("in the top left", "in the top left corner"),
    "top right": ("in the top right", "in the top right corner"),
    "bottom left": ("in the bottom left", "in the bottom left corner"),
    "bottom right": ("in the bottom right", "in the bottom right corner"),
    "middle": ("in the middle", "in the middle"),
    "top": ("at the top", "at the top"),
    "bottom": ("at the bottom", "at the bottom"),
    "left": ("on the left", "on the left"),
    "right": ("on the right", "on the right"),
}


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return ("an " if words[0] in "aeiou" else "a ") + words


# Zero-shot classification: the 64 class names, and prompts they fit (none of them held out).
CLASS_NAMES = tuple(article(" ".join(class_kind(i))) for i in range(NUM_CLASSES))
PROMPTS = ("{}", "a picture of {}", "an image of {}", "there is {}")


@dataclasses.dataclass(frozen=True)
class _Template:
    """A pattern whose fields must all be sayable of the scene; `weight` is its frequency."""

    text: str
    weight: float = 1.0
    held_out: bool = False

    @functools.cached_property
    def fields(self) -> frozenset[str]:
        return frozenset(re.findall(r"{(\w+)}", self.text))


_SHORT = (
    _Template("{list}", 4.0),
    _Template("a picture of {list}"),
    _Template("an image of {list}"),
    _Template("this image shows {list}", 0.7),
    _Template("there {are} {list}"),
    _Template("{list} on a {tone} background"),
    _Template("{total} shapes: {list}", 0.7),
    _Template("{list} {place}", 1.5),
    _Template("{first} {relation} {second}", 4.0),
    _Template("picture: {list}", held_out=True),
    _Template("this picture shows {list}", held_out=True),
    _Template("an image with {list}", held_out=True),
    _Template("a {tone} background with {list}", held_out=True),
)
_LONG = (
    _Template("{list} on a {tone} background. {facts}", 2.0),
    _Template("{list}. {facts}", 2.0),
    _Template("on a {tone} background, {list}. {facts}"),
    _Template("a picture of {list}. {facts}"),
    _Template("there {are} {list}. {facts}"),
    _Template("{total} shapes on a {tone} background: {list}. {facts}"),
    _Template("this picture shows {list}. {facts}", held_out=True),
    _Template("a {tone} background with {list}. {facts}", held_out=True),
    _Template("an image with {list}. {facts}", held_out=True),
)
# Always short enough, whatever the scene; in training, and held out.
_BARE = {
    held_out: [next(t for t in _SHORT if t.held_out == held_out)] for held_out in (False, True)
}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """How scenes are described; every caption names all (count, colour, shape) groups exactly.

    Attributes:
      num_short, num_long: captions of each length a scene gets (repeats are dropped).
      shuffle: probability that groups are listed in random order instead of the largest first.
      details: probability that a short caption adds sizes and textures.
    """

    num_short: int = 3
    num_long: int = 2
    shuffle: float = 0.25
    details: float = 0.3

    def short(self, rng: np.random.Generator, scene: Scene, held_out: bool = False) -> list[str]:
        """At most 12 words each: "two red circles and a blue star"."""
        speaker = _Speaker(rng, scene, self, held_out)
        return _distinct(speaker.short() for _ in range(self.num_short))

    def long(self, rng: np.random.Generator, scene: Scene, held_out: bool = False) -> list[str]:
        """At most 32 words each: sizes and textures, background, positions or relations."""
        speaker = _Speaker(rng, scene, self, held_out)
        return _distinct(speaker.long() for _ in range(self.num_long))


DEFAULT_GRAMMAR = Grammar()

# How much `describe` says, from the least.
DETAILS = ("number", "groups", "shapes", "colours", "kinds")


def describe(scene: Scene, detail: str) -> str:
    """One plain caption, always in the same words, the largest group first.

    Args:
      detail: "number": three shapes; "groups": two shapes and a shape; "shapes": two circles and a
        star; "colours": two red shapes and a blue shape; "kinds": two red circles and a blue star.

    Raises:
      UserError: another detail.
    """
    choose("detail", detail, DETAILS)
    if detail == "number":
        return f"{COUNT_WORDS[len(scene.objects) - 1]} shape{'s' * (len(scene.objects) > 1)}"
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for kind, members in scene.groups().items():
        words = [kind[0]] if detail in ("colours", "kinds") else []
        words += [kind[1]] if detail in ("shapes", "kinds") else ["shape"]
        # What the words do not tell apart is one group, unless groups are all that is told.
        counts[(" ".join(words), *(kind if detail == "groups" else ()))] += len(members)
    return _join([_counted(n, plural(what) if n > 1 else what) for (what, *_), n in counts.items()])


class _Speaker:
    """The fields of the templates, as words about one scene."""

    def __init__(self, rng, scene: Scene, grammar: Grammar, held_out: bool):
        self.rng, self.scene, self.grammar, self.held_out = rng, scene, grammar, held_out
        self.groups = scene.groups()

    def short(self) -> str:
        kinds = self._ordered_kinds()
        detailed = self.rng.random() < self.grammar.details
        caption = self._fill(_SHORT, self._fields(kinds, detailed))
        if _num_words(caption) > MAX_SHORT_WORDS and detailed:
            caption = self._fill(_SHORT, self._fields(kinds, False))
        if _num_words(caption) > MAX_SHORT_WORDS:
            caption = self._fill(_BARE[self.held_out], self._fields(kinds, False))
        return caption

    def long(self) -> str:
        kinds = self._ordered_kinds()
        fields, bare_fields = self._fields(kinds, True), self._fields(kinds, False)
        facts = self._facts(kinds)
        # Everything if there is room, else fewer facts, then no sizes and textures.
        for said, chosen in (
            (fields, facts[:2]),
            (fields, facts[:1]),
            (bare_fields, facts[:2]),
            (bare_fields, facts[:1]),
        ):
            caption = self._fill(_LONG, said | {"facts": ". ".join(chosen)})
            if _num_words(caption) <= MAX_LONG_WORDS:
                return caption
        return self._fill(_LONG, fields | {"facts": ""}).removesuffix(". ")

    def _fill(self, templates, fields: dict[str, str]) -> str:
        usable = [t for t in templates if t.held_out == self.held_out and t.fields <= set(fields)]
        cumulative = list(itertools.accumulate(t.weight for t in usable))
        index = bisect.bisect_right(cumulative, self.rng.random() * cumulative[-1])
        return usable[index].text.format_map(fields)

    def _fields(self, kinds: list[Kind], detailed: bool) -> dict[str, str]:
        phrases = [self._phrase(kind, detailed) for kind in kinds]
        fields = {
            "list": _join(phrases),
            "are": "is" if len(self.groups[kinds[0]]) == 1 else "are",
            "tone": self.scene.background.tone,
        }
        if len(kinds) > 1:
            fields["total"] = COUNT_WORDS[len(self.scene.objects) - 1]
        if len(kinds) == 1:
            region = common_region(self.scene.objects)
            if region:
                fields["place"] = self._word(REGION_WORDS[region])
        elif len(kinds) == 2:
            relation = group_relation(*(self.groups[kind] for kind in kinds))
            if relation:
                words = self._word(RELATION_WORDS[relation])
                fields |= {"first": phrases[0], "relation": words, "second": phrases[1]}
        return fields

    def _phrase(self, kind: Kind, detailed: bool) -> str:
        """A counted noun phrase; details are said where all members of the group share them."""
        members = self.groups[kind]
        colour, shape = kind
        noun = shape if len(members) == 1 else plural(shape)
        sizes, textures = {o.size for o in members}, {o.texture for o in members}
        before, after = [], ""
        if detailed and len(sizes) == 1 and self._worth_saying(members[0].size):
            before.append(self._word(SIZE_WORDS[members[0].size]))
        if detailed and len(textures) == 1 and self._worth_saying(members[0].texture):
            texture = members[0].texture
            if texture in TEXTURE_PHRASES and self.rng.random() < 0.25:
                after = " " + TEXTURE_PHRASES[texture]
            else:
                before.append(self._word(TEXTURE_WORDS[texture]))
        if self.held_out and len(self.groups) == 1 and not after:
            after = f" that {'is' if len(members) == 1 else 'are'} {colour}"
            words = " ".join([*before, noun])
        else:
            words = " ".join([*before, colour, noun])
        return _counted(len(members), words) + after

    def _facts(self, kinds: list[Kind]) -> list[str]:
        """Sentences about positions, in random order, no two about the same pair or group."""
        if len(self.scene.objects) == 1:
            return [f"it is {self._word(REGION_WORDS[common_region(self.scene.objects)])}"]
        if len(kinds) == 1:
            return [self._members(kinds[0])]
        facts = []
        for first, second in itertools.combinations(kinds, 2):
            if self.rng.random() < 0.5:
                first, second = second, first
            relation = group_relation(self.groups[first], self.groups[second])
            if relation:
                words = self._word(RELATION_WORDS[relation])
                facts.append(f"{self._definite(first)} {words} {_the(second, self.groups)}")
        if len(facts) < 2:
            for kind in kinds:
                region = common_region(self.groups[kind])
                if region:
                    facts.append(f"{self._definite(kind)} {self._word(REGION_WORDS[region])}")
        if not facts:
            facts = [f"of {_the(kind, self.groups)} {self._members(kind)}" for kind in kinds]
        return [facts[i] for i in self.rng.permutation(len(facts))]

    def _members(self, kind: Kind) -> str:
        """Where the members of a group are: "one is at the top and two are on the left"."""
        by_region: dict[str, list[Object]] = {}
        for item in self.groups[kind]:
            by_region.setdefault(common_region([item]), []).append(item)
        parts = []
        for region, members in list(by_region.items())[:3]:
            verb = "is" if len(members) == 1 else "are"
            where = self._word(REGION_WORDS[region])
            parts.append(f"{COUNT_WORDS[len(members) - 1]} {verb} {where}")
        return _join(parts)

    def _definite(self, kind: Kind) -> str:
        verb = "is" if len(self.groups[kind]) == 1 else "are"
        return f"{_the(kind, self.groups)} {verb}"

    def _worth_saying(self, detail: str) -> bool:
        """What is ordinary goes without saying half of the time."""
        return detail not in ("medium", "solid") or self.rng.random() < 0.5

    def _ordered_kinds(self) -> list[Kind]:
        kinds = list(self.groups)
        if self.rng.random() < self.grammar.shuffle:
            kinds = [kinds[i] for i in self.rng.permutation(len(kinds))]
        return kinds

    def _word(self, synonyms: tuple[str, ...]) -> str:
        return synonyms[int(self.rng.random() * len(synonyms))]


def _the(kind: Kind, groups: dict[Kind, list[Object]]) -> str:
    noun = kind[1] if len(groups[kind]) == 1 else plural(kind[1])
    return f"the {kind[0]} {noun}"


def _counted(count: int, words: str) -> str:
    return article(words) if count == 1 else f"{COUNT_WORDS[count - 1]} {words}"


def _join(parts: list[str]) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _num_words(caption: str) -> int:
    return len(caption.split())


def _distinct(captions) -> list[str]:
    return list(dict.fromkeys(captions))
