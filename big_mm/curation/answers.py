"""Answers that were paid for, kept on disk: a key for each question, and its answer."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Mapping

from big_mm.spec import UserError

_TOGETHER = 500  # keys of one query: SQLite limits its variables
_PATIENCE = 60.0  # seconds that a process waits for another one's write


def key_of(*parts: str | bytes) -> str:
    """A digest of texts and bytes, different wherever one of them is."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little") + data)
    return made.hexdigest()


class Answers:
    """{key: answer} in one SQLite file, for the threads and processes of one machine.

    What `put` has returned from is there after a kill of the process at any moment. The first
    answer to a question stays.
    """

    def __init__(self, path: str):
        """Opens the file, or makes it.

        Raises:
          UserError: it cannot be opened, or is something else.
        """
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)
            # A writer appends to a log, and readers do not wait for it.
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL) "
                "WITHOUT ROWID"
            )
            self._database.commit()
        except sqlite3.Error as error:
            raise UserError(f"cannot keep answers in {path}: {error}") from error

    def get(self, keys: Iterable[str]) -> dict[str, str]:
        """The answers that are known."""
        wanted, found = list(keys), {}
        for start in range(0, len(wanted), _TOGETHER):
            part = wanted[start : start + _TOGETHER]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, answer FROM answers WHERE key IN ({marks})"
            with self._lock:
                found |= dict(self._database.execute(query, part))
        return found

    def put(self, answers: Mapping[str, str]) -> None:
        """Keeps answers, all of them or none."""
        with self._lock, self._database:
            self._database.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items()
            )

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._database.close()
