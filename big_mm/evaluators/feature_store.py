"""Rows of one array on disk: memory-mapped, checksummed, appended to after an interruption.

A store is a folder named by the digest of what its rows depend on. `rows.npy` has room for all
records from the start; `parts.jsonl` gets a line for each batch once its rows are on disk: how many
records it ends behind, the checksum of its rows, and their numbers, keys and labels. What has no
line was never there. Each process of a run has its own folder, on a shared disk too.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import google_crc32c
import jax
import numpy as np
from absl import logging
from jaxtyping import Int, Shaped

from big_mm.spec import UserError

_ROWS, _PARTS, _IDENTITY = "rows.npy", "parts.jsonl", "identity.json"


@dataclasses.dataclass
class Store:
    """The rows of one folder; `parts` are the lines of parts.jsonl, `count` is the most rows."""

    folder: pathlib.Path
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    count: int = 0

    @contextlib.contextmanager
    def writing(self, count: int) -> Iterator[None]:
        """Holds the folder for this process; reads what is complete of at most `count` rows.

        Raises:
          UserError: another process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process writes features to {self.folder}: wait for it, or give "
                    "another folder"
                ) from None
            self.count, self.parts = count, self._sound()
            yield

    def done(self) -> int:
        """Records behind which the complete parts end."""
        return self.parts[-1]["end"] if self.parts else 0

    def back_to(self, end: int) -> None:
        """Forgets the parts behind record `end`."""
        self.parts = [part for part in self.parts if part["end"] <= end]
        if self.done() != end:
            raise UserError(f"{self.folder} has no part that ends at record {end}: remove it")
        temporary = self.folder / f".{_PARTS}"
        temporary.write_text("".join(json.dumps(part) + "\n" for part in self.parts))
        temporary.replace(self.folder / _PARTS)

    def append(
        self,
        values: Shaped[np.ndarray, "n ..."],
        index: Int[np.ndarray, " n"],
        keys: Sequence[str],
        labels: Int[np.ndarray, " n"],
        end: int,
    ) -> None:
        """Writes a batch of rows; when it returns they are there after any crash."""
        start = self._rows()
        if not start:
            self._make(values)
        rows = self._mapped("r+")
        rows[start : start + len(values)] = values
        rows.flush()
        part = {
            "end": end,
            "checksum": _checksum(rows[start : start + len(values)]),
            "index": index.tolist(),
            "keys": list(keys),
            "labels": labels.tolist(),
        }
        with (self.folder / _PARTS).open("a") as file:
            file.write(json.dumps(part) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.parts.append(part)

    def read(self) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
        """Rows, their record numbers, keys and labels; the rows stay on disk."""

        def joined(name: str) -> list[Any]:
            return [value for part in self.parts for value in part[name]]

        rows = self._mapped("r")[: self._rows()]
        index, labels = (np.array(joined(name), np.int64) for name in ("index", "labels"))
        return rows, index, joined("keys"), labels

    def _rows(self) -> int:
        return sum(len(part["index"]) for part in self.parts)

    def _make(self, values: Shaped[np.ndarray, "n ..."]) -> None:
        """The file for rows like these, sparse until they are written."""
        temporary = self.folder / f".{_ROWS}"
        shape = (self.count, *values.shape[1:])
        np.lib.format.open_memmap(temporary, "w+", values.dtype, shape).flush()
        temporary.replace(self.folder / _ROWS)

    def _mapped(self, mode: str) -> np.ndarray:
        return np.lib.format.open_memmap(self.folder / _ROWS, mode)

    def _sound(self) -> list[dict[str, Any]]:
        """The parts whose rows have their checksums, up to the first that does not."""
        path = self.folder / _PARTS
        if not path.exists() or not (self.folder / _ROWS).exists():
            return []
        found: list[dict[str, Any]] = []
        rows, start = self._mapped("r"), 0
        for line in path.read_text().splitlines():
            try:
                part = json.loads(line)
            except json.JSONDecodeError:  # the last line of a process that was killed
                break
            stop = start + len(part["index"])
            if _checksum(rows[start:stop]) != part["checksum"]:
                logging.warning(
                    "%s: rows %d to %d are damaged and computed again", path.parent, start, stop
                )
                break
            found.append(part)
            start = stop
        return found


def open_store(folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> Store:
    """The store in `folder` of rows that depend on `identity` (JSON-able) and on nothing else.

    Raises:
      UserError: the folder is not a local one.
    """
    if "://" in os.fspath(folder):
        raise UserError(f"features are mapped from a local disk, not from {folder}")
    text = json.dumps(identity, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    if jax.process_count() > 1:
        name += f"-{jax.process_index()}-of-{jax.process_count()}"
    place = pathlib.Path(folder) / name
    place.mkdir(parents=True, exist_ok=True)
    (place / _IDENTITY).write_text(text)
    return Store(place)


def _checksum(rows: np.ndarray) -> int:
    return google_crc32c.value(np.ascontiguousarray(rows).tobytes())
