"""Reads shards completely and says what is wrong with them: `python -m big_mm.doctor SHARDS...`."""

import argparse
import collections
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import rich.console
import rich.progress
from absl import logging
from rich import filesize

from big_mm.data import images
from big_mm.data.damage import DAMAGE, MEANING, BadRecord
from big_mm.data.examples import Schema
from big_mm.data.records import MAX_RECORD_BYTES, Location, TFRecordSource
from big_mm.spec import UserError

_RECORDS_PER_TASK = 32
_LISTED = 100
_EPILOG = (
    "kinds of damage:\n"
    + "".join(f"  {kind:<18} {meaning}\n" for kind, meaning in MEANING.items())
    + """
exit status:
  0  every record is good
  1  something is damaged
  2  nothing could be examined: no such file, a compressed file, a schema that does not fit

JSON output (--json), one object:
  {"good": 7, "bad": {"data_crc": 1},
   "files": {"a.tfrecord": {"bytes": 8707, "records": 8, "good": 7, "bad": 1}},
   "damage": [{"file": "a.tfrecord", "record": 3, "offset": 3300, "kind": "data_crc",
               "detail": "..."}]}
  "bad" has only the kinds that occur. "offset" is the byte at which the record begins. "record" is
  null for an empty shard. Where a length is damaged, one record may stand for several lost ones.

examples:
  python -m big_mm.doctor data/train-*.tfrecord
  python -m big_mm.doctor 'gs://bucket/train-{00000..00031}-of-00032.tfrecord' --json > report.json
  python -m big_mm.doctor laion/*.tfrecord --schema image=jpg,captions=txt,key=key
"""
)


@dataclasses.dataclass(frozen=True)
class Damage:
    """One damaged record, or an empty shard (`record` is None)."""

    file: str
    record: int | None
    offset: int
    kind: str
    detail: str

    def __str__(self) -> str:
        place = self.file if self.record is None else Location(self.file, self.record, self.offset)
        return f"{place}: {self.kind}" + (f": {self.detail}" if self.detail else "")


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found: `files` is {file: bytes, records, good, bad}."""

    files: dict[str, dict[str, int]]
    damage: list[Damage]

    @property
    def good(self) -> int:
        """Number of records without any damage."""
        return sum(file["good"] for file in self.files.values())

    @property
    def bad(self) -> dict[str, int]:
        """{kind: number} of the kinds that occur, in the order of DAMAGE."""
        counts = collections.Counter(damage.kind for damage in self.damage)
        return {kind: counts[kind] for kind in DAMAGE if counts[kind]}

    def to_json(self) -> str:
        """The object that `--help` documents."""
        damage = [dataclasses.asdict(d) for d in self.damage]
        report = {"good": self.good, "bad": self.bad, "files": self.files, "damage": damage}
        return json.dumps(report, indent=1)


def examine(
    source: TFRecordSource,
    *,
    max_pixels: int = images.MAX_PIXELS,
    num_threads: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Reads every record of the source, decodes its image, and reports all damage.

    Args:
      source: the shards, with the schema their records should follow.
      max_pixels: pictures of more are "over_large".
      num_threads: None for one a core.
      progress: is told of every few records that are done.

    Raises:
      UserError: missing or compressed shards, or a schema that names an absent feature.
    """
    shards = source.open().shards_found()
    damage = [Damage(s.url, None, 0, "empty_shard", "") for s in shards if not s.count]
    for start, found in _examine_in_threads(source, max_pixels, num_threads):
        damage.extend(found)
        progress(min(_RECORDS_PER_TASK, len(source) - start))
    order = {shard.url: i for i, shard in enumerate(shards)}
    damage.sort(key=lambda d: (order[d.file], d.offset))
    bad = collections.Counter(d.file for d in damage)
    files = {
        s.url: {
            "bytes": s.stamp.size,
            "records": s.count,
            "good": s.count - bad[s.url] if s.count else 0,
            "bad": bad[s.url],
        }
        for s in shards
    }
    return Report(files, damage)


