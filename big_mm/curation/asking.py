"""Questions to an annotator and their answers: by threads, in the records' order, each once."""

import collections
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol, runtime_checkable

from absl import logging

from big_mm.curation.answers import Answers
from big_mm.data import examples
from big_mm.data.damage import BadRecord
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.spec import UserError

_LONGEST_PAUSE = 60.0
# Seconds that answers under way are waited for when the job ends early.
_GRACE = 10.0


class Question(NamedTuple):
    """What one answer is wanted for.

    Attributes:
      key: `answers.key_of` everything that the answer depends on.
      content: what the annotator is handed.
    """

    key: str
    content: Any


class Unavailable(Exception):
    """A question that is worth asking again, after `wait` seconds if the service says so."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


@runtime_checkable
class Annotator(Protocol):
    """What makes new features of records; a frozen dataclass, called by several threads.

    Attributes:
      schema: how the records are read.
      adds: names of the features that it adds.
      batch_size: questions that are answered together, and records that are read together.
      threads: that ask at the same time.
    """

    schema: Schema
    adds: tuple[str, ...]
    batch_size: int
    threads: int

    def fingerprint(self) -> str:
        """A digest of all that the new features depend on besides the record."""

    def questions(self, record: Mapping[str, Any]) -> list[Question]:
        """The questions of a record as the schema reads it. Raises BadRecord."""

    def answer(self, contents: Sequence[Any]) -> list[str]:
        """The answers to at most `batch_size` questions.

        Raises:
          Unavailable: not now.
          UserError: not before something has been corrected.
        """

    def features(self, record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
        """The new features of a record, as `examples.encode` takes them."""


class Asking:
    """Records into records with new features, by threads that ask.

    Attributes:
      asked: how many answers were asked for.
    """

    def __init__(
        self,
        annotator: Annotator,
        source: TFRecordSource,
        answers: Answers,
        retries: int,
        pause: float,
    ):
        """`retries` and `pause` are those of `annotation.annotate`."""
        self.asked = 0
        self._annotator, self._source, self._answers = annotator, source, answers
        self._retries, self._pause = retries, pause
        self._pool = futures.ThreadPoolExecutor(max(1, annotator.threads))
        self._pending: collections.deque[futures.Future] = collections.deque()
        self._failures: list[BaseException] = []
        self._stopping = threading.Event()
        self._first, self._changed = threading.Lock(), threading.Condition()
        self._claimed: set[str] = set()
        self._proven = False

    def rows(self, indices: range) -> Iterator[list[bytes | BadRecord]]:
        """What becomes of these records, in their order, some at a time.

        Raises:
          UserError: what the annotator raises; a feature that is there; a service that stays away.
        """
        size = max(1, self._annotator.batch_size)
        blocks = (indices[at : at + size] for at in range(0, len(indices), size))
        for block in blocks:
            self._pending.append(self._pool.submit(self._block, block))
            if len(self._pending) > 4 * max(1, self._annotator.threads):
                yield self._next()
        while self._pending:
            yield self._next()

    def stop(self) -> None:
        """Asks nothing more, and waits a little for the answers under way."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        futures.wait([f for f in self._pending if f.running()], _GRACE)

    def _next(self) -> list[bytes | BadRecord]:
        try:
            rows = self._pending[0].result()
        except Exception:
            raise self._failures[0] from None  # the others only saw that it has failed
        self._pending.popleft()
        return rows

    def _block(self, indices: range) -> list[bytes | BadRecord]:
        try:
            read = [self._read(index) for index in indices]
            asked = {q.key: q.content for _, _, questions in read for q in questions}
            answers = self._answered(asked)
            return [
                data
                if isinstance(data, BadRecord)
                else self._extended(data, record, [answers[q.key] for q in questions])
                for data, record, questions in read
            ]
        except BaseException as error:
            self._failures.append(error)
            self._stopping.set()
            raise

    def _read(self, index: int) -> tuple[bytes | BadRecord, dict[str, Any], list[Question]]:
        """A record's bytes, what the schema makes of them, and its questions."""
        try:
            data = self._source.read(index)
            if taken := examples.decode(data, self._annotator.adds):
                raise UserError(
                    f"{self._source.where(index)} has the feature {next(iter(taken))!r} already: "
                    "let the annotator add one of another name"
                )
            record = self._annotator.schema.read(data)
            return data, record, self._annotator.questions(record)
        except BadRecord as error:
            return error.at(self._source.where(index)), {}, []

    def _extended(self, data: bytes, record: Mapping[str, Any], answers: Sequence[str]) -> bytes:
        return examples.extend(data, self._annotator.features(record, answers))

    def _answered(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """The answers to questions by key: those that are kept, and then new ones.

        What another thread is asking is waited for: captions of the web repeat.
        """
        with self._changed:
            mine = [key for key in asked if key not in self._claimed]
            self._claimed.update(mine)
        try:
            found = self._answers.get(mine)
            missing = [key for key in mine if key not in found]
            size = max(1, self._annotator.batch_size)
            for start in range(0, len(missing), size):
                keys = missing[start : start + size]
                new = self._ask([asked[key] for key in keys])
                self._answers.put(dict(zip(keys, new, strict=True)))
                with self._changed:
                    self.asked += len(new)
        except BaseException as error:
            self._failures.append(error)  # before those who wait see that there is no answer
            raise
        finally:
            with self._changed:
                self._claimed.difference_update(mine)
                self._changed.notify_all()
        others = asked.keys() - set(mine)
        with self._changed:
            self._changed.wait_for(lambda: self._claimed.isdisjoint(others))
        found = self._answers.get(asked)
        if len(found) < len(asked):
            raise futures.CancelledError  # the other one has failed
        return found

    def _ask(self, contents: list[Any]) -> list[str]:
        """The first question is asked alone: a wrong key or a dead service costs one request."""
        if not self._proven:
            with self._first:
                if not self._proven:
                    answers = self._ask_patiently(contents)
                    self._proven = True
                    return answers
        return self._ask_patiently(contents)

    def _ask_patiently(self, contents: list[Any]) -> list[str]:
        for attempt in range(self._retries + 1):
            if self._stopping.is_set():
                raise futures.CancelledError
            try:
                return self._annotator.answer(contents)
            except Unavailable as error:
                reason = str(error)
                wait = min(self._pause * 2**attempt, _LONGEST_PAUSE)
                wait = wait if error.wait is None else error.wait
                logging.log_every_n_seconds(
                    logging.WARNING, "%s: asked again in %.1f s", 30, reason, wait
                )
                if attempt < self._retries:  # not all threads at the same moment
                    self._stopping.wait(wait * random.uniform(1, 1.25))
        raise UserError(
            f"{reason}: given up after {self._retries + 1} attempts; the same command goes on here"
        )
