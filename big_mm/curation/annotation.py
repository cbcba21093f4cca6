"""Shards into shards with further features: rewritten captions, captions of a model.

What is new comes from an `Annotator`, one component of a config. A record asks it some questions,
and the answers make the record's new features. Every answer is kept in `answers.Answers` when it
comes, so that no question is paid for twice, whatever was killed in between.

A shard appears whole, under the name of its input. Beside it lies `.NAME.annotated`, JSON with the
annotator's fingerprint and the input's size and version: a shard that has them is finished.
"""

import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import random
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple, Protocol, runtime_checkable

from absl import logging

from big_mm.curation.answers import Answers
from big_mm.data import examples, shards
from big_mm.data.damage import DAMAGE, BadRecord
from big_mm.data.examples import Schema
from big_mm.data.records import Shard, TFRecordSource, TFRecordWriter
from big_mm.spec import UserError

ANSWERS = "answers.sqlite"
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
          UserError: never, before something has been corrected.
        """

    def features(self, record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
        """The new features of a record, as `examples.encode` takes them."""


@dataclasses.dataclass
class Report:
    """What was done: shards written and found finished, records read, damaged ones left out by
    kind, and answers asked for.
    """

    written: int = 0
    finished: int = 0
    records: int = 0
    bad: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    asked: int = 0


def annotate(
    annotator: Annotator,
    patterns: str | Sequence[str],
    out: str,
    *,
    answers: str | None = None,
    max_bad_share: float = 0.01,
    retries: int = 8,
    pause: float = 1.0,
    progress: Callable[[int, int, int], None] = lambda done, total, bad: None,
) -> Report:
    """Writes for every shard that `patterns` name one of the same name in the folder `out`.

    It has the same records in the same order, with all their features and the new ones. Damaged
    records are logged with file and offset and left out. Finished shards are left alone.

    Args:
      out: a folder, local or remote.
      answers: the local file that keeps the answers; None: answers.sqlite in `out`.
      max_bad_share: more damaged records than this share of a shard are an error.
      retries: how often a service that is not available is asked again.
      pause: seconds before it is; each time twice as long, up to a minute.
      progress: told of the records done, of how many, and how many of them were damaged.

    Raises:
      UserError: shards that cannot be read or were made otherwise, a feature that the records have
        already, too many damaged records, or what the annotator refuses.
    """
    source = TFRecordSource(patterns, annotator.schema).open()
    found, out = source.shards_found(), shards.normalise(out).rstrip("/")
    targets = _targets([shard.url for shard in found], out)
    made = [_made_by(annotator.fingerprint(), shard) for shard in found]
    finished = [_is_finished(target, by) for target, by in zip(targets, made, strict=True)]
    if answers is None and shards.is_remote(out):
        raise UserError(f"{out} is remote: name a local file for the answers (--answers FILE)")
    if not shards.is_remote(out):
        os.makedirs(out, exist_ok=True)
    report = Report(finished=sum(finished))
    total = sum(s.count for s, done in zip(found, finished, strict=True) if not done)

    def tell(records: int, bad: int) -> None:
        report.records += records
        progress(report.records, total, report.bad.total() + bad)

    with _asking(annotator, source, answers or f"{out}/{ANSWERS}", retries, pause) as asking:
        start = 0
        for shard, target, by, done in zip(found, targets, made, finished, strict=True):
            if not done:
                rows = asking.rows(range(start, start + shard.count))
                report.bad += _write(rows, shard, target, by, max_bad_share, tell)
                report.written += 1
            start += shard.count
        report.asked = asking.asked
    return report


def _write(
    blocks: Iterator[list[bytes | BadRecord]],
    shard: Shard,
    target: str,
    by: Mapping[str, Any],
    max_bad_share: float,
    tell: Callable[[int, int], None],
) -> collections.Counter[str]:
    """A shard of these records and what says by whom it was made; returns what was left out."""
    bad = collections.Counter[str]()
    with _alone(target), TFRecordWriter(target) as writer:
        for rows in blocks:
            for row in rows:
                if isinstance(row, bytes):
                    writer.write(row)
                else:
                    logging.warning("left out: %s", row)
                    bad[row.kind] += 1
            tell(len(rows), bad.total())
        _check_bad(shard, bad, max_bad_share)
        # Before the shard has its name: one without this is not of this job.
        with shards.atomic_write(_beside(target)) as file:
            file.write(json.dumps(by | {"bad": bad}).encode())
    return bad


class _Asking:
    """Records into records with new features, by threads that ask."""

    def __init__(
        self,
        annotator: Annotator,
        source: TFRecordSource,
        answers: Answers,
        retries: int,
        pause: float,
    ):
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
        """What becomes of these records, in their order, some at a time."""
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
                data if isinstance(data, BadRecord) else self._extended(data, record, found)
                for data, record, questions in read
                for found in [[answers[question.key] for question in questions]]
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


@contextlib.contextmanager
def _asking(
    annotator: Annotator, source: TFRecordSource, path: str, retries: int, pause: float
) -> Iterator[_Asking]:
    answers = Answers(path)
    asking = _Asking(annotator, source, answers, retries, pause)
    try:
        yield asking
    finally:
        asking.stop()
        answers.close()


def _targets(urls: Sequence[str], out: str) -> list[str]:
    """Where the shards are written to."""
    targets = [f"{out}/{os.path.basename(url)}" for url in urls]
    for url, target in zip(urls, targets, strict=True):
        local = not shards.is_remote(target)
        if target == url or (local and os.path.realpath(target) == os.path.realpath(url)):
            raise UserError(f"{url} would be written over itself: give --out another folder")
        if targets.count(target) > 1:
            others = [u for u, t in zip(urls, targets, strict=True) if t == target]
            raise UserError(f"{' and '.join(others)} would both be {target}: annotate them apart")
    return targets


def _made_by(fingerprint: str, shard: Shard) -> dict[str, Any]:
    return {"annotator": fingerprint, "input": list(shard.stamp), "records": shard.count}


def _beside(target: str) -> str:
    parent, slash, name = target.rpartition("/")
    return f"{parent}{slash}.{name}.annotated"


def _is_finished(target: str, by: Mapping[str, Any]) -> bool:
    """Whether a shard is there. Raises UserError if it was made of something else."""
    if not _exists(target):
        return False
    made = _content(_beside(target))
    different = [name for name in by if made.get(name) != by[name]]
    if not made:
        raise UserError(f"{target} is there and not of this job: remove it, or give another --out")
    if different:
        what = "annotator" if "annotator" in different else "input shard"
        raise UserError(
            f"{target} was made with another {what}: remove it, or give another --out (answers "
            "that still fit are not asked for again)"
        )
    return True


def _exists(url: str) -> bool:
    try:
        shards.stat(url)
    except FileNotFoundError:
        return False
    return True


def _content(url: str) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none."""
    try:
        file = shards.open_file(url)
        return json.loads(file.read(0, file.stamp.size))
    except (FileNotFoundError, ValueError):
        return {}


@contextlib.contextmanager
def _alone(target: str) -> Iterator[None]:
    """Holds a local shard for this process, and removes what a killed one has left of it."""
    if shards.is_remote(target):  # written to a temporary file of this machine, sent at once
        yield
        return
    folder, name = os.path.split(target)
    path = os.path.join(folder, f".{name}.lock")
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process writes {target}: give each process its own --shards"
            ) from None
        leftover = re.compile(rf"\.{re.escape(name)}(\.index|\.annotated)?\.[0-9a-f]{{16}}\.tmp")
        for file in filter(leftover.fullmatch, os.listdir(folder)):
            os.remove(os.path.join(folder, file))
        try:
            yield
        finally:
            os.remove(path)


def _check_bad(shard: Shard, bad: collections.Counter[str], max_bad_share: float) -> None:
    if (count := bad.total()) > max_bad_share * shard.count:
        kinds = ", ".join(f"{kind} {bad[kind]}" for kind in DAMAGE if bad[kind])
        raise UserError(
            f"{count} of the {shard.count} records of {shard.url} are damaged ({kinds}), more than "
            f"max_bad_share={max_bad_share}: see the warnings above, examine the shard with "
            "python -m big_mm.doctor, or raise --max_bad_share"
        )
