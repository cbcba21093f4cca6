"""Outputs of a model for all pictures of a source, computed once and shared.

Evaluators of one predictor share them in its memory; with a folder (`Predictor.features`) they also
outlive the process, are mapped from disk instead of held, and an interrupted extraction goes on.
What is kept is found again only for the same parameters, model, input contract, records and output:
`feature_store` lists what the key is made of.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped

from big_mm import trees
from big_mm.data.records import Source, TFRecordSource
from big_mm.evaluators import base, feature_store
from big_mm.evaluators.feature_store import Store
from big_mm.predictor import Predictor
from big_mm.spec import UserError

_READERS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """One output of the sound records of a source.

    Attributes:
      values: in memory, or mapped from a file.
      index: each row's number in the source.
      keys: each row's record key.
      labels: its class number, or -1.
    """

    values: Shaped[np.ndarray, "n ..."]
    index: Int[np.ndarray, " n"]
    keys: list[str]
    labels: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.index)


def extract(
    predictor: Predictor,
    source: Source,
    output: str,
    *,
    label: str = "label",
    limit: int | None = None,
    dtype: str = "float32",
    batch_size: int = 256,
) -> Features:
    """An output (`types.OUTPUTS`) of all sound records, from memory or the folder if it is there.
    Every process makes the same calls and gets all rows.

    Args:
      label: the records' key with the class number.
      limit: only the first records.
      dtype: "float32"; "float16" halves what patch tokens take.
      batch_size: pictures prepared at a time.

    Raises:
      UserError: a model without the output, a value that is not finite (named by its record), or
        more values than the memory holds and no folder.
    """
    request = _Request.of(source, output, label, limit, dtype)
    name = _name(source, request)
    if name not in predictor.kept:
        store = _store(predictor, source, request)
        if store is None:
            for _ in _in_memory(predictor, source, request, batch_size):
                pass
        else:
            made = _in_store(predictor, source, request, batch_size, store)
            predictor.kept[name] = source, made
    return predictor.kept[name][1]


def embedded(
    predictor: Predictor,
    source: Source,
    batch_size: int,
    limit: int | None = None,
    outputs: tuple[str, ...] = ("image_embedding",),
) -> Iterator[dict[str, Any]]:
    """Batches as of `base.examples`, with `outputs` of the images in place of `image`.

    Embeddings are shared: pictures that another evaluator has embedded by this predictor are
    neither decoded nor computed again. A generator that is not exhausted keeps nothing.

    Raises:
      UserError: as `extract`.
    """
    if outputs != ("image_embedding",):
        for batch in base.examples(source, predictor.contract, batch_size, limit):
            yield batch | predictor.image_outputs(batch.pop("image"), outputs)
        return
    request = _Request.of(source, *outputs, "label", limit, "float32")
    if _name(source, request) not in predictor.kept and predictor.features is None:
        yield from _in_memory(predictor, source, request, batch_size)
        return
    found = extract(predictor, source, request.output, limit=limit, batch_size=batch_size)
    sound = base.View(source, tuple(found.index.tolist()))
    for batch in base.examples(sound, predictor.contract, batch_size, pictures=False):
        rows = batch["index"]
        yield batch | {"index": found.index[rows], request.output: np.array(found.values[rows])}


def read(source: Source, index: Int[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    """The records of these numbers as they are stored, in order, without decoding pictures."""
    with futures.ThreadPoolExecutor(_READERS) as pool:
        numbers = iter(index)
        while block := list(map(int, itertools.islice(numbers, 16 * _READERS))):
            yield from pool.map(source.__getitem__, block)


@dataclasses.dataclass(frozen=True)
class _Request:
    output: str
    label: str
    limit: int | None
    dtype: str

    @classmethod
    def of(
        cls, source: Source, output: str, label: str, limit: int | None, dtype: str
    ) -> "_Request":
        """A limit that cuts nothing is none."""
        whole = limit is None or limit >= len(source)
        return cls(output, label, None if whole else limit, dtype)

    def count(self, source: Source) -> int:
        """The records to read."""
        return len(source) if self.limit is None else self.limit


def _name(source: Source, request: _Request) -> Any:
    return (source if _hashable(source) else id(source), _version(source), request)


def _in_memory(
    predictor: Predictor, source: Source, request: _Request, batch_size: int
) -> Iterator[dict[str, Any]]:
    """The batches, the output in place of the picture; keeps the features at the end."""
    count, parts = request.count(source), []
    for part, batch in _parts(predictor, source, request, batch_size, 0, count):
        parts.append(part)
        if len(parts) == 1:
            _check_memory(request.output, part.values[:1].nbytes * count)
        yield batch | {request.output: part.values}
    made = Features(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.index for part in parts]),
        [key for part in parts for key in part.keys],
        np.concatenate([part.labels for part in parts]),
    )
    # The source is kept too: another one cannot get its id.
    predictor.kept[_name(source, request)] = source, made


def _in_store(
    predictor: Predictor, source: Source, request: _Request, batch_size: int, store: Store
) -> Features:
    count = request.count(source)
    with store.writing(count):
        done = _agreed(store.done())
        store.back_to(done)
        for part, _ in _parts(predictor, source, request, batch_size, done, count):
            store.append(part.values, part.index, part.keys, part.labels, part.end)
        if store.done() < count:  # the last batch was of damaged records alone
            none = np.empty(0, np.int64)
            store.append(store.read()[0][:0], none, [], none, count)
        return Features(*store.read())


def _check_memory(output: str, size: int) -> None:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if size > available:
        raise UserError(
            f"{output} of all records is {size / 2**30:.1f} GiB, more than half of the memory "
            f"({available / 2**30:.1f} GiB): keep it in a folder by --features DIR"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Part(Features):
    """The rows of one batch; `end`: records up to its last one."""

    end: int = 0


def _parts(
    predictor: Predictor,
    source: Source,
    request: _Request,
    batch_size: int,
    first: int,
    count: int,
) -> Iterator[tuple[_Part, dict[str, Any]]]:
    """Each batch's rows, and the batch without its pictures."""
    if first >= count:
        return
    view = base.View(source, range(first, count))
    for batch in base.examples(view, predictor.contract, batch_size):
        image = batch.pop("image")
        outputs = predictor.image_outputs(image, (request.output,), request.dtype)
        values, keys = outputs[request.output], list(map(str, batch["key"]))
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{request.output} of record {keys[int(np.argmin(finite))]!r} is not finite as "
                f"{request.dtype}: the model has diverged, or needs dtype='float32'"
            )
        index = first + batch["index"]
        labels = batch.get(request.label, np.full(len(values), -1))
        numbers = np.array([base.class_number(value) for value in labels], np.int64)
        end = min(count, first + (int(batch["index"][0]) // batch_size + 1) * batch_size)
        batch["index"] = index.astype(np.int64)
        yield _Part(values, batch["index"], keys, numbers, end), batch


def _store(predictor: Predictor, source: Source, request: _Request) -> Store | None:
    if predictor.features is None:
        return None
    if not isinstance(source, TFRecordSource):
        logging.warning(
            "features of a %s are not kept on disk: nothing says when its records change",
            type(source).__name__,
        )
        return None
    identity = {
        "params": trees.digest(predictor.params),
        "model": repr(predictor.model),
        "contract": predictor.contract.fingerprint,
        "shards": _version(source),
        "schema": repr(source.schema),
        "max_record_bytes": source.max_record_bytes,
        "request": dataclasses.asdict(request),
    }
    return feature_store.open_store(predictor.features, identity)


def _version(source: Source) -> tuple[tuple[str, str], ...]:
    """The shards of a source with their sizes and versions; nothing of other kinds."""
    if not isinstance(source, TFRecordSource):
        return ()
    return tuple((shard.url, str(shard.stamp)) for shard in source.shards_found())


def _agreed(done: int) -> int:
    """The records that every process has."""
    if jax.process_count() == 1:
        return done
    return int(multihost_utils.process_allgather(np.array(done)).min())


def _hashable(source: Any) -> bool:
    try:
        hash(source)
    except TypeError:
        return False
    return True
