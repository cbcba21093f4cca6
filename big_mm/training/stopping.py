"""SIGTERM: the notice that a machine will be taken away, after which a run saves and leaves."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stopped(BaseException):
    """SIGTERM came while nothing was under way that must be brought to an end.

    No Exception, which evaluators might catch.
    """


class Stop:
    """Whether to save and leave, at the same step on every process."""

    def __call__(self, step: int) -> bool:
        """Asked once after each step."""
        return multihost_utils.reached_preemption_sync_point(step)

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """Inside, SIGTERM raises `Stopped` at once. Not where others must be asked first."""
        return contextlib.nullcontext()


class StopHere(Stop):
    """That of a run of one process, which asks nobody."""

    def __init__(self) -> None:
        self._asked = self._inside = False

    def handle(self, number: int, frame: Any) -> None:
        """The signal's handler."""
        self._asked = True
        if self._inside:
            self._inside = False
            raise Stopped

    def __call__(self, step: int) -> bool:
        return self._asked

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._inside = True
        try:
            if self._asked:
                raise Stopped
            yield
        finally:
            self._inside = False


@contextlib.contextmanager
def stop_signal() -> Iterator[Stop]:
    """Listens to SIGTERM."""
    if jax.process_count() > 1:
        yield Stop()  # JAX's own handler agrees on a step that no process has passed
        return
    stop = StopHere()
    before = signal.signal(signal.SIGTERM, stop.handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
