"""Reads captions back: what a text claims, and which of the claims hold in a scene.

The parser is lenient, for it also reads what models write: unknown words are skipped, and a
phrase that breaks off ("a red" without a noun) makes the claims incomplete instead of failing.
"""

import dataclasses
import re

from big_mm.data.scenes import language
from big_mm.data.scenes.world import (
    COLOURS,
    SHAPES,
    TONES,
    Scene,
    in_region,
    relation,
)

# (colour, shape) as a text names it: the colour may be missing.
StatedKind = tuple[str | None, str]


@dataclasses.dataclass(frozen=True)
class Group:
    """A counted noun phrase. None: not said ("red circles" has no count)."""

    count: int | None
    colour: str | None
    shape: str
    size: str | None = None
    texture: str | None = None


@dataclasses.dataclass(frozen=True)
class Relation:
    """All objects of kind `subject` stand in `name` (one of RELATIONS) to all of kind `target`."""

    subject: StatedKind
    name: str
    target: StatedKind


@dataclasses.dataclass(frozen=True)
class Placement:
    """`count` objects of a kind (None: all of them) are in a region, a key of REGIONS."""

    count: int | None
    kind: StatedKind
    region: str


@dataclasses.dataclass(frozen=True)
class Claims:
    """What a caption says. `complete` is False when a phrase was broken off."""

    groups: tuple[Group, ...] = ()
    relations: tuple[Relation, ...] = ()
    placements: tuple[Placement, ...] = ()
    total: int | None = None
    tone: str | None = None
    complete: bool = True

    def kinds(self) -> dict[StatedKind, int | None]:
        """The stated number of each (colour, shape); groups of one kind are added up."""
        kinds: dict[StatedKind, int | None] = {}
        for group in self.groups:
            kind = (group.colour, group.shape)
            before = kinds.get(kind, 0)
            unknown = before is None or group.count is None
            kinds[kind] = None if unknown else before + group.count
        return kinds


def _lexicon() -> dict[str, tuple[str, object]]:
    """Phrase -> (role, value), from the words of the grammar."""
    words: dict[str, tuple[str, object]] = {"a": ("count", 1), "an": ("count", 1)}
    for number, word in enumerate((*language.COUNT_WORDS, "seven", "eight", "nine", "ten"), 1):
        words |= {word: ("count", number), str(number): ("count", number)}
    for name in SHAPES:
        words |= {name: ("shape", name), language.plural(name): ("shapes", name)}
    words |= {name: ("colour", name) for name in COLOURS}
    tables = {
        "size": language.SIZE_WORDS,
        "texture": language.TEXTURE_WORDS,
        "relation": language.RELATION_WORDS,
        "region": language.REGION_WORDS,
    }
    for role, table in tables.items():
        words |= {word: (role, value) for value, said in table.items() for word in said}
    words |= {word: ("with", value) for value, word in language.TEXTURE_PHRASES.items()}
    words |= {f"{tone} background": ("tone", tone) for tone in TONES}
    words |= {word: ("total", None) for word in ("shape", "shapes", "object", "objects")}
    words |= {"the": ("the", None), "that is": ("that", None), "that are": ("that", None)}
    words |= {"is": ("verb", None), "are": ("verb", None)}
    return words


_LEXICON = _lexicon()
# The longest phrase wins; anything else is one word or one sign.
_TOKEN = re.compile(
    "|".join(rf"\b{re.escape(p)}\b" for p in sorted(_LEXICON, key=len, reverse=True)) + r"|\w+|\S"
)


def parse_caption(text: str) -> Claims:
    """The claims of a caption of the grammar, or of anything that resembles one."""
    reader = _Reader()
    for token in _TOKEN.findall(" ".join(text.lower().split())):
        reader.read(*_LEXICON.get(token, ("other", None)))
    return reader.claims()


@dataclasses.dataclass
class _Phrase:
    """A noun phrase under way; `definite` for "the red star", which counts nothing."""

    count: int | None = None
    definite: bool = False
    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    @property
    def kind(self) -> StatedKind:
        return self.colour, self.shape

    @property
    def described(self) -> bool:
        return bool(self.size or self.texture or self.colour)


