"""TFRecord shards as a random-access source, and their writer. Every read checks both checksums."""

import bisect
import contextlib
import dataclasses
import functools
import itertools
import operator
import os
import resource
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

from absl import logging

from big_mm.data import record_index, shards
from big_mm.data.damage import DAMAGE, BadRecord
from big_mm.data.examples import Schema, decode
from big_mm.data.record_index import RECORD_HEADER, RECORD_OVERHEAD, Index, masked_crc
from big_mm.data.shards import Stamp
from big_mm.spec import UserError

__all__ = ["DAMAGE", "BadRecord", "Source", "TFRecordSource", "TFRecordWriter", "write_shards"]

MAX_RECORD_BYTES = 256 << 20
_THREADS = 16
# How many records of the first shard, and how many shards, are asked whether they know a feature.
_PROBES = 16


class Location(NamedTuple):
    """Where a record begins."""

    file: str
    record: int
    offset: int

    def __str__(self) -> str:
        return f"{self.file} @ byte {self.offset} (record {self.record})"


@runtime_checkable
class Source(Protocol):
    """What every kind of storage offers to the pipeline; picklable, and safe to read in threads."""

    def __len__(self) -> int:
        """Number of records, damaged ones included."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index`: image, captions, key, ... Raises BadRecord if it is damaged."""

    def where(self, index: int) -> str:
        """Where record `index` is, for people: file, byte and number."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard as it was when the source was opened.

    Attributes:
      url: path or URL.
      stamp: its size in bytes and its version.
      count: number of records, damaged ones included.
      index: the bytes of its index if that is not stored in a file.
    """

    url: str
    stamp: Stamp
    count: int
    index: bytes | None


