"""Curves of metrics.jsonl as SVG pictures."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.ticker

from big_mm.report.table import Row, variant_label, variants_of

INK, GREY, BLUE, ORANGE = "#1a1d21", "#6b7280", "#1f5fa8", "#c2570c"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.hashsalt": "big_mm",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One picture: lines over steps, and a level to compare with.

    Attributes:
      lines: {label: (steps, values)}.
      level: (value, label) of a dashed line.
      from_zero: the value axis begins at zero.
    """

    title: str
    text: str
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    level: tuple[float, str] | None = None
    from_zero: bool = False


def panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels of a run: each loss term with its baseline, the metrics over time, the speed."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    terms = [name for name in names if name.startswith("loss/")] or ["loss"]
    made = [_loss(lines, name) for name in terms if name in names]
    if "images_per_second" in names:
        made.append(
            Panel(
                "Throughput",
                "images a second while training; evaluation and saving left out",
                {"": _series(lines, "images_per_second")},
                from_zero=True,
            )
        )
    if "learning_rate" in names:
        made.append(
            Panel(
                "Learning rate", "as scheduled", {"": _series(lines, "learning_rate")}, None, True
            )
        )
    return made


def history(lines: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[Panel]:
    """A panel for each metric that was evaluated at several steps, its variants together.

    Of a metric with several depths (r@1, r@5) only the first is drawn.
    """
    variants = variants_of(rows)
    made: dict[tuple[str, str], Panel] = {}
    first: dict[tuple[str, str], str] = {}
    for row in rows:
        if first.setdefault((row.family, row.metric.split("@")[0]), row.metric) != row.metric:
            continue
        steps, values = _series(lines, f"{row.evaluator}/{row.metric}")
        if len(steps) < 2:
            continue
        scale = 100 if row.unit == "share" else 1
        line = {variant_label(row.variant, variants): (steps, [scale * v for v in values])}
        level = None if row.chance is None else (scale * row.chance, "chance")
        key = (row.family, row.metric)
        title = f"{row.label}, %" if row.unit == "share" else row.label
        before = made.get(key, Panel(title, row.text, {}, level, from_zero=True))
        made[key] = dataclasses.replace(before, lines=before.lines | line)
    return list(made.values())


def svg(panel: Panel) -> str:
    """The panel as the data URI of an SVG."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(4.6, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for (label, (steps, values)), colour in zip(
            panel.lines.items(), (BLUE, ORANGE, INK, GREY) * 9, strict=False
        ):
            marker = "o" if len(steps) < 12 else None
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=3)
            if len(panel.lines) > 1:
                axes.annotate(
                    label,
                    (steps[-1], values[-1]),
                    (4, 0),
                    textcoords="offset points",
                    color=colour,
                    va="center",
                    annotation_clip=False,
                )
        if panel.from_zero:
            axes.set_ylim(bottom=0)
        if panel.level is not None:
            value, label = panel.level
            axes.axhline(value, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                label,
                (1, value),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color=GREY,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        axes.grid(axis="y", color="#eceff3", linewidth=0.8)
        axes.set_axisbelow(True)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _loss(lines: Sequence[Mapping[str, Any]], name: str) -> Panel:
    term = name.removeprefix("loss/")
    levels = [line[f"baseline/{term}"] for line in lines if f"baseline/{term}" in line]
    text = "nats; a loss that stays at the dashed line has learnt nothing" if levels else "nats"
    level = (levels[-1], f"guessing: {levels[-1]:.2f}") if levels else None
    title = "Loss" if name == "loss" else f"{term.replace('_', ' ').capitalize()} loss"
    return Panel(title, text, {"": _series(lines, name)}, level)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], float(line[name])) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]
