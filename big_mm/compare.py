"""Tests whether one checkpoint is better than another, image by image.

    python -m big_mm.evaluate --checkpoint A --config suite.py --workdir scores/a
    python -m big_mm.evaluate --checkpoint B --config suite.py --workdir scores/b
    python -m big_mm.compare scores/a scores/b

For every metric that both folders hold over the same images: both values, the second minus the
first with its 95 % interval, and the two-sided p-value of a paired bootstrap. Pairing takes out
what makes images hard for both, so it finds differences that the two intervals alone hide. Many
metrics at p < 0.05 are no discovery: one in twenty differs by chance.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from etils import epath

from big_mm.evaluators import suite
from big_mm.metrics import statistics
from big_mm.metrics.statistics import Difference
from big_mm.report.table import format_bounds, format_value
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Compared:
    """A metric of two folders, and the difference."""

    evaluator: str
    metric: str
    unit: str
    first: float
    second: float
    difference: Difference


def compare(
    first: epath.PathLike,
    second: epath.PathLike,
    samples: int = 10_000,
    across_protocols: bool = False,
) -> list[Compared]:
    """The metrics that two workdirs of `big_mm.evaluate` share, in the order to show them.

    Args:
      samples: bootstrap draws; the smallest p-value is 2 / (samples + 1).
      across_protocols: compare also what was scored by different protocols, such as two prompts.

    Raises:
      UserError: no evaluator in common, or other images or another protocol under one name.
    """
    ours, theirs = suite.stored(first), suite.stored(second)
    if not (names := [name for name in ours if name in theirs]):
        raise UserError(
            f"{first} has {', '.join(ours) or 'no evaluation'}, {second} has "
            f"{', '.join(theirs) or 'no evaluation'}: there is nothing to compare"
        )
    made = []
    for name in names:
        if not across_protocols:
            _check_protocol(name, ours[name]["protocol"], theirs[name]["protocol"])
        keys, here = suite.stored_statistics(first, name)
        others, there = suite.stored_statistics(second, name)
        rows = _same_images(name, keys, others)
        there = {metric: statistic.take(rows) for metric, statistic in there.items()}
        about = ours[name]["about"]
        for metric, difference in statistics.differences(here, there, samples).items():
            unit = about.get(metric, {}).get("unit", "score")
            values = here[metric].value(), there[metric].value()
            made.append(Compared(name, metric, unit, *values, difference))
    return made


def _check_protocol(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    # The input is the model's own affair, and may differ.
    for key in sorted((ours.keys() | theirs.keys()) - {"input"}):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{name}: {key} is {ours.get(key)!r} in the first folder and "
                f"{theirs.get(key)!r} in the second: such numbers compare protocols, not models "
                "(--across_protocols if that is what you want)"
            )


def _same_images(name: str, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """Where our images stand in theirs."""
    if len(set(ours)) < len(ours):
        raise UserError(f"{name}: record keys come up twice, so images cannot be paired")
    if differ := sorted(set(ours) ^ set(theirs)):
        raise UserError(
            f"{name}: a paired test needs the same images: {len(differ)} are in one folder only, "
            f"{differ[0]!r} for instance"
        )
    places = {key: row for row, key in enumerate(theirs)}
    return np.array([places[key] for key in ours], np.int64)


def print_table(found: Sequence[Compared], console: rich.console.Console | None = None) -> None:
    """Prints a row a metric."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in ("first", "second", "difference", "95 % interval", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for evaluator, rows in itertools.groupby(found, key=lambda row: row.evaluator):
        table.add_section()
        table.add_row(evaluator)
        for row in rows:
            differ = row.difference
            cells = [format_value(x, row.unit) for x in (row.first, row.second, differ.value)]
            interval = format_bounds(differ.low, differ.high, row.unit)
            table.add_row(f"  {row.metric}", *cells, interval, f"{differ.p:.1g}")
    (console or rich.console.Console()).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="DIR", help="a workdir of big_mm.evaluate, or of a run")
    parser.add_argument("second", metavar="DIR", help="another, with the same evaluators")
    parser.add_argument("--samples", type=int, default=10_000, metavar="N", help="bootstrap draws")
    parser.add_argument(
        "--across_protocols",
        action="store_true",
        help="compare also what was scored by different protocols, such as two prompts",
    )
    parser.add_argument("--out", metavar="FILE", help="write the rows as JSON")
    arguments = parser.parse_args(argv)
    try:
        found = compare(
            arguments.first, arguments.second, arguments.samples, arguments.across_protocols
        )
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(found)
    if arguments.out:
        rows = [dataclasses.asdict(row) for row in found]
        epath.Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