@dataclasses.dataclass(frozen=True)
class TFRecordSource:
    """The records of TFRecord shards, one shard after the other.

    Files are looked at when the source is first used (or by `open`), not when it is made, so that a
    config can be read on a machine without the data. A pickled source takes along what it knows of
    its shards; opened in another process it lists and indexes nothing again.

    A damaged stretch of a shard is a record that raises BadRecord; an empty shard is logged and has
    none.

    Attributes:
      shards: paths or URLs, with the patterns of `shards.expand`.
      schema: which features hold what.
      max_record_bytes: larger records are "over_large" and are not read.
      store_index: False to index the shards anew, keep that in memory and write nothing.
    """

    shards: str | Sequence[str]
    schema: Schema = Schema()
    max_record_bytes: int = MAX_RECORD_BYTES
    store_index: bool = True

    def open(self) -> "TFRecordSource":
        """Lists, indexes and checks the shards now, and returns the source itself.

        Raises:
          UserError: missing or compressed shards, or a schema that names an absent feature.
        """
        _ = self._opened
        return self

    def __len__(self) -> int:
        return self._opened[1][-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, number = self._find(index)
        try:
            record = self.schema.read(_reader(shard).read(number, self.max_record_bytes))
        except BadRecord as error:
            raise error.at(self.where(index)) from error
        if self.schema.key is None:
            record["key"] = f"{os.path.basename(shard.url)}/{number}"
        return record

    def read(self, index: int) -> bytes:
        """The verified bytes of record `index`, whatever they hold. Raises BadRecord."""
        shard, number = self._find(index)
        try:
            return _reader(shard).read(number, self.max_record_bytes)
        except BadRecord as error:
            raise error.at(self.where(index)) from error

    def where(self, index: int) -> str:
        """Like "cifar10/test.tfrecord @ byte 4049 (record 3)"."""
        return str(self.locate(index))

    def locate(self, index: int) -> Location:
        """File, number in the file and offset of record `index`."""
        shard, number = self._find(index)
        return Location(shard.url, number, _reader(shard).index[number][0])

    def shards_found(self) -> tuple[Shard, ...]:
        """The shards in the order of their records."""
        return self._opened[0]

    def _find(self, index: int) -> tuple[Shard, int]:
        found, ends = self._opened
        index = operator.index(index)
        if not -ends[-1] <= index < ends[-1]:
            raise IndexError(f"record {index} of {ends[-1]}")
        index %= ends[-1]
        position = bisect.bisect_right(ends, index)
        return found[position], index - (ends[position - 1] if position else 0)

    @functools.cached_property
    def _opened(self) -> tuple[tuple[Shard, ...], list[int]]:
        """The shards, and for each the number of records up to its end."""
        stamps = shards.expand(self.shards)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = tuple(pool.map(self._open_shard, *zip(*stamps.items(), strict=True)))
        for shard in found:
            if not shard.count:
                logging.warning("%s: the shard has no records", shard.url)
        self._check_schema(found)
        return found, list(itertools.accumulate(shard.count for shard in found))

    def _open_shard(self, url: str, stamp: Stamp) -> Shard:
        if self.store_index:
            index, stored = record_index.open_index(url, stamp)
        else:
            index, stored = record_index.build_index(url, stamp), False
        return Shard(url, stamp, len(index), None if stored else index.to_bytes())

    def _check_schema(self, found: Sequence[Shard]) -> None:
        """Asks a few records, because the first one may be the damaged one."""
        filled = [shard for shard in found if shard.count]
        probes = [(shard, i) for shard in filled[:1] for i in range(min(shard.count, _PROBES))]
        probes += [(shard, 0) for shard in filled[1:_PROBES]]
        present: set[str] = set()
        for shard, number in probes:
            try:
                present |= decode(_reader(shard).read(number, self.max_record_bytes)).keys()
            except BadRecord:
                continue
            if self.schema.required() <= present:
                return
        if present:
            self.schema.check(present, filled[0].url)


class _Reader:
    """An open shard with its index."""

    def __init__(self, shard: Shard):
        self._url = shard.url
        self._file = shards.open_file(shard.url)
        if self._file.stamp != shard.stamp:
            raise self._changed()
        if shard.index is not None:
            self.index = Index(shard.index, shard.stamp)
        else:
            self.index, _ = record_index.open_index(shard.url, shard.stamp)
        if len(self.index) != shard.count:
            raise self._changed()

    def read(self, number: int, max_bytes: int) -> bytes:
        """The verified payload of a record.

        Raises:
          BadRecord: it is damaged.
          UserError: the shard is not the one that was indexed.
        """
        begin, end, kind = self.index[number]
        length = end - begin - RECORD_OVERHEAD
        if kind is None and length > max_bytes:
            raise BadRecord("over_large", f"{length} bytes, limit {max_bytes}")
        if kind is not None:
            self._raise_damage(begin, end, kind)
        data = self._file.read(begin, end - begin)
        if len(data) < end - begin:
            raise BadRecord("truncated", f"{len(data)} of {end - begin} bytes are there")
        stored_length, length_crc = RECORD_HEADER.unpack_from(data)
        if masked_crc(data[:8]) != length_crc:
            raise BadRecord("length_crc", "the checksum of the length does not fit")
        if stored_length != length:
            raise self._changed()
        payload = data[RECORD_HEADER.size : -4]
        if masked_crc(payload) != int.from_bytes(data[-4:], "little"):
            raise BadRecord("data_crc", f"the checksum of the {length} bytes does not fit")
        return payload

    def _raise_damage(self, begin: int, end: int, kind: str) -> NoReturn:
        if kind == "truncated":
            raise BadRecord(kind, f"the file ends {end - begin} bytes into the record")
        length = int.from_bytes(self._file.read(begin, 8), "little")
        if begin + RECORD_OVERHEAD + length == end:
            raise BadRecord(kind, "the checksum of the length does not fit; the length does")
        raise BadRecord(
            kind,
            f"the length or its checksum is wrong; the {end - begin} bytes up to the next record "
            "(or the end of the file) are lost",
        )

    def _changed(self) -> UserError:
        return UserError(f"{self._url} has changed since it was indexed: start again")


# File descriptors are a resource of the process, shared by all its sources: a reader takes two.
@functools.lru_cache(maxsize=max(16, min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8, 4096)))
def _reader(shard: Shard) -> _Reader:
    return _Reader(shard)


class TFRecordWriter:
    """Writes a shard and its sidecar index.

    Use it as a context manager: the shard appears under its name when the block ends, whole, and
    not at all when the block raises. Missing local directories are made.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._url = shards.normalise(path)
        self._stack = contextlib.ExitStack()
        self._entries = array("Q", [0])

    def __enter__(self) -> "TFRecordWriter":
        if not shards.is_remote(self._url):
            os.makedirs(os.path.dirname(self._url) or ".", exist_ok=True)
        self._file = self._stack.enter_context(shards.atomic_write(self._url))
        return self

    def write(self, data: bytes) -> None:
        """Appends a record."""
        length = len(data).to_bytes(8, "little")
        self._file.write(
            b"".join(
                (
                    length,
                    masked_crc(length).to_bytes(4, "little"),
                    data,
                    masked_crc(data).to_bytes(4, "little"),
                )
            )
        )
        self._entries.append(self._entries[-1] + RECORD_OVERHEAD + len(data))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, error, traceback)
        if error is None:
            record_index.write_sidecar(self._url, self._entries)


def write_shards(records: Iterable[bytes], spec: str) -> list[str]:
    """Deals records over the shards that `spec` names, as "out/train@4.tfrecord"; returns them.

    Record i goes to shard i modulo their number. Nothing is left of them when `records` raises.
    """
    names = shards.enumerate_names(shards.normalise(spec))
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(TFRecordWriter(name)) for name in names]
        for record, writer in zip(records, itertools.cycle(writers), strict=False):
            writer.write(record)
    return names
