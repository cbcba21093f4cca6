"""Metrics as rows: value, chance level and one sentence each."""

import dataclasses
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
# How the evaluator without a suffix is called beside the one with it.
_COUNTERPARTS = {"unseen": "seen"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A metric of an evaluator.

    Attributes:
      family: evaluators whose names differ in a suffix (`zero_shot`, `zero_shot_unseen`) share one.
      variant: that suffix, or "".
      chance: what no skill would reach; None where that is unknown or means nothing.
      text: one sentence for a stranger.
    """

    evaluator: str
    metric: str
    value: float
    chance: float | None
    label: str
    text: str
    unit: str
    headline: bool
    family: str
    variant: str


def rows(metrics: Mapping[str, float], about: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of metrics named `<evaluator>/<metric>`, chance levels beside what they belong to.

    Args:
      about: for each evaluator, in the order to show, {metric: the fields of an `About`}; what is
        not described there is shown under its own name.
    """
    occurring = {name.split("/")[0] for name in metrics if "/" in name}
    evaluators = [name for name in about if name in occurring]
    evaluators += sorted(occurring - set(evaluators))
    made = []
    for name, value in metrics.items():
        evaluator, slash, metric = name.partition("/")
        if not slash or (metric.endswith(_CHANCE) and name.removesuffix(_CHANCE) in metrics):
            continue
        known = about.get(evaluator, {}).get(metric, {})
        family = _family(evaluator, evaluators)
        row = Row(
            evaluator=evaluator,
            metric=metric,
            value=value,
            chance=metrics.get(name + _CHANCE),
            label=known.get("label", metric.replace("_", " ")),
            text=known.get("text", ""),
            unit=known.get("unit", "score"),
            headline=known.get("headline", False),
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
    return rows(metrics, {name: evaluation["about"] for name, evaluation in stored.items()})


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


def _cell(row: Row | None, field: str) -> str:
    return "" if row is None else format_value(getattr(row, field), row.unit)


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
