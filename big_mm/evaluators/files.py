"""The user's and benchmarks' own files: lists and annotations read, submissions written."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from big_mm.spec import UserError

# In the metadata of a dataclass field: it names a file that is written, on whose content nothing
# depends. The content of all other files that an evaluator names is part of what its numbers are
# of (`big_mm.evaluate`).
WRITTEN = "written"


def read_text(path: str) -> str:
    """The content of a text file, local or remote.

    Raises:
      UserError: no such file.
    """
    file = epath.Path(path)
    if not file.is_file():
        raise UserError(f"no file {path}")
    return file.read_text()


def read_json(path: str) -> Any:
    """The content of a JSON file. Raises a UserError as `read_text`, or if it is not JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_list(given: Sequence[str] | str) -> list[str]:
    """A list of texts: itself, or that of a file.

    Raises:
      UserError: no such file or member, or something else than texts in it.
    """
    if not isinstance(given, str):
        return list(given)
    path, _, key = given.partition("#")
    if path.endswith(".txt"):
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    found = read_json(path)
    if key:
        if not isinstance(found, dict) or key not in found:
            there = ", ".join(found) if isinstance(found, dict) else "a list"
            raise UserError(f"{path} has no {key!r}; it has {there}")
        found = found[key]
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        hint = f" (name one of {', '.join(found)} as {path}#KEY)" if isinstance(found, dict) else ""
        raise UserError(f"{given} is not a list of texts{hint}")
    return found


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
