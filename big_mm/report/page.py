"""report.html: a page without any outside reference, from what a workdir holds."""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from big_mm.evaluators import suite
from big_mm.report import curves, examples, sets, table
from big_mm.report.style import CSS
from big_mm.report.table import Row
from big_mm.training.writers import METRICS, read_metrics

REPORT = "report.html"
# What counts the examples of an evaluation, shown beside its name.
_COUNTS = ("examples", "images")
# Artifacts that are drawn from themselves alone, by kind.
_DRAWN: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "languages": examples.languages,
    "retrieval": examples.retrieval,
    "segmentation": examples.segmentation,
    "queries": examples.queries,
    "shares": sets.shares,
    "distances": sets.distances,
    "clusters": sets.clusters,
    "objects": sets.objects,
}


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` of a run's (or an evaluation's) folder and returns its path.

    What the folder lacks, the page leaves out.

    Raises:
      UserError: nothing was evaluated there.
    """
    folder = epath.Path(workdir)
    found = table.load(folder)
    lines = read_metrics(folder) if (folder / METRICS).exists() else []
    config = _read_json(folder / "config.json")
    stored = suite.stored(folder)
    sections = {
        "Results": _scores(found),
        "Training": _curves(lines, found),
        **_examples(stored),
        "All metrics": _all_scores(found),
        "Config": _config(config),
    }
    body = _head(folder, lines, config, stored) + _joined(sections)
    title = html.escape(folder.resolve().name)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · big_mm</title><style>{CSS}</style></head><body>{body}</body></html>\n"
    )
    path = folder / REPORT
    path.write_text(page)
    return path


def _joined(sections: Mapping[str, str]) -> str:
    """Links to the sections that have content, then the sections."""
    links = body = ""
    for number, (title, content) in enumerate(sections.items()):
        if content:
            links += f'<a href="#s{number}">{html.escape(title)}</a>'
            body += f'<h2 id="s{number}">{html.escape(title)}</h2>{content}'
    return f"<nav>{links}</nav>{body}"


def _head(
    folder: epath.Path,
    lines: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> str:
    facts = []
    step = max((evaluation["step"] for evaluation in stored.values()), default=0)
    step = int(lines[-1]["step"]) if lines else step
    batch = config.get("batch_size")
    if step and batch:
        facts.append(f"{step:,} steps of {batch:,} image-text pairs ({step * batch:,} pairs seen)")
    elif step:
        facts.append(f"after {step:,} steps")
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    if rates:
        facts.append(f"{sorted(rates)[len(rates) // 2]:,.0f} images a second while training")
    model = _class_name(_dig(config, "objective", "model"))
    title = html.escape(folder.resolve().name)
    lead = html.escape("; ".join(([model] if model else []) + facts))
    return f'<h1>{title}</h1><p class="lead">{lead}</p>'


def _scores(found: Sequence[Row]) -> str:
    headline = [row for row in found if row.headline] or list(found)
    return (
        '<p class="note">On held-out data. Chance, the mark in a bar, is what a model without any '
        "skill would reach: a guess, or for captions a true caption of another image.</p>"
        + _table(headline, found)
    )


def _all_scores(found: Sequence[Row]) -> str:
    others = [row for row in found if not row.headline and row.metric not in _COUNTS]
    return _table(others, found) if others and len(others) < len(found) else ""


def _table(found: Sequence[Row], everything: Sequence[Row]) -> str:
    """Rows of one metric side by side with its variants; `everything` holds the counts."""
    counts = {row.evaluator: row for row in everything if row.metric in _COUNTS}
    variants = table.variants_of(found)
    head = "<th></th>" + "".join(
        f"<th>{html.escape(table.variant_label(v, variants))}</th>" for v in variants
    )
    body = ""
    for family, group in table.by_family(found).items():
        title = html.escape(family.replace("_", " ").capitalize())
        sizes = {row.variant: counts[row.evaluator] for row in group if row.evaluator in counts}
        protocols = {row.variant: table.format_protocol(row.protocol) for row in group}
        cells = "".join(
            f"<td>{_size(sizes.get(v))}<small>{html.escape(protocols.get(v, ''))}</small></td>"
            for v in variants
        )
        body += f'<tr class="family"><td>{title}</td>{cells}</tr>'
        for cells in table.by_metric(group).values():
            row = next(iter(cells.values()))
            text = f"<small>{html.escape(row.text)}</small>" if row.text else ""
            body += f'<tr><td class="metric">{html.escape(row.label)}{text}</td>'
            body += "".join(f"<td>{_cell(cells.get(v))}</td>" for v in variants) + "</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _size(row: Row | None) -> str:
    return "" if row is None else f"{table.format_value(row.value, 'score')} images"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    value = f'<span class="value">{table.format_value(row.value, row.unit)}</span>'
    if interval := table.format_interval(row):
        value += f' <span class="chance">{interval}</span>'
    if row.chance is not None:
        chance = table.format_value(row.chance, row.unit)
        value += f' <span class="chance">chance {chance}</span>'
    return value + (examples.bar(row.value, row.chance) if row.unit == "share" else "")


def _curves(lines: Sequence[Mapping[str, Any]], found: Sequence[Row]) -> str:
    if len(lines) < 2:
        return ""
    panels = curves.panels(lines) + curves.history(lines, [row for row in found if row.headline])
    figures = "".join(
        f"<figure><figcaption><strong>{html.escape(panel.title)}</strong>"
        f'{html.escape(panel.text)}</figcaption><img src="{curves.svg(panel)}" alt=""></figure>'
        for panel in panels
    )
    return f'<div class="grid">{figures}</div>'


def _examples(stored: Mapping[str, Any]) -> dict[str, str]:
    """A section for each evaluator's artifacts; variants of a classification share one."""
    sections: dict[str, str] = {}
    covered: set[str] = set()
    for name, evaluation in stored.items():
        for artifact in evaluation["artifacts"].values():
            content, kind = "", artifact.get("kind")
            if kind in _DRAWN:
                content = _DRAWN[kind](artifact)
            elif kind == "captions":
                content = examples.captions(artifact, evaluation["about"], evaluation["protocol"])
            elif kind == "classes" and name not in covered:
                variants = _class_variants(name, artifact, stored)
                covered |= {f"{name}_{v}" if v else name for v in variants}
                content = examples.classes(variants)
            title = name.replace("_", " ").capitalize()
            sections[title] = sections.get(title, "") + content
    return sections


def _class_variants(
    name: str, artifact: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """This artifact, and those of `<name>_<variant>` that choose among the same classes."""
    variants = {"": artifact}
    for other, evaluation in stored.items():
        theirs = evaluation["artifacts"].get("classes", {})
        if other.startswith(f"{name}_") and theirs.get("classnames") == artifact["classnames"]:
            variants[other.removeprefix(f"{name}_")] = theirs
    return variants


def _config(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    optimizer = _dig(config, "optimizer")
    sources = _dig(config, "data", "sources") or ()
    sources = sources if isinstance(sources, list) else [sources]
    weights = _dig(config, "objective", "weights") or {}
    losses = [
        f"{_class_name(loss)} ({name}"
        + (f", weight {weights[name]:g})" if name in weights else ")")
        for name, loss in (_dig(config, "objective", "losses") or {}).items()
    ]
    facts = {
        "model": _class_name(_dig(config, "objective", "model")),
        "losses": ", ".join(losses),
        "optimizer": _class_name(optimizer),
        "learning rate": _dig(optimizer, "learning_rate"),
        "steps × batch": f"{config.get('steps')} × {config.get('batch_size')}",
        "image size": _dig(config, "contract", "image_size"),
        "text length": _dig(config, "contract", "max_len"),
        "training data": ", ".join(str(_dig(s, "shards") or _class_name(s)) for s in sources),
        "seed": config.get("seed"),
    }
    rows = "".join(
        f'<tr><td class="note">{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>'
        for k, v in facts.items()
        if v not in (None, "")
    )
    text = html.escape(json.dumps(config, indent=1))
    return (
        f'<table class="narrow">{rows}</table>'
        f"<details><summary>Complete config</summary><pre>{text}</pre></details>"
    )


def _class_name(node: Any) -> str:
    return node.get("_class_", "").split(".")[-1] if isinstance(node, Mapping) else ""


def _dig(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _read_json(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}
