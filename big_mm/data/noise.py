"""Sources with faults of known kind and share: what a robust method must withstand."""

import dataclasses
from typing import Any

import numpy as np

from big_mm.data.records import Source
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Mismatched:
    """A source in which some records have the texts of others: noisy correspondence.

    Which they are, and whose texts they have, is a function of the seed and the record, the same in
    every epoch. A record says so in `mismatched`: 1 or 0.

    Attributes:
      source: the sound source, of two records or more.
      share: of the records, each with this probability.
      texts: the record's keys with texts; those named here come from the other record together.
    """

    source: Source
    share: float
    seed: int = 0
    texts: tuple[str, ...] = ("captions",)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"Mismatched: share={self.share} must be from 0 to 1")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`; damaged if it or the record that lends its texts is."""
        record, lender = self.source[index], self.lender(index)
        if lender == index:
            return record | {"mismatched": 0}
        other = self.source[lender]
        if missing := [key for key in self.texts if key not in record or key not in other]:
            raise UserError(f"Mismatched: the records of {self.where(index)} have no {missing}")
        return record | {key: other[key] for key in self.texts} | {"mismatched": 1}

    def where(self, index: int) -> str:
        return self.source.where(index)

    def lender(self, index: int) -> int:
        """The record whose texts record `index` has: itself, if it is a sound one."""
        chance, place = np.random.default_rng((self.seed, index)).random(2)
        if chance >= self.share:
            return index
        if len(self) < 2:
            raise UserError("Mismatched: a source of one record has no other texts")
        return (index + 1 + int(place * (len(self) - 1))) % len(self)
