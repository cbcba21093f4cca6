"""Sources to batches on Grain, where order is a function.

Step t of a run sees f(seed, t): the same records, captions and crops whatever the number of hosts,
worker processes and threads, and wherever the run was interrupted. The state of the data is the
step. Everything is addressed by position: position p of the run is a record number (Grain's
shuffle, repeat and mix, O(1) each), its generator is seeded by p, and the global batch t is the
positions [t*B, (t+1)*B), of which host h of H takes the h-th slice.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from big_mm.data import batching
from big_mm.data import transforms as transforms_lib
from big_mm.data import watch as watching
from big_mm.data.contract import Contract
from big_mm.data.damage import DAMAGE
from big_mm.data.prefetch import Prefetcher, prefetch_to_device
from big_mm.data.records import Source
from big_mm.data.rows import Examined, Records, Transformed
from big_mm.data.transforms import Record, Transform
from big_mm.data.watch import Board, Watch
from big_mm.spec import UserError

# Rows that one thread prepares at a time: enough to hide Grain's cost per element, few enough that
# threads and workers share a large batch evenly.
_CHUNK = 64
# Records that are read before the first of them is decoded. Decoding a picture evicts the reader's
# code and tables from the CPU's caches; reading a few in a row pays for that once.
_AHEAD = 8
_FOREVER = 2**62

__all__ = ["Pipeline", "examples", "prefetch_to_device"]


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
      timeout: seconds without a batch after which the run ends with an error that names the worker
        process, thread and record that hang; a tenth of it brings a warning.
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
    timeout: float = watching.TIMEOUT
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
        return Records(tuple(self.sources)).where(int(bad_index))

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
        bound = [t.bind(contract) if hasattr(t, "bind") else t for t in self.transforms]
        by_row, by_column = _split(bound)
        records = Records(tuple(self.sources))
        rows = Transformed(records, by_row, self.cache, _seed(seed, "augmentation"))
        stack = functools.partial(
            batching.stack, by_column=by_column, contract=contract, keep=self.keep
        )
        slicing = _Slicing(batch_size, process_index * share, share, chunk)
        threads = _threads(self.num_threads, self.num_workers)
        board = Board(self.num_workers, threads)
        chunks = grain.MapDataset.range(start_step * (share // chunk), _FOREVER).map(
            _Chunk(self._order(seed), rows, stack, slicing, board)
        )
        watch = Watch(board, self.num_workers, self.timeout, records.where)
        return _stream(chunks, share // chunk, threads, self.prefetch, self.num_workers, watch)

    def _order(self, seed: int) -> grain.MapDataset:
        """Position in the run -> record number, without end."""
        orders = []
        for start, source in zip(Records(tuple(self.sources)).starts, self.sources, strict=True):
            if not len(source):
                raise UserError(f"source {len(orders)} has no records: {source}")
            order = grain.MapDataset.range(start, start + len(source))
            if self.shuffle:
                order = order.shuffle(seed=_seed(seed, f"shuffle {len(orders)}"))
            orders.append(order.repeat())
        if len(orders) == 1:
            return orders[0]
        return grain.MapDataset.mix(orders, self.weights or [len(s) for s in self.sources])


def examples(
    source: Source,
    contract: Contract,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    pictures: bool = True,
) -> Iterator[dict[str, Any]]:
    """One pass over a source in its order, prepared as the contract says, for evaluation.

    Every host yields the same number of batches of `batch_size` / `process_count` rows. Rows past
    the end, and those of damaged records, have `mask` 0: they are dropped from scores, and the
    damaged ones are logged and carry `bad_index` (their place in the source) and `bad_kind`.

    Args:
      pictures: False leaves them out, and does not look whether they can be decoded.

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
    order = grain.MapDataset.range(steps * batch_size)
    slicing = _Slicing(batch_size, process_index * share, share, chunk)
    threads = _threads(num_threads, 0)
    board = Board(0, threads)
    chunks = grain.MapDataset.range(steps * (share // chunk)).map(
        _Chunk(order, Examined(source, contract, pictures), batching.stack_examples, slicing, board)
    )
    last = len(source) - 1
    watch = Watch(board, 0, watching.TIMEOUT, lambda number: source.where(min(number, last)))
    seen = sound = 0
    for batch in _stream(chunks, share // chunk, threads, prefetch=2, num_workers=0, watch=watch):
        for index, kind in zip(batch["bad_index"], batch["bad_kind"], strict=True):
            if index >= 0:
                logging.warning("evaluation drops %s: %s", source.where(int(index)), DAMAGE[kind])
        seen += int((batch["mask"] | (batch["bad_index"] >= 0)).sum())
        sound += int(batch["mask"].sum())
        yield batch
    if seen and not sound and process_count == 1:  # one host alone must not leave the others
        raise UserError(f"none of the {seen} records is usable; the first is {source.where(0)}")


@dataclasses.dataclass(frozen=True)
class _Slicing:
    """Which positions of the run a chunk of this host is."""

    batch_size: int
    offset: int
    share: int
    size: int

    def positions(self, chunk: int) -> range:
        step, part = divmod(chunk, self.share // self.size)
        first = step * self.batch_size + self.offset + part * self.size
        return range(first, first + self.size)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Number of a chunk -> its rows, stacked.

    Attributes:
      order: position in the run -> record number.
      rows: `fetch(number)`, then `finish(position, number, fetched)`.
      stack: an iterator over rows and their count -> arrays.
      board: told of every record.
    """

    order: grain.MapDataset
    rows: Transformed | Examined
    stack: Callable[[Iterator[Record], int], dict[str, Any]]
    slicing: _Slicing
    board: Board

    def __call__(self, chunk: int) -> dict[str, Any]:
        try:
            return self.stack(self._rows(self.slicing.positions(chunk)), self.slicing.size)
        finally:
            self.board.note(-1)

    def _rows(self, positions: range) -> Iterator[Record]:
        for start in range(0, len(positions), _AHEAD):
            block = positions[start : start + _AHEAD]
            numbers = [self.order[position] for position in block]
            fetched = []
            for number in numbers:
                self.board.note(number)
                fetched.append(self.rows.fetch(number))
            for position, number, record in zip(block, numbers, fetched, strict=True):
                self.board.note(number)
                yield self.rows.finish(position, number, record)


def _stream(
    chunks: grain.MapDataset,
    per_batch: int,
    num_threads: int,
    prefetch: int,
    num_workers: int,
    watch: Watch,
) -> Iterator[dict[str, Any]]:
    """Chunks prepared in parallel, in order, joined to batches, under watch."""
    ahead = max(1, prefetch * per_batch)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads its flags; argparse programs parse none
            flags.FLAGS.mark_as_parsed()
        dataset = chunks.to_iter_dataset(grain.ReadOptions(num_threads, num_threads))
        each = -(-ahead // num_workers)
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=each),
            worker_init_fn=functools.partial(watching.enter_worker, watch.board),
        )
    else:
        dataset = chunks.to_iter_dataset(grain.ReadOptions(num_threads, max(num_threads, ahead)))

    def batches() -> Iterator[dict[str, Any]]:
        with contextlib.closing(iter(dataset)) as iterator:
            counted = watch.count(iterator)
            while parts := list(itertools.islice(counted, per_batch)):
                yield batching.concatenate(parts)

    # In a thread: whoever waits for a batch must be able to stop waiting.
    reader = Prefetcher(batches(), lambda batch: batch, depth=1, waiting=watch.waiting)
    try:
        yield from reader
    finally:
        if not reader.close() and num_workers:
            watch.kill_workers()
            reader.close()
        watch.board.close()


def _threads(num_threads: int | None, num_workers: int) -> int:
    if num_threads is not None:
        return num_threads
    return 1 if num_workers else min(16, _cpus())


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


def _split(transforms: Sequence[Transform]) -> tuple[Sequence[Transform], Sequence[Transform]]:
    """The transforms of single rows, and those at the end that can take whole columns."""
    count = len(transforms)
    while count and hasattr(transforms[count - 1], "columns"):
        count -= 1
    return transforms[:count], transforms[count:]


def _seed(seed: int, purpose: str) -> int:
    """A 32-bit seed of its own for every purpose (Grain adds the epoch number to a shuffle's)."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])