def _examine_in_threads(
    source: TFRecordSource, max_pixels: int, num_threads: int | None
) -> Iterator[tuple[int, list[Damage]]]:
    def task(start: int) -> tuple[int, list[Damage]]:
        stop = min(start + _RECORDS_PER_TASK, len(source))
        found = (_examine_record(source, i, max_pixels) for i in range(start, stop))
        return start, [damage for damage in found if damage is not None]

    num_threads = num_threads or len(os.sched_getaffinity(0))
    pending: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(source), _RECORDS_PER_TASK):
            pending.append(pool.submit(task, start))
            # Bounded, so that neither records nor results pile up.
            if len(pending) > 4 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _examine_record(source: TFRecordSource, index: int, max_pixels: int) -> Damage | None:
    try:
        record = source[index]
        if source.schema.image is not None:
            images.decode(record["image"], max_pixels)
    except BadRecord as error:
        return Damage(*source.locate(index), error.kind, error.detail)
    return None


def _describe(report: Report, listed: int) -> str:
    records = sum(file["records"] for file in report.files.values())
    size = sum(file["bytes"] for file in report.files.values())
    files = f"{len(report.files)} shard{'s' * (len(report.files) != 1)}"
    head = f"{files}, {records:,} records, {filesize.decimal(size)}"
    if not report.damage:
        return f"{head}: all good"
    lines = [f"{head}: {report.good:,} good, {len(report.damage):,} bad", ""]
    lines += [f"{n:>9}  {kind:<18} {MEANING[kind]}" for kind, n in report.bad.items()]
    lines += ["", *map(str, report.damage[:listed])]
    if (rest := len(report.damage) - listed) > 0:
        lines.append(f"... and {rest} more: --list {len(report.damage)} or --json shows all")
    return "\n".join(lines)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.doctor",
        description="Reads TFRecord shards completely, checks both checksums, the schema and the "
        "picture of every record, and counts what is damaged. It writes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "shards",
        nargs="+",
        metavar="SHARDS",
        help="paths or URLs (gs://, s3://, ...); *, ?, [...], {a,b}, {00000..00031} and name@4 "
        "(for name-00000-of-00004 and so on) are expanded",
    )
    parser.add_argument(
        "--schema",
        default="",
        help="which features hold what, where it is not the default image=image,captions=caption,"
        "key=key; also label= and extra=; several as captions=txt+alt; none as key=",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, see below")
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=images.MAX_PIXELS,
        help="larger pictures are over_large and are not decoded (default: %(default)s)",
    )
    parser.add_argument(
        "--max_record_bytes",
        type=int,
        default=MAX_RECORD_BYTES,
        help="larger records are over_large and are not read (default: %(default)s)",
    )
    parser.add_argument("--num_threads", type=int, help="default: one a core")
    parser.add_argument(
        "--list",
        type=int,
        default=_LISTED,
        metavar="N",
        help="how many damaged records the text shows (default: %(default)s)",
    )
    return parser.parse_args(argv)


def _examine_with_progress(source: TFRecordSource, arguments: argparse.Namespace) -> Report:
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("indexing", total=None, rate="")
        bar.update(task, total=len(source), description="reading")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:,.0f} records/s" if speed else "")

        return examine(
            source,
            max_pixels=arguments.max_pixels,
            num_threads=arguments.num_threads,
            progress=advance,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the doctor and returns its exit status."""
    arguments = _parse_arguments(argv)
    logging.set_verbosity(logging.ERROR)  # The report itself says what the source would warn of.
    try:
        source = TFRecordSource(
            tuple(arguments.shards),
            Schema.parse(arguments.schema),
            arguments.max_record_bytes,
            store_index=False,
        )
        report = _examine_with_progress(source, arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.to_json() if arguments.json else _describe(report, arguments.list))
    return 1 if report.damage else 0


if __name__ == "__main__":
    sys.exit(main())
