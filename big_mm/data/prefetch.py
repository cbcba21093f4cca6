"""Batches onto the device from a background thread."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
# Seconds between looks at what is waited for, and for a thread to end.
_NOW_AND_THEN, _PATIENCE = 0.5, 5.0


class Prefetcher(Iterator[T], Generic[T]):
    """Iterates over `to_device(batch)`, `depth` of them ahead; close it, or use it in `with`.

    `waiting(seconds)` is called about once a second while `next` waits, and may raise.
    """

    _END = object()

    def __init__(
        self,
        batches: Iterable[Any],
        to_device: Callable[[Any], T],
        depth: int,
        waiting: Callable[[float], None] = lambda seconds: None,
    ):
        self._waiting = waiting
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._work, args=(batches, to_device), name="prefetch_to_device", daemon=True
        )
        self._thread.start()

    def _work(self, batches: Iterable[Any], to_device: Callable[[Any], T]) -> None:
        try:
            for batch in batches:
                if not self._put((to_device(batch), None)):
                    return
            self._put((self._END, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put((self._END, error))
        finally:
            # Here and not in close(): a generator can be closed only by the thread that runs it.
            if hasattr(batches, "close"):
                batches.close()

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        value, error = self._get()
        if value is not self._END:
            return value
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def _get(self) -> tuple[Any, BaseException | None]:
        begun = time.monotonic()
        while True:
            try:
                return self._queue.get(timeout=_NOW_AND_THEN)
            except queue.Empty:
                self._waiting(time.monotonic() - begun)

    def close(self) -> bool:
        """Stops the thread and closes the iterator it reads; further batches are dropped.

        Returns whether that was possible: not if the thread hangs in the iterator.
        """
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=_PATIENCE)
        return not self._thread.is_alive()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch_to_device(
    batches: Iterable[Any], to_device: Callable[[Any], T], depth: int = 2
) -> Prefetcher[T]:
    """Runs `to_device` on each batch in a background thread, `depth` batches ahead.

    An exception of the iterator or of `to_device` is raised by the `next` that would have returned
    that batch. `close()` also closes `batches` if it can be closed.
    """
    return Prefetcher(batches, to_device, depth)
