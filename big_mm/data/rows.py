"""Record numbers to rows: transformed ones for training, prepared ones for evaluation.

Both kinds are made in two steps, `fetch(number)` and `finish(position, number, fetched)`, so that a
few records can be read before the first of them is decoded. Damage is an outcome of `fetch`, not an
exception: what to do about it is up to `finish`.
"""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NoReturn

import grain
import numpy as np

from big_mm.data.contract import Contract
from big_mm.data.damage import DAMAGE, BadRecord
from big_mm.data.records import Source
from big_mm.data.transforms import Record, Transform
from big_mm.spec import UserError

# Consecutive damaged records that one row steps over before the data counts as unusable.
MAX_NEIGHBOURS = 64


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of several sources under one numbering."""

    sources: tuple[Source, ...]

    @functools.cached_property
    def starts(self) -> list[int]:
        return [0, *itertools.accumulate(map(len, self.sources))][:-1]

    def locate(self, number: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self.starts, number) - 1
        return self.sources[which], number - self.starts[which]

    def next(self, number: int) -> int:
        """The record behind it in its source; behind the last comes the first."""
        source, index = self.locate(number)
        return number + 1 if index + 1 < len(source) else number - index

    def where(self, number: int) -> str:
        source, index = self.locate(number)
        return source.where(index)


class Transformed:
    """Training rows: record number -> transformed record, or that of its next sound neighbour."""

    def __init__(self, records: Records, transforms: Sequence[Transform], cache: bool, seed: int):
        self._records = records
        steps = [
            (t.random_map, True) if isinstance(t, grain.transforms.RandomMap) else (t.map, False)
            for t in transforms
        ]
        first = next((i for i, (_, random) in enumerate(steps) if random), len(steps))
        self._cached, self._rest = steps[: first * cache], steps[first * cache :]
        self._cache: dict[int, Record] | None = {} if cache else None
        self._generators = grain.experimental.RngPool(seed)

    def fetch(self, number: int) -> Record | BadRecord:
        """The record as far as it is the same in every epoch, or what is wrong with it."""
        if self._cache is not None and number in self._cache:
            return self._cache[number]
        source, index = self._records.locate(number)
        try:
            record = source[index]
            for transform, _ in self._cached:
                record = transform(record)
        except BadRecord as damage:
            return damage
        if self._cache is not None:
            for value in record.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False  # shared by all later epochs
            self._cache[number] = record
        return record

    def finish(self, position: int, number: int, fetched: Record | BadRecord) -> Record:
        """The row at `position` of the run, which falls on record `number`."""
        generator = self._generators.acquire_rng(position)
        first_damage, neighbour = None, number
        for _ in range(MAX_NEIGHBOURS):
            try:
                record = self._transform(fetched, generator)
                break
            except BadRecord as damage:
                first_damage = first_damage or damage
            neighbour = self._records.next(neighbour)
            if neighbour == number:
                self._give_up(number, first_damage)
            fetched = self.fetch(neighbour)
        else:
            self._give_up(number, first_damage)
        self._generators.release_rng(generator)
        record.setdefault("label", -1)
        record["bad_index"] = -1 if first_damage is None else number
        record["bad_kind"] = -1 if first_damage is None else DAMAGE.index(first_damage.kind)
        return record

    def _transform(self, fetched: Record | BadRecord, generator: np.random.Generator) -> Record:
        if isinstance(fetched, BadRecord):
            raise fetched
        record = dict(fetched)
        for transform, random in self._rest:
            record = transform(record, generator) if random else transform(record)
        return record

    def _give_up(self, number: int, damage: BadRecord) -> NoReturn:
        raise UserError(
            f"all records from {self._records.where(number)} on are damaged ({damage}): "
            "python -m big_mm.doctor examines shards"
        )


@dataclasses.dataclass(frozen=True)
class Examined:
    """Evaluation rows; past the end of the source, and for damaged records, empty ones."""

    source: Source
    contract: Contract
    pictures: bool = True

    def fetch(self, number: int) -> Record | BadRecord | None:
        try:
            return self.source[number] if number < len(self.source) else None
        except BadRecord as damage:
            return damage

    def finish(self, position: int, number: int, fetched: Record | BadRecord | None) -> Record:
        if fetched is None:
            return self._blank()
        try:
            if isinstance(fetched, BadRecord):
                raise fetched
            return self._blank() | self._prepare(fetched) | {"mask": True}
        except BadRecord as damage:
            kind = DAMAGE.index(damage.kind)
            return self._blank() | {"bad_index": number, "bad_kind": kind}

    def _blank(self) -> Record:
        size, length = self.contract.image_size, self.contract.max_len
        blank: Record = {"image": np.zeros((size, size, 3), np.uint8)} if self.pictures else {}
        blank |= {
            "mask": False,
            "label": -1,
            "key": "",
            "captions": [],
            "bad_index": -1,
            "bad_kind": -1,
        }
        if self.contract.tokenizer is not None:
            blank["tokens"] = np.full(length, self.contract.tokenizer.pad_id, np.int32)
            blank["token_mask"] = np.zeros(length, bool)
        return blank

    def _prepare(self, record: Record) -> Record:
        if not record.get("image"):
            raise BadRecord("missing_image")
        prepared = {name: value for name, value in record.items() if name != "image"}
        if self.pictures:
            prepared["image"] = self.contract.image(record["image"])
        if "captions" in record:
            captions = [c for c in record["captions"] if c.strip()]
            if not captions:
                raise BadRecord("empty_caption")
            prepared["captions"] = captions
            if self.contract.tokenizer is not None:
                tokens, token_mask = self.contract.text(captions[:1])
                prepared |= {"tokens": tokens[0], "token_mask": token_mask[0]}
        return prepared
