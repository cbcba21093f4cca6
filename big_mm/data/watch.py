"""Who reads what: so that a worker process or thread that hangs or dies is named, not waited for.

Every thread that prepares records notes on a board, in memory shared with this process, which one
it is at. When no batch comes, the board says whose fault it is, and with which record.
"""

import itertools
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np
from absl import logging

# Seconds without a batch, and the exit status of programs that end for that reason.
TIMEOUT, STATUS = 300.0, os.EX_IOERR
# A wait of this share of the timeout is worth a warning.
_SLOW = 0.1
_ALIVE = "alive"
_STATES = {"T": "stopped", "t": "traced", "Z": "dead", "X": "dead", "D": "waiting for a disk"}
_PID, _THREAD, _RECORD, _SINCE = range(4)
# Which worker this process is; 0 also for the process that trains.
_worker = 0


class Stalled(RuntimeError):
    """The input pipeline has stopped; the message names what hangs or died."""


def leave(status: int) -> NoReturn:
    """Ends the program: at once if the input has stalled, as Python waits for threads that hang."""
    if status == STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


class Board:
    """A row for each thread: process, thread, number of the record it is at (or -1), since when."""

    def __init__(self, workers: int, threads: int):
        """`workers` 0: the threads are of this process."""
        self.threads = max(1, threads)
        self._shape = (max(1, workers) * self.threads, 4)
        self._path = ""
        if workers:
            handle, self._path = tempfile.mkstemp(prefix="big_mm-board-")
            with open(handle, "wb") as file:
                file.write(np.full(self._shape, -1.0).tobytes())
        self._open()

    def _open(self) -> None:
        self._slots: dict[int, int] = {}
        self._free = itertools.cycle(range(self.threads))
        if self._path:
            # As a plain array, which is written to in a third of the time.
            self.rows = np.asarray(np.memmap(self._path, np.float64, "r+", shape=self._shape))
        else:
            self.rows = np.full(self._shape, -1.0)

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "_shape": self._shape, "_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def note(self, record: int) -> None:
        """This thread is at that record now; -1: at none."""
        thread = threading.get_ident()
        if (slot := self._slots.get(thread)) is None:
            slot = self._slots[thread] = next(self._free)
        row = _worker * self.threads + slot
        self.rows[row] = (os.getpid(), thread, record, time.monotonic())

    def close(self) -> None:
        """Removes the file; whoever has it open keeps what is in it."""
        if self._path:
            pathlib.Path(self._path).unlink(missing_ok=True)


def enter_worker(board: Board, index: int, count: int) -> None:
    """What a new worker process does: it signs the board, and dies when its parent does."""
    global _worker
    _worker = index
    del count
    board.rows[index * board.threads, _PID] = os.getpid()
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, name="follow-parent", daemon=True).start()


class Watch:
    """Watches over the reading of one iterator.

    Attributes:
      done: units of work that were received: worker i of n makes the units i, i + n, ...
    """

    def __init__(self, board: Board, workers: int, timeout: float, where: Callable[[int], str]):
        """`where` says file and offset of a record; `timeout` is in seconds."""
        self.board, self.done = board, 0
        self._workers, self._timeout, self._where = workers, timeout, where
        self._warned = False

    def count(self, units: Iterator[Any]) -> Iterator[Any]:
        """The units, counted. Raises Stalled where a worker process has died."""
        try:
            for unit in units:
                self.done += 1
                if self.done == self._workers:
                    self.board.close()  # all have it open; a killed run leaves no file
                yield unit
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):  # Grain's words
                raise
            dead = [i for i in range(self._workers) if _state(self._pid(i)) == "dead"]
            named = "; ".join(map(self._worker, dead)) or "a worker process has died"
            reason = str(error).split("exit code ")[-1].split(".")[0]
            raise Stalled(
                f"{named} (exit code {reason}; -9 is often a lack of memory, see dmesg)"
            ) from error

    def waiting(self, seconds: float) -> None:
        """Called now and then while a batch is waited for. Raises Stalled after the timeout."""
        if seconds < _SLOW * self._timeout:
            self._warned = False
        elif seconds < self._timeout and not self._warned:
            self._warned = True
            logging.warning(
                "waiting for data for %.0f s: the input pipeline is the limit. %s",
                *(seconds, self.describe()),
            )
        elif seconds >= self._timeout:
            text = f"no batch for {seconds:.0f} s (timeout={self._timeout:g}). {self.describe()}"
            self.kill_workers()
            raise Stalled(text)

    def describe(self) -> str:
        """Who is due or at work, with which record, and where in the code if it is a thread."""
        if self._workers:
            due = self.done % self._workers
            states = {i: _state(self._pid(i)) for i in range(self._workers)}
            odd = [i for i, state in states.items() if state != _ALIVE]
            return "; ".join(map(self._worker, dict.fromkeys([*odd, due])))
        frames = sys._current_frames()
        parts = []
        for row in self.board.rows:
            if row[_RECORD] >= 0 and (frame := frames.get(int(row[_THREAD]))) is not None:
                stack = "".join(traceback.format_stack(frame)[-6:])
                parts.append(f"a reading thread is at {self._record(row)}, here:\n{stack}")
        return "\n".join(parts) or "no thread is at a record"

    def kill_workers(self) -> None:
        """Ends worker processes that would not end by themselves, stopped ones for instance."""
        for index in range(self._workers):
            # A process that has been waited for is not ours any more.
            children = {child.pid for child in multiprocessing.active_children()}
            if (pid := self._pid(index)) in children:
                os.kill(pid, signal.SIGKILL)

    def _pid(self, worker: int) -> int:
        return int(self.board.rows[worker * self.board.threads, _PID])

    def _worker(self, index: int) -> str:
        pid, threads = self._pid(index), self.board.threads
        rows = self.board.rows[index * threads : (index + 1) * threads]
        busy = [self._record(row) for row in rows if row[_RECORD] >= 0]
        doing = f"at {', '.join(busy)}" if busy else "at no record"
        process = f"process {pid}, {_state(pid)}" if pid > 0 else "which has not started"
        return f"data worker {index} of {self._workers} ({process}) is {doing}"

    def _record(self, row: np.ndarray) -> str:
        number = int(row[_RECORD])
        return f"{self._where(number)} for {time.monotonic() - row[_SINCE]:.0f} s"


def _state(pid: int) -> str:
    """What the system says of a process: on Linux, elsewhere it seems alive."""
    if sys.platform != "linux" or pid <= 0:
        return _ALIVE
    try:
        letter = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "dead"
    return _STATES.get(letter, _ALIVE)
