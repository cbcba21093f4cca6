"""Evaluators' artifacts as HTML: captions, retrieval, classes, answers, regions."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from big_mm.report import table

_ARTICLES = ("a", "an", "the")
_MAX_LISTED = 20


def captions(
    artifact: Mapping[str, Any], about: Mapping[str, Any], protocol: Mapping[str, Any]
) -> str:
    """A contact sheet: the first images, what was said and what people said."""
    cards = []
    for item in artifact["examples"]:
        chips = "".join(
            _chip(about.get(name, {}).get("label", name), value == 1)
            for name, value in item["scores"].items()
            if value in (0, 1) and about.get(name, {}).get("headline")
        )
        truths = "<br>".join(html.escape(text) for text in item["references"])
        cards.append(
            f'<div class="card"><img src="{item["image"]}" alt="">'
            f'<div class="said">{_marked(item["prediction"], item["unmatched"])}</div>'
            f'<div class="truth">{truths}</div>{chips}</div>'
        )
    decoding = protocol["decoding"]
    how = f"{decoding['num_beams']} beams" if decoding["num_beams"] > 1 else "greedily"
    if decoding["temperature"]:
        how = f"by sampling at temperature {decoding['temperature']:g}"
    return (
        f'<p class="note">The first {len(cards)} images of the held-out set, not chosen. Bold: the '
        "generated caption, decoded " + html.escape(how) + "; words that occur in none of the "
        "image's true captions are underlined. Grey: true captions.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


def retrieval(artifact: Mapping[str, Any]) -> str:
    """The first right and wrong queries of both directions with their three nearest results."""
    parts = []
    for direction, title in (
        ("image_to_text", "From an image to its caption"),
        ("text_to_image", "From a caption to its image"),
    ):
        columns = ""
        for verdict, heading in (("right", "Found first"), ("wrong", "Not found first")):
            queries = artifact[f"{direction}_{verdict}"]
            shown = "".join(map(_query, queries)) or '<p class="note">None.</p>'
            columns += f"<div><h3>{title}: {heading.lower()}</h3>{shown}</div>"
        parts.append(f'<div class="two">{columns}</div>')
    return (
        '<p class="note">The first queries of either kind, not chosen, each with the three results '
        "ranked highest. Where two images share a caption, finding the other one counts as wrong."
        "</p>" + "".join(parts)
    )


def queries(artifact: Mapping[str, Any]) -> str:
    """The first questions, statements, choices or edits, with what the model answered."""
    shown = "".join(map(_query, artifact["queries"]))
    return f'<p class="note">The first records, not chosen.</p><div class="two">{shown}</div>'


def languages(artifact: Mapping[str, Any]) -> str:
    """The headline metrics of each language."""
    columns, rows = artifact["columns"], artifact["rows"]
    head = "<th></th>" + "".join(f"<th>{html.escape(label)}</th>" for label, _ in columns.values())
    body = ""
    for language, found in rows.items():
        body += f"<tr><td>{html.escape(language)}</td>"
        for name, (_, unit) in columns.items():
            value = found.get(name)
            shown = table.format_value(value, unit)
            drawn = bar(value, None) if unit == "share" and value is not None else ""
            body += f"<td>{shown}{drawn}</td>"
        body += "</tr>"
    note = f"What is shown of single pictures is that of {html.escape(next(iter(rows)))}."
    return f'<table class="narrow"><tr>{head}</tr>{body}</table><p class="note">{note}</p>'


def segmentation(artifact: Mapping[str, Any]) -> str:
    """The first pictures beside their true and predicted regions, and the overlap of each class."""
    rows = "".join(
        f'<figure><img src="{item["image"]}" alt=""><img src="{item["true"]}" alt="">'
        f'<img src="{item["predicted"]}" alt=""></figure>'
        for item in artifact["examples"]
    )
    classes = zip(artifact["classnames"], artifact["colours"], artifact["iou"], strict=True)
    legend = "".join(
        f'<tr><td style="background:{colour};width:2em"></td><td>{html.escape(name)}</td>'
        f'<td style="min-width:200px">{"" if iou is None else bar(iou, None)}</td>'
        f"<td>{'–' if iou is None else f'{100 * iou:.0f}'}</td></tr>"
        for name, colour, iou in classes
    )
    return (
        '<p class="note">The first pictures, not chosen: the picture, the true regions, the '
        "predicted ones. Below: intersection over union of each class, in per cent.</p>"
        f'<div class="found">{rows}</div><table class="narrow">{legend}</table>'
    )


def _query(query: Mapping[str, Any]) -> str:
    """What asks, an image or a text or both, and what was found: images or texts."""
    verdicts = _verdicts([r["right"] for r in query["results"]])
    asking = f'<img src="{query["image"]}" alt="">' if "image" in query else ""
    said = f'<div class="said">{html.escape(query["text"])}</div>' if "text" in query else ""
    pairs = list(zip(query["results"], verdicts, strict=True))
    show_truth = bool(query["truth"]) and not query["results"][0]["right"]
    truth = ""
    if "image" in query["results"][0]:
        found = "".join(
            f'<figure class="{kind}"><img src="{r["image"]}" alt="">'
            f"<figcaption>{sign}</figcaption></figure>"
            for r, (kind, sign) in pairs
        )
        if show_truth:
            truth = (
                f'<figure class="apart"><img src="{query["truth"]}" alt="">'
                "<figcaption>truth</figcaption></figure>"
            )
        found = f'<div class="found">{found}{truth}</div>'
    else:
        results = "".join(
            f'<li class="{kind}">{sign} {html.escape(r["text"])}</li>' for r, (kind, sign) in pairs
        )
        if show_truth:
            truth = f'<div class="truth">truth: {html.escape("; ".join(query["truth"]))}</div>'
        found = f"<ol>{results}</ol>{truth}"
    return f'<div class="query">{asking}<div>{said}{found}</div></div>'


def _verdicts(right: Sequence[bool]) -> list[tuple[str, str]]:
    """CSS class and sign of each result: only what stands before every right one is a mistake."""
    return [
        ("good", "✓") if r else ("note", "") if any(right[:i]) else ("bad", "✗")
        for i, r in enumerate(right)
    ]


def classes(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of each class, and what it was taken for.

    Args:
      variants: {variant: artifact} over the same class names; they share one map if the names are
        a grid ("red circle", "red star", ...), where the cells of a named variant are outlined.
    """
    names = next(iter(variants.values()))["classnames"]
    grid = as_grid(names)
    accuracy = _grid(grid, variants) if grid else _list(names, variants)
    confusions = ""
    for variant, artifact in variants.items():
        rows = "".join(
            f"<tr><td>{html.escape(c['true'])}</td><td>{html.escape(c['predicted'])}</td>"
            f"<td>{c['count']} of {c['of']}</td></tr>"
            for c in artifact["confusions"]
        )
        title = "Most frequent confusions"
        title += f", {table.variant_label(variant, list(variants))}" if len(variants) > 1 else ""
        head = "<tr><th>true</th><th>taken for</th><th>images</th></tr>"
        body = f'<table class="narrow">{head}{rows}</table>' if rows else "<p>None.</p>"
        confusions += f"<div><h3>{html.escape(title)}</h3>{body}{_mistakes(artifact)}</div>"
    return f'{accuracy}<div class="two">{confusions}</div>'


