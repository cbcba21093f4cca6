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
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from absl import logging

from big_mm.curation.answers import Answers
from big_mm.curation.asking import Annotator, Asking
from big_mm.data import shards
from big_mm.data.damage import DAMAGE, BadRecord
from big_mm.data.records import Shard, TFRecordSource, TFRecordWriter
from big_mm.spec import UserError

ANSWERS = "answers.sqlite"
_REQUESTS = 16


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
    fingerprint = annotator.fingerprint()
    made = [
        {"annotator": fingerprint, "input": list(shard.stamp), "records": shard.count}
        for shard in found
    ]
    with futures.ThreadPoolExecutor(_REQUESTS) as pool:
        finished = list(pool.map(_is_finished, targets, made))
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


@contextlib.contextmanager
def _asking(
    annotator: Annotator, source: TFRecordSource, path: str, retries: int, pause: float
) -> Iterator[Asking]:
    answers = Answers(path)
    asking = Asking(annotator, source, answers, retries, pause)
    try:
        yield asking
    finally:
        asking.stop()
        answers.close()


def _targets(urls: Sequence[str], out: str) -> list[str]:
    """Where the shards are written to."""
    targets = [f"{out}/{os.path.basename(url)}" for url in urls]
    counts = collections.Counter(targets)
    for url, target in zip(urls, targets, strict=True):
        local = not shards.is_remote(target)
        if target == url or (local and os.path.realpath(target) == os.path.realpath(url)):
            raise UserError(f"{url} would be written over itself: give --out another folder")
        if counts[target] > 1:
            others = [u for u, t in zip(urls, targets, strict=True) if t == target]
            raise UserError(f"{' and '.join(others)} would both be {target}: annotate them apart")
    return targets


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
