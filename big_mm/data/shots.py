"""A few examples of each class: what few-shot methods learn from."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Int

from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Shots:
    """Some records of some classes, chosen by the seed alone. Labels are read once, by one pass.

    Attributes:
      source: with a class number in every record; those below 0 belong to no class. One with a
        method `class_number(index)`, which need not read the picture, is asked by that.
      shots: records of each class; None for all there are.
      classes: class numbers of the source; the first becomes class 0, and so on. None for all that
        occur, with their own numbers.
      seed: another one chooses other records.
      label: the records' key with the class number.
    """

    source: Source
    shots: int | None
    classes: tuple[int, ...] | None = None
    seed: int = 0
    label: str = "label"

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots < 1:
            raise UserError(f"Shots: shots={self.shots} must be at least 1, or None for all")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise UserError(f"Shots: classes={self.classes} names a class twice")

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[int(self._chosen[index])]
        if self.classes is None:
            return record
        return record | {self.label: self.classes.index(_number(record[self.label]))}

    def where(self, index: int) -> str:
        return self.source.where(int(self._chosen[index]))

    @functools.cached_property
    def _chosen(self) -> Int[np.ndarray, " n"]:
        """Record numbers, ascending."""
        labels = np.array([self._label(i) for i in range(len(self.source))], np.int64)
        rng, chosen = np.random.default_rng(self.seed), []
        for number in np.unique(labels[labels >= 0]) if self.classes is None else self.classes:
            found = np.flatnonzero(labels == number)
            if len(found) < (self.shots or 1):
                raise UserError(
                    f"Shots: class {number} has {len(found)} of {self.shots or 1} records in "
                    f"{self.source}"
                )
            chosen.append(rng.permutation(found)[: self.shots])
        if not chosen:
            raise UserError(f"Shots: no record of {self.source} has a class in {self.label!r}")
        return np.sort(np.concatenate(chosen))

    def _label(self, index: int) -> int:
        if hasattr(self.source, "class_number"):
            return self.source.class_number(index)
        try:
            record = self.source[index]
        except BadRecord:
            return -1
        if self.label not in record:
            raise UserError(f"Shots: {self.source.where(index)} has no {self.label!r}")
        return _number(record[self.label])


def _number(label: Any) -> int:
    """A class number, from a number or a feature's list of one."""
    values = np.ravel(label)
    return int(values[0]) if len(values) else -1