def as_grid(names: Sequence[str]) -> tuple[list[str], list[str], dict[tuple[str, str], int]] | None:
    """First words, remaining words, and {(first, remaining): class}, if the names are all pairs."""
    cells = {}
    for number, name in enumerate(names):
        words = name.split()
        words = words[1:] if words and words[0] in _ARTICLES else words
        if len(words) < 2:
            return None
        cells[words[0], " ".join(words[1:])] = number
    rows, columns = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    complete = len(cells) == len(names) == len(rows) * len(columns)
    return (rows, columns, cells) if complete and min(len(rows), len(columns)) > 1 else None


def _grid(grid: tuple, variants: Mapping[str, Mapping[str, Any]]) -> str:
    rows, columns, cells = grid
    head = "<th></th>" + "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join(
        f"<tr><th>{html.escape(r)}</th>"
        + "".join(_heat(cells[r, c], variants) for c in columns)
        + "</tr>"
        for r in rows
    )
    outlined = [v for v in variants if v]
    note = "Share of the images of each class that are classified rightly, in per cent."
    if outlined:
        note += f" Outlined: {', '.join(v.replace('_', ' ') for v in outlined)}."
    return f'<p class="note">{note}</p><table class="heat"><tr>{head}</tr>{body}</table>'


def _heat(number: int, variants: Mapping[str, Mapping[str, Any]]) -> str:
    """The cell of a class, from the first variant that has examples of it."""
    for variant, artifact in variants.items():
        if count := artifact["examples"][number]:
            share = artifact["right"][number] / count
            colour = f"rgba(31,95,168,{0.12 + 0.7 * share:.2f})"
            ink = "#fff" if share > 0.6 else "inherit"
            outline = ' class="variant"' if variant else ""
            title = f"{artifact['right'][number]} of {count}"
            style = f"background:{colour};color:{ink}"
            return f'<td{outline} title="{title}" style="{style}">{100 * share:.0f}</td>'
    return '<td class="none">–</td>'


