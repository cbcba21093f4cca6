"""Captions spoilt at random: what is no longer well-formed, or no longer true."""

import dataclasses

import grain
import numpy as np

from big_mm.data.damage import BadRecord
from big_mm.data.transforms import Record
from big_mm.spec import UserError, choose

WAYS = ("repeated", "shortened", "inserted", "replaced", "shuffled")


@dataclasses.dataclass(frozen=True)
class Corrupt(grain.transforms.RandomMap):
    """Spoils a caption in one of several ways, drawn evenly. The result always differs from it.

    The ways, and their defaults, are those of CLIP-Caption-Reward (arXiv:2205.13115): a run of
    words is "repeated" at random places or left out ("shortened"), words of `words` are "inserted"
    or put in others' place ("replaced"), or all words are "shuffled". Words are what stands between
    spaces.

    Attributes:
      words: that are inserted or put in others' place.
      ways: some of `WAYS`.
      run: the longest run of words that is repeated or left out.
      times: how often a run is repeated, or words inserted or replaced, at most.
    """

    words: tuple[str, ...]
    ways: tuple[str, ...] = WAYS
    run: int = 3
    times: int = 3
    key: str = "caption"
    out: str = "corrupted"

    def __post_init__(self) -> None:
        for way in self.ways:
            choose("way", way, WAYS)
        if not self.ways:
            raise UserError(f"Corrupt: ways=() leaves none of {', '.join(WAYS)}")
        if len(set(self.words)) < 2:
            raise UserError(f"Corrupt: words={self.words} must be two or more")
        if self.run < 1 or self.times < 1:
            raise UserError(f"Corrupt: run={self.run}, times={self.times} must be at least 1")

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        said = record[self.key].split()
        if len(set(said)) < (2 if set(self.ways) == {"shuffled"} else 1):
            raise BadRecord("empty_caption", f"{record[self.key]!r} has too few words to spoil")
        spoilt = said
        while spoilt == said:
            way = self.ways[int(rng.integers(len(self.ways)))]
            spoilt = getattr(self, f"_{way}")(said, rng)
        return record | {self.out: " ".join(spoilt)}

    def _repeated(self, said: list[str], rng: np.random.Generator) -> list[str]:
        start, end = self._place(said, rng)
        spoilt = said
        for _ in range(int(rng.integers(1, self.times + 1))):
            place = int(rng.integers(len(spoilt) + 1))
            spoilt = [*spoilt[:place], *said[start:end], *spoilt[place:]]
        return spoilt

    def _shortened(self, said: list[str], rng: np.random.Generator) -> list[str]:
        start, end = self._place(said, rng)
        return [*said[:start], *said[end:]]

    def _inserted(self, said: list[str], rng: np.random.Generator) -> list[str]:
        spoilt = said
        for _ in range(int(rng.integers(1, self.times + 1))):
            place = int(rng.integers(len(spoilt)))
            spoilt = [*spoilt[:place], self._word(rng), *spoilt[place:]]
        return spoilt

    def _replaced(self, said: list[str], rng: np.random.Generator) -> list[str]:
        spoilt = list(said)
        for _ in range(int(rng.integers(1, self.times + 1))):
            spoilt[int(rng.integers(len(spoilt)))] = self._word(rng)
        return spoilt

    def _shuffled(self, said: list[str], rng: np.random.Generator) -> list[str]:
        return [said[i] for i in rng.permutation(len(said))]

    def _word(self, rng: np.random.Generator) -> str:
        return self.words[int(rng.integers(len(self.words)))]

    def _place(self, said: list[str], rng: np.random.Generator) -> tuple[int, int]:
        length = int(rng.integers(1, min(self.run, len(said)) + 1))
        start = int(rng.integers(len(said) - length + 1))
        return start, start + length
