"""Rows to batches: what is stacked, what stays on the host, and what must agree."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_mm.data.contract import Contract
from big_mm.data.transforms import Record
from big_mm.spec import UserError

_DTYPES = {bool: np.bool_, int: np.int32, float: np.float32, str: np.str_}
_INT64 = ("bad_index",)


def stack(rows: list[Record], contract: Contract, keep: Sequence[str]) -> dict[str, np.ndarray]:
    """Stacks training rows: `key`, numbers and arrays; features in `keep` as object arrays.

    Raises:
      UserError: rows whose features or shapes differ, pictures of another size than the contract's,
        no tokens.
    """
    _check_rows(rows, contract)
    batch = {}
    for name, value in rows[0].items():
        values = [row[name] for row in rows]
        if name in keep:
            batch[name] = _objects(values)
        elif isinstance(value, (np.ndarray, np.generic)):
            batch[name] = _stack_arrays(name, values)
        elif name == "key" or isinstance(value, (bool, int, float)):
            dtype = np.int64 if name in _INT64 else _DTYPES[type(value)]
            batch[name] = np.asarray(values, dtype)
    return batch


def stack_examples(rows: list[Record]) -> dict[str, Any]:
    """Stacks evaluation rows; features that are not the pipeline's own become lists."""
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(rows)):
        values = [row.get(name) for row in rows]
        if name in ("image", "tokens", "token_mask"):
            batch[name] = np.stack(values)
        elif name in ("mask", "label", "key", "bad_index", "bad_kind"):
            dtype = np.int64 if name in _INT64 else _DTYPES[type(values[0])]
            batch[name] = np.asarray(values, dtype)
        else:
            batch[name] = values
    return batch


def _check_rows(rows: list[Record], contract: Contract) -> None:
    for row in rows:
        if row.keys() != rows[0].keys():
            differ = sorted(rows[0].keys() ^ row.keys())
            raise UserError(
                f"only some records have the features {differ}: let the schemas of all sources "
                "name the same extra features"
            )
    size = contract.image_size
    image = rows[0].get("image")
    if image is not None and (
        not isinstance(image, np.ndarray)
        or (image.dtype, image.shape) != (np.uint8, (size, size, 3))
    ):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise UserError(
            f"the transforms must end with uint8 images of the contract's {size} x {size} pixels, "
            f"not {found}: Decode(), then Resize(), RandomResizedCrop() or CenterCrop()"
        )
    if contract.tokenizer is not None and "tokens" not in rows[0]:
        raise UserError("the transforms leave no tokens: end with ChooseCaption(), Tokenize()")


def _stack_arrays(name: str, values: list[np.ndarray]) -> np.ndarray:
    try:
        return np.stack(values)
    except ValueError:
        shapes = sorted({str(np.shape(v)) for v in values})
        raise UserError(
            f"the {name!r} of the rows of a batch have shapes {', '.join(shapes)}: they must agree"
        ) from None


def _objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def concatenate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins chunks of rows to one batch."""
    if len(parts) == 1:
        return parts[0]
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(parts)):
        values = [part.get(name, [None] * len(part["key"])) for part in parts]
        if isinstance(values[0], np.ndarray):
            batch[name] = np.concatenate(values)
        else:
            batch[name] = list(itertools.chain.from_iterable(values))
    return batch
