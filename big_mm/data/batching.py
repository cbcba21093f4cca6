"""Rows to batches: what is stacked, what stays on the host, and what must agree."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from big_mm.data.contract import Contract
from big_mm.data.transforms import Record
from big_mm.spec import UserError

_DTYPES = {bool: np.bool_, int: np.int32, float: np.float32, str: np.str_}
_OWN = ("image", "tokens", "token_mask", "mask", "label", "key", "bad_index", "bad_kind")


def stack(
    rows: Iterable[Record],
    count: int,
    contract: Contract,
    by_column: Sequence[Any] = (),
    keep: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Stacks `count` training rows: `key`, numbers, arrays, and as object arrays those in `keep`.

    `by_column` are transforms whose `columns` is applied at the end.

    Raises:
      UserError: rows whose features or shapes differ, pictures of another size than the contract's,
        no tokens.
    """
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, list[Any]] = {}
    names: set[str] = set()
    inputs: dict[str, list[Any]] = {transform.key: [] for transform in by_column}
    # One row at a time is copied and let go: a list of pictures would leave the CPU's caches, and
    # the pages of its memory would go back to the system and be mapped again for every batch.
    for i, row in enumerate(rows):
        if i == 0:
            _check_first(row, contract)
            names = set(row)
            arrays = {
                name: np.empty((count, *value.shape), value.dtype)
                for name, value in row.items()
                if name not in keep and isinstance(value, np.ndarray)
            }
            values = {
                name: []
                for name, value in row.items()
                if name in keep or name == "key" or isinstance(value, (bool, int, float))
            }
        elif row.keys() != names:
            raise UserError(
                f"only some records have the features {sorted(row.keys() ^ names)}: let the "
                "schemas of all sources name the same extra features"
            )
        for name, array in arrays.items():
            _copy(array, i, row[name], name)
        for name, column in itertools.chain(values.items(), inputs.items()):
            column.append(row[name])
    batch = arrays | {name: _column(name, column, keep) for name, column in values.items()}
    for transform in by_column:
        batch |= transform.columns(inputs)
    if contract.tokenizer is not None and "tokens" not in batch:
        raise UserError("the transforms leave no tokens: end with ChooseCaption(), Tokenize()")
    return batch


def stack_examples(rows: Iterable[Record], count: int) -> dict[str, Any]:
    """Stacks `count` evaluation rows; features that are not the pipeline's own become lists."""
    arrays: dict[str, np.ndarray] = {}
    values: dict[str, list[Any]] = {}
    for i, row in enumerate(rows):
        for name, value in row.items():
            if name in _OWN and isinstance(value, np.ndarray):
                if name not in arrays:
                    arrays[name] = np.zeros((count, *value.shape), value.dtype)
                arrays[name][i] = value
            else:
                values.setdefault(name, [None] * count)[i] = value
    return arrays | {
        name: _column(name, column) if name in _OWN else column for name, column in values.items()
    }


def concatenate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins chunks of rows to one batch; a list that a chunk lacks is all None there."""
    if len(parts) == 1:
        return parts[0]
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(parts)):
        columns = [part.get(name, [None] * len(part["key"])) for part in parts]
        if isinstance(columns[0], np.ndarray):
            batch[name] = np.concatenate(columns)
        else:
            batch[name] = list(itertools.chain.from_iterable(columns))
    return batch


def _check_first(row: Record, contract: Contract) -> None:
    size = contract.image_size
    image = row.get("image")
    if isinstance(image, np.ndarray):
        found = f"{image.dtype} {image.shape}"
    else:
        found = type(image).__name__
    if image is not None and found != f"uint8 {(size, size, 3)}":
        raise UserError(
            f"the transforms must end with uint8 images of the contract's {size} x {size} pixels, "
            f"not {found}: Decode(), then Resize(), RandomResizedCrop() or CenterCrop()"
        )


def _copy(array: np.ndarray, i: int, value: Any, name: str) -> None:
    shape, dtype = array.shape[1:], array.dtype
    if getattr(value, "shape", None) != shape or value.dtype != dtype:
        found = f"{getattr(value, 'dtype', type(value))} {np.shape(value)}"
        raise UserError(
            f"{name!r} is {dtype} {shape} in one row of a batch and {found} in another: the "
            "transforms must make them agree"
        )
    array[i] = value


def _column(name: str, values: list[Any], keep: Collection[str] = ()) -> np.ndarray:
    if name in keep:
        column = np.empty(len(values), object)
        column[:] = values
        return column
    return np.asarray(values, np.int64 if name == "bad_index" else _DTYPES[type(values[0])])
