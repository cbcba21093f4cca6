"""Benchmarks' own files: annotations read, submissions written."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from etils import epath

from big_mm.spec import UserError


def read_json(path: str) -> Any:
    """The content of a JSON file, local or remote.

    Raises:
      UserError: no such file, or it is not JSON.
    """
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"no file {path}")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def entries(path: str, content: Any, keys: Iterable[str]) -> list[Mapping[str, Any]]:
    """`content` as a list of objects that all have `keys`.

    Raises:
      UserError: it is something else; names the file, the entry and the key.
    """
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of entries, found {type(content).__name__}")
    for number, entry in enumerate(content):
        for key in keys:
            if not isinstance(entry, Mapping) or key not in entry:
                raise UserError(f"{path}: entry {number} has no {key!r}")
    return content


def unique(path: str, what: str, ids: Iterable[Any]) -> None:
    """Raises UserError if an id comes up twice."""
    seen = set()
    for one in ids:
        if one in seen:
            raise UserError(f"{path}: {what} {one!r} comes up twice")
        seen.add(one)


def write_json(path: str, content: Any) -> None:
    """Writes a submission file; of all processes, only the first does."""
    if jax.process_index() == 0:
        file = epath.Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
