"""Metrics as rows: value, interval, chance level, protocol and one sentence each."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
from etils import epath

from big_mm.evaluators import suite
from big_mm.spec import UserError

EVALUATION = "evaluation.json"
_CHANCE = "_chance"
_SUFFIXES = (_CHANCE, suite.LOW, suite.HIGH)
# How the evaluator without a suffix is called beside the one with it.
_COUNTERPARTS = {"unseen": "seen"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A metric of an evaluator.

    Attributes:
      family: evaluators whose names differ in a suffix (`zero_shot`, `zero_shot_unseen`) share one.
      variant: that suffix, or "".
      chance: what no skill would reach; None where that is unknown or means nothing.
      low, high: of the 95 % bootstrap interval; None where there is none.
      protocol: what pins the number, by the evaluator's own account.
      text: one sentence for a stranger.
    """

    evaluator: str
    metric: str
    value: float
    chance: float | None
    low: float | None
    high: float | None
    protocol: Mapping[str, Any]
    label: str
    text: str
    unit: str
    headline: bool
    lower_is_better: bool
    family: str
    variant: str


def rows(
    metrics: Mapping[str, float],
    about: Mapping[str, Mapping[str, Any]],
    protocols: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:
    """Rows of metrics named `<evaluator>/<metric>`, with chance levels and intervals beside them.

    Args:
      about: for each evaluator, in the order to show, {metric: the fields of an `About`}; what is
        not described there is shown under its own name.
      protocols: of each evaluator.
    """
    occurring = {name.split("/")[0] for name in metrics if "/" in name}
    evaluators = [name for name in about if name in occurring]
    evaluators += sorted(occurring - set(evaluators))
    made = []
    for name, value in metrics.items():
        evaluator, slash, metric = name.partition("/")
        beside = [s for s in _SUFFIXES if metric.endswith(s) and name.removesuffix(s) in metrics]
        if not slash or beside:
            continue
        known = about.get(evaluator, {}).get(metric, {})
        family = _family(evaluator, evaluators)
        row = Row(
            evaluator=evaluator,
            metric=metric,
            value=value,
            chance=metrics.get(name + _CHANCE),
            low=metrics.get(name + suite.LOW),
            high=metrics.get(name + suite.HIGH),
            protocol=(protocols or {}).get(evaluator, {}),
            label=known.get("label", metric.replace("_", " ")),
            text=known.get("text", ""),
            unit=known.get("unit", "score"),
            headline=known.get("headline", False),
            lower_is_better=known.get("lower_is_better", False),
            family=family,
            variant=evaluator[len(family) + 1 :],
        )
        made.append(row)
    return sorted(made, key=lambda row: _place(row, evaluators, about))


def load(workdir: epath.PathLike) -> list[Row]:
    """The rows of a workdir: its final evaluation, or the latest that was stored.

    Raises:
      UserError: nothing was evaluated there.
    """
    stored = suite.stored(workdir)
    path = epath.Path(workdir) / EVALUATION
    if path.exists():
        metrics = json.loads(path.read_text())
    else:
        metrics = {
            f"{name}/{metric}": value
            for name, evaluation in stored.items()
            for metric, value in evaluation["metrics"].items()
        }
    if not metrics:
        raise UserError(f"{workdir} has neither {EVALUATION} nor {suite.ARTIFACTS}/: no evaluation")
    metrics = {name: float(value) for name, value in metrics.items()}
    return rows(
        metrics,
        {name: evaluation["about"] for name, evaluation in stored.items()},
        {name: evaluation["protocol"] for name, evaluation in stored.items()},
    )


def headline(workdir: epath.PathLike) -> list[Row]:
    """The few rows that sum up a run; all of them if no evaluator says which these are."""
    found = load(workdir)
    return [row for row in found if row.headline] or found


def print_table(found: Iterable[Row], console: rich.console.Console | None = None) -> None:
    """Prints rows with their chance levels, variants of an evaluator side by side."""
    found = list(found)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    variants = variants_of(found)
    table.add_column("")
    for variant in variants:
        table.add_column(variant_label(variant, variants), justify="right")
        table.add_column("chance", justify="right", style="dim")
    for family, group in by_family(found).items():
        table.add_section()
        for cells in by_metric(group).values():
            row = next(iter(cells.values()))
            shown = [
                text
                for variant in variants
                for text in (
                    _cell(cells.get(variant), "value"),
                    _cell(cells.get(variant), "chance"),
                )
            ]
            label = row.label if row.text else f"{family.replace('_', ' ')}: {row.label}"
            table.add_row(label, *shown)
    (console or rich.console.Console()).print(table)


def to_csv(found: Iterable[Row]) -> str:
    """One line a metric, numbers in full, the protocol as JSON."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = ("evaluator", "metric", "value", "low", "high", "chance", "unit")
    writer.writerow([*columns, "protocol"])
    for row in found:
        protocol = json.dumps(row.protocol, sort_keys=True, ensure_ascii=False)
        writer.writerow([*(getattr(row, column) for column in columns), protocol])
    return file.getvalue()


def to_markdown(found: Iterable[Row]) -> str:
    """A table of all rows, the protocol beside each number."""
    lines = [
        "| evaluator | metric | value | 95 % interval | chance | protocol |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        cells = (
            row.evaluator,
            row.label,
            format_value(row.value, row.unit),
            format_interval(row),
            format_value(row.chance, row.unit),
            format_protocol(row.protocol),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def by_family(found: Iterable[Row]) -> dict[str, list[Row]]:
    """{family: its rows}, in order of appearance."""
    families: dict[str, list[Row]] = {}
    for row in found:
        families.setdefault(row.family, []).append(row)
    return families


def by_metric(group: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """{metric: {variant: row}} of one family."""
    metrics: dict[str, dict[str, Row]] = {}
    for row in group:
        metrics.setdefault(row.metric, {})[row.variant] = row
    return metrics


def variants_of(found: Iterable[Row]) -> list[str]:
    """The variants that occur, the one without suffix first."""
    return sorted(dict.fromkeys(row.variant for row in found), key=lambda v: (v != "", v))


def variant_label(variant: str, variants: Sequence[str]) -> str:
    """What to call a variant among these: "unseen", and "seen" for the one without suffix."""
    if variant:
        return variant.replace("_", " ")
    others = [_COUNTERPARTS[v] for v in variants if v in _COUNTERPARTS]
    return others[0] if others else "value"


def format_value(value: float | None, unit: str) -> str:
    """ "12.3 %", "1.23", or "" for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "not finite"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if value == int(value) and abs(value) >= 10:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


def format_interval(row: Row) -> str:
    """ "11.9 to 12.8 %", or "" without one."""
    if row.low is None or row.high is None:
        return ""
    return format_bounds(row.low, row.high, row.unit)


def format_bounds(low: float, high: float, unit: str) -> str:
    """ "11.9 to 12.8 %"."""
    first, last = (format_value(bound, unit) for bound in (low, high))
    return f"{first.removesuffix(' %') if last.endswith(' %') else first} to {last}"


def format_protocol(protocol: Mapping[str, Any]) -> str:
    """ "prefix: a photo of; templates: 9 (a photo of a {}., ...)": what is empty is left out."""
    parts = [
        f"{key}: {_brief(value)}" for key, value in protocol.items() if value not in ("", None)
    ]
    return "; ".join(parts)


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_brief(v)}" for k, v in value.items() if v not in ("", None))
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value[:3]))
        return shown if len(value) <= 3 else f"{len(value)} ({shown}, ...)"
    return str(value)


def _cell(row: Row | None, field: str) -> str:
    if row is None:
        return ""
    text = format_value(getattr(row, field), row.unit)
    interval = format_interval(row) if field == "value" else ""
    return f"{text} ({interval})" if interval else text


def _family(evaluator: str, evaluators: Sequence[str]) -> str:
    prefixes = [name for name in evaluators if evaluator.startswith(name + "_")]
    return min(prefixes, key=len, default=evaluator)


def _place(
    row: Row, evaluators: Sequence[str], about: Mapping[str, Mapping[str, Any]]
) -> tuple[Any, ...]:
    """Families in order of appearance; within one, metrics as the evaluator describes them."""
    described = list(about.get(row.evaluator, {}))
    place = described.index(row.metric) if row.metric in described else len(described)
    return evaluators.index(row.family), place, row.metric, evaluators.index(row.evaluator)
