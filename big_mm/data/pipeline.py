"""Sources to batches on Grain, where order is a function.

Step t of a run sees f(seed, t): the same records, captions and crops whatever the number of hosts,
worker processes and threads, and wherever the run was interrupted. The state of the data is the
step. Everything is addressed by position: position p of the run is a record number (Grain's
shuffle, repeat and mix, O(1) each), its generator is seeded by p, and the global batch t is the
positions [t*B, (t+1)*B), of which host h of H takes the h-th slice.
"""

import bisect
import dataclasses
import functools
import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from big_mm.data import batching
from big_mm.data import transforms as transforms_lib
from big_mm.data.contract import Contract
from big_mm.data.damage import DAMAGE, BadRecord
from big_mm.data.prefetch import prefetch_to_device
from big_mm.data.records import Source
from big_mm.data.transforms import Record, Transform
from big_mm.spec import UserError

# Consecutive damaged records that one row steps over before the data counts as unusable.
MAX_NEIGHBOURS = 64
# Rows that one thread prepares at a time: enough to hide Grain's cost per element, few enough that
# threads and workers share a large batch evenly.
_CHUNK = 64
_FOREVER = 2**62

__all__ = ["MAX_NEIGHBOURS", "Pipeline", "examples", "prefetch_to_device"]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Training data.

    A damaged record is replaced by its next sound neighbour in the source and reported in the row's
    `bad_index` (a number for `where`) and `bad_kind` (index into `DAMAGE`).

    Attributes:
      sources: one source, or several to mix. `label` is -1 where a source has none.
      weights: shares of the sources in every stretch of the run; None: by their lengths.
      transforms: from the source's record to `image` [S,S,3] uint8, `tokens` and `token_mask`.
      shuffle: whether each pass over a source has a new order of all its records.
      num_workers: worker processes; 0 prepares batches in threads of this process.
      num_threads: threads of each process; None: one a CPU in this process, one in each worker.
      prefetch: batches prepared ahead.
      cache: keep what the transforms before the first random one return (the decoded pictures) in
        the memory of each process. For sets that fit: 20,000 pictures of 64 pixels are 250 MB.
      keep: features to keep besides `key` and numbers: texts, bytes, lists. They become object
        arrays, which no device takes.
    """

    sources: Any
    weights: tuple[float, ...] | None = None
    transforms: tuple[Any, ...] = transforms_lib.DEFAULT
    shuffle: bool = True
    num_workers: int = 0
    num_threads: int | None = None
    prefetch: int = 2
    cache: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.sources, (tuple, list)):
            object.__setattr__(self, "sources", (self.sources,))
        if not self.sources:
            raise UserError("the pipeline needs at least one source")
        if self.weights is not None and (
            len(self.weights) != len(self.sources) or min(self.weights) <= 0
        ):
            raise UserError(
                f"weights={self.weights} must give each of the {len(self.sources)} sources a share "
                "above 0"
            )
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise UserError(
                    f"{transform!r} is no Map or RandomMap of Grain's: the pipeline keeps number "
                    "and order of the records, so it cannot filter or regroup"
                )

    @property
    def num_records(self) -> int:
        """Records of all sources together: one epoch."""
        return sum(map(len, self.sources))

    def where(self, bad_index: int | np.integer) -> str:
        """File and offset of the record that a row's `bad_index` names."""
        source, index = _Records(tuple(self.sources)).locate(int(bad_index))
        return source.where(index)

    def batches(
        self,
        contract: Contract,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Endless host-local batches from step `start_step` on; `types.BATCH` lists the keys.

        Args:
          batch_size: rows of the global batch, of which this host yields its share.

        Raises:
          UserError: `batch_size` is not divisible by the hosts, the transforms do not end in
            pictures of the contract's size and tokens, or a source has no sound record.
        """
        share = _share(batch_size, process_count)
        chunk = _chunk_size(share)
        prepare = _Prepare(_Records(tuple(self.sources)), self._bound(contract), self.cache)
        rows = self._order(seed).random_map(prepare, seed=_seed(seed, "augmentation"))
        stack = functools.partial(batching.stack, contract=contract, keep=self.keep)
        chunks = grain.MapDataset.range(start_step * (share // chunk), _FOREVER).map(
            _Chunk(rows, batch_size, process_index * share, share, chunk, stack)
        )
        return _stream(
            chunks, share // chunk, self.num_threads, self.prefetch, num_workers=self.num_workers
        )

    def _order(self, seed: int) -> grain.MapDataset:
        """Position in the run -> record number, without end."""
        orders = []
        for start, source in zip(_Records(tuple(self.sources)).starts, self.sources, strict=True):
            if not len(source):
                raise UserError(f"source {len(orders)} has no records: {source}")
            order = grain.MapDataset.range(start, start + len(source))
            if self.shuffle:
                order = order.shuffle(seed=_seed(seed, f"shuffle {len(orders)}"))
            orders.append(order.repeat())
        if len(orders) == 1:
            return orders[0]
        return grain.MapDataset.mix(orders, self.weights or [len(s) for s in self.sources])

    def _bound(self, contract: Contract) -> tuple[Transform, ...]:
        return tuple(t.bind(contract) if hasattr(t, "bind") else t for t in self.transforms)


def examples(
    source: Source,
    contract: Contract,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """One pass over a source in its order, prepared as the contract says, for evaluation.

    Every host yields the same number of batches of `batch_size` / `process_count` rows. Rows past
    the end, and those of damaged records, have `mask` 0: they are dropped from scores, and the
    damaged ones are logged and carry `bad_index` (their place in the source) and `bad_kind`.

    Yields:
      `image`, `mask`, `label` (-1: none), `key`, `bad_index`, `bad_kind`; with a tokenizer `tokens`
      and `token_mask` of the first caption; `captions` (a list of lists of str) and every further
      feature of the record as a list, None in rows without one.

    Raises:
      UserError: `batch_size` is not divisible by the hosts, or no record is sound.
    """
    share = _share(batch_size, process_count)
    chunk = _chunk_size(share)
    steps = -(-len(source) // batch_size)
    rows = grain.MapDataset.range(steps * batch_size).map(_Examine(source, contract))
    chunks = grain.MapDataset.range(steps * (share // chunk)).map(
        _Chunk(rows, batch_size, process_index * share, share, chunk, batching.stack_examples)
    )
    seen = sound = 0
    for batch in _stream(chunks, share // chunk, num_threads, prefetch=2):
        for index, kind in zip(batch["bad_index"], batch["bad_kind"], strict=True):
            if index >= 0:
                logging.warning("evaluation drops %s: %s", source.where(int(index)), DAMAGE[kind])
        seen += int((batch["mask"] | (batch["bad_index"] >= 0)).sum())
        sound += int(batch["mask"].sum())
        yield batch
    if seen and not sound and process_count == 1:  # one host alone must not leave the others
        raise UserError(f"none of the {seen} records is usable; the first is {source.where(0)}")


@dataclasses.dataclass(frozen=True)
class _Records:
    """The records of several sources under one numbering."""

    sources: tuple[Source, ...]

    @functools.cached_property
    def starts(self) -> list[int]:
        return [0, *itertools.accumulate(map(len, self.sources))][:-1]

    def locate(self, number: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self.starts, number) - 1
        return self.sources[which], number - self.starts[which]


class _Prepare:
    """Record number -> transformed record, or that of its next sound neighbour."""

    def __init__(self, records: _Records, transforms: Sequence[Transform], cache: bool):
        self._records = records
        steps = [
            (t.random_map, True) if isinstance(t, grain.transforms.RandomMap) else (t.map, False)
            for t in transforms
        ]
        first = next((i for i, (_, random) in enumerate(steps) if random), len(steps))
        self._cached, self._rest = steps[: first * cache], steps[first * cache :]
        self._cache: dict[int, Record] | None = {} if cache else None

    def __call__(self, number: int, rng: np.random.Generator) -> Record:
        source, index = self._records.locate(number)
        first_damage = None
        for step in range(min(MAX_NEIGHBOURS, len(source))):
            neighbour = (index + step) % len(source)
            try:
                record = dict(self._read(source, neighbour, number - index + neighbour))
                for transform, random in self._rest:
                    record = transform(record, rng) if random else transform(record)
            except BadRecord as damage:
                first_damage = first_damage or damage
                continue
            record.setdefault("label", -1)
            record["bad_index"] = -1 if first_damage is None else number
            record["bad_kind"] = -1 if first_damage is None else DAMAGE.index(first_damage.kind)
            return record
        raise UserError(
            f"{step + 1} records in a row are damaged, from {source.where(index)} on "
            f"({first_damage}): big_mm.doctor examines shards"
        )

    def _read(self, source: Source, index: int, number: int) -> Record:
        if self._cache is None:
            return source[index]
        if number not in self._cache:
            record = source[index]
            for transform, _ in self._cached:
                record = transform(record)
            for value in record.values():
                if isinstance(value, np.ndarray):
                    value.flags.writeable = False  # shared by all later epochs
            self._cache[number] = record
        return self._cache[number]


@dataclasses.dataclass(frozen=True)
class _Examine:
    """Position -> prepared evaluation record; past the end of the source an empty one."""

    source: Source
    contract: Contract

    def __call__(self, position: int) -> Record:
        size = self.contract.image_size
        blank = {
            "image": np.zeros((size, size, 3), np.uint8),
            "mask": False,
            "label": -1,
            "key": "",
            "captions": [],
            "bad_index": -1,
            "bad_kind": -1,
        }
        if self.contract.tokenizer is not None:
            shape = (self.contract.max_len,)
            blank["tokens"] = np.full(shape, self.contract.tokenizer.pad_id, np.int32)
            blank["token_mask"] = np.zeros(shape, bool)
        if position >= len(self.source):
            return blank
        try:
            return blank | self._prepare(self.source[position]) | {"mask": True}
        except BadRecord as damage:
            return blank | {"bad_index": position, "bad_kind": DAMAGE.index(damage.kind)}

    def _prepare(self, record: Record) -> Record:
        if not record.get("image"):
            raise BadRecord("missing_image")
        prepared = record | {"image": self.contract.image(record["image"])}
        if "captions" in record:
            captions = [c for c in record["captions"] if c.strip()]
            if not captions:
                raise BadRecord("empty_caption")
            prepared["captions"] = captions
            if self.contract.tokenizer is not None:
                tokens, token_mask = self.contract.text(captions[:1])
                prepared |= {"tokens": tokens[0], "token_mask": token_mask[0]}
        return prepared


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Number of a chunk of this host -> its rows, stacked."""

    rows: grain.MapDataset
    batch_size: int
    offset: int
    share: int
    size: int
    stack: Any

    def __call__(self, number: int) -> dict[str, Any]:
        step, part = divmod(number, self.share // self.size)
        first = step * self.batch_size + self.offset + part * self.size
        return self.stack((self.rows[first + i] for i in range(self.size)), self.size)


def _stream(
    chunks: grain.MapDataset,
    per_batch: int,
    num_threads: int | None,
    prefetch: int,
    num_workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Chunks prepared in parallel, in order, joined to batches."""
    ahead = max(1, prefetch * per_batch)
    if num_threads is None:
        num_threads = 1 if num_workers else min(16, _cpus())
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags; argparse programs parse none
            flags.FLAGS.mark_as_parsed()
        dataset = chunks.to_iter_dataset(grain.ReadOptions(num_threads, num_threads))
        each = -(-ahead // num_workers)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=each)
        )
    else:
        dataset = chunks.to_iter_dataset(grain.ReadOptions(num_threads, max(num_threads, ahead)))
    iterator = iter(dataset)
    try:
        while parts := list(itertools.islice(iterator, per_batch)):
            yield batching.concatenate(parts)
    finally:
        iterator.close()


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _share(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} is not divisible by the {process_count} hosts of the run"
        )
    return batch_size // process_count


def _chunk_size(share: int) -> int:
    """The largest divisor up to _CHUNK; all rows at once if that is too small to be worth it."""
    size = next(d for d in range(min(share, _CHUNK), 0, -1) if share % d == 0)
    return size if size >= _CHUNK // 4 else share


def _seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for every purpose (Grain adds the epoch number to a shuffle's)."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])