def _list(names: Sequence[str], variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Classes without a grid: all if few, else those with the lowest accuracy."""
    rows = []
    for number, name in enumerate(names):
        right = sum(a["right"][number] for a in variants.values())
        if count := sum(a["examples"][number] for a in variants.values()):
            rows.append((right / count, name, right, count))
    note = "Images of each class that are classified rightly."
    if len(rows) > _MAX_LISTED:
        note = f"The {_MAX_LISTED} of {len(rows)} classes with the fewest right images."
        rows = sorted(rows)[:_MAX_LISTED]
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{right} of {count}</td>"
        f'<td style="min-width:200px">{bar(share, None)}</td></tr>'
        for share, name, right, count in rows
    )
    return f'<p class="note">{note}</p><table class="narrow">{cells}</table>'


def _mistakes(artifact: Mapping[str, Any]) -> str:
    shown = "".join(
        f'<figure class="bad"><img src="{m["image"]}" alt="">'
        f"<figcaption>{html.escape(m['predicted'])}</figcaption></figure>"
        for m in artifact["mistakes"]
    )
    if not shown:
        return ""
    return f'<h3>Mistakes, and what they were taken for</h3><div class="found">{shown}</div>'


def bar(share: float, chance: float | None) -> str:
    """A bar from 0 to 1 with a mark at the chance level."""
    mark = "" if chance is None else f'<b style="left:{100 * min(chance, 1):.1f}%"></b>'
    return f'<div class="bar"><i style="width:{100 * min(max(share, 0), 1):.1f}%"></i>{mark}</div>'


def _marked(text: str, unmatched: Iterable[str]) -> str:
    """The text with those words underlined."""
    words = sorted(unmatched, key=len, reverse=True)
    if not text.strip():
        return '<span class="bad">(empty)</span>'
    if not words:
        return html.escape(text)
    pattern = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, words)) + r")(?!\w)", re.IGNORECASE)
    parts = pattern.split(text)
    return "".join(
        f"<u>{html.escape(part)}</u>" if i % 2 else html.escape(part)
        for i, part in enumerate(parts)
    )


def _chip(label: str, right: bool) -> str:
    return f'<span class="chip {_class(right)}">{_sign(right)} {html.escape(label)}</span>'


def _class(right: bool) -> str:
    return "good" if right else "bad"


def _sign(right: bool) -> str:
    return "✓" if right else "✗"