class _Reader:
    """Reads tokens from left to right. Phrases stay open until `claims`: a colour may follow."""

    def __init__(self):
        self.open = _Phrase()
        self.phrases: list[_Phrase] = []
        self.relations: list[tuple[_Phrase, str, _Phrase]] = []
        self.placements: list[tuple[int | None, _Phrase, str]] = []
        self.waiting: tuple[_Phrase, str] | None = None
        self.expects_colour = False
        self.total = self.tone = None
        self.complete = True

    def read(self, role: str, value) -> None:
        if role == "colour" and self.expects_colour and self.phrases:
            self.phrases[-1].colour = value
        elif role in ("size", "texture", "colour"):
            setattr(self.open, role, value)
        elif role == "count":
            self._start()
            self.open.count = value
        elif role == "the":
            self._start()
            self.open.definite = True
        elif role in ("shape", "shapes"):
            self._close(value, is_plural=role == "shapes")
        elif role == "region":
            self._place(value)
        elif role != "verb":
            count = self.open.count
            self._start()
            if role == "total":
                self.total = count
            elif role == "tone":
                self.tone = value
            elif role == "with" and self.phrases:
                self.phrases[-1].texture = value
            elif role == "relation":
                self.complete &= bool(self.phrases) and self.waiting is None
                self.waiting = (self.phrases[-1], value) if self.phrases else None
        self.expects_colour = role == "that"

    def _start(self) -> None:
        """Begins a noun phrase; attributes that found no noun were broken off."""
        self.complete &= not self.open.described
        self.open = _Phrase()

    def _close(self, shape: str, is_plural: bool) -> None:
        phrase, self.open = self.open, _Phrase()
        phrase.shape = shape
        if is_plural and phrase.count == 1:
            phrase.count = None  # "a red circles": no telling how many
        self.phrases.append(phrase)
        if self.waiting:
            self.relations.append((*self.waiting, phrase))
            self.waiting = None

    def _place(self, region: str) -> None:
        """ "two red circles at the top", or "one is at the top" about the latest phrase."""
        counts_members = self.open.count is not None and not self.open.described
        count = self.open.count if counts_members else None
        self._start()
        if self.phrases:
            self.placements.append((count, self.phrases[-1], region))

    def claims(self) -> Claims:
        self._start()
        return Claims(
            groups=tuple(
                Group(p.count, p.colour, p.shape, p.size, p.texture)
                for p in self.phrases
                if not p.definite
            ),
            relations=tuple(Relation(s.kind, name, t.kind) for s, name, t in self.relations),
            placements=tuple(Placement(n, p.kind, region) for n, p, region in self.placements),
            total=self.total,
            tone=self.tone,
            complete=self.complete and self.waiting is None,
        )


def check_caption(text: str, scene: Scene | str) -> dict[str, bool | float]:
    """Judges a caption against a scene (or its JSON).

    Verdicts about the whole, which hold only for captions that name everything:
      colours, shapes: the set of stated colours (shapes) is that of the scene.
      counts: the stated numbers, sorted, are the sizes of the scene's groups, sorted.
      exact: the stated {(colour, shape): count} equals the scene's; nothing is broken off.
    Verdicts about what is said, which a partial caption can pass:
      true: at least one claim, nothing broken off, and every claim holds: groups by their exact
        number, with size and texture; relations; places; the total; the background.
      precision: the share of the stated groups that hold; 0 if there is none.
      recall: the share of the scene's groups that are stated with the right number.
    """
    if isinstance(scene, str):
        scene = Scene.from_json(scene)
    claims = parse_caption(text)
    stated, actual = claims.kinds(), {kind: len(m) for kind, m in scene.groups().items()}
    holds = [_group_holds(group, scene) for group in claims.groups]
    details = _details_hold(claims, scene)
    right = sum(stated.get(kind) == count for kind, count in actual.items())
    return {
        "colours": {colour for colour, _ in stated} == {colour for colour, _ in actual},
        "shapes": {shape for _, shape in stated} == {shape for _, shape in actual},
        "counts": None not in stated.values()
        and sorted(stated.values()) == sorted(actual.values()),
        "exact": claims.complete and stated == actual,
        "true": claims.complete and bool(holds or details) and all(holds) and all(details),
        "precision": sum(holds) / len(holds) if holds else 0.0,
        "recall": right / len(actual),
    }


def _group_holds(group: Group, scene: Scene) -> bool:
    """Whether exactly `count` objects have everything that the group says of them."""
    wanted = {k: v for k, v in vars(group).items() if k != "count" and v is not None}
    matching = sum(all(getattr(o, k) == v for k, v in wanted.items()) for o in scene.objects)
    return matching == group.count if group.count is not None else matching > 1


def _details_hold(claims: Claims, scene: Scene) -> list[bool]:
    """Verdicts on the claims beside the groups; claims about absent kinds are false."""
    groups = scene.groups()
    verdicts = []
    for claim in claims.relations:
        subjects, targets = groups.get(claim.subject, ()), groups.get(claim.target, ())
        pairs = [relation(a, b) == claim.name for a in subjects for b in targets]
        verdicts.append(bool(pairs) and all(pairs))
    for claim in claims.placements:
        members = groups.get(claim.kind, ())
        inside = sum(in_region(item, claim.region) for item in members)
        wanted = len(members) if claim.count is None else claim.count
        verdicts.append(bool(members) and inside >= wanted)
    if claims.total is not None:
        verdicts.append(claims.total == len(scene.objects))
    if claims.tone is not None:
        verdicts.append(claims.tone == scene.background.tone)
    return verdicts
