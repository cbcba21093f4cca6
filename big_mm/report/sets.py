"""What sets of images show, as HTML: shares of attributes, distances, clusters, objects."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MAX_LISTED = 30
_COLOURS = ("#1f5fa8", "#e08a3c", "#4f8a5b", "#8a63a8", "#b8bec8", "#5b6472", "#d4b13f", "#9c4a3c")


def shares(artifact: Mapping[str, Any]) -> str:
    """A bar for each set, cut at the shares of its attributes, with marks where the reference's
    would be cut; the sets that are farthest from the reference first.
    """
    reference, sets = artifact["reference"], artifact["sets"]
    attributes = list(reference)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(attributes)}

    def apart(found: Mapping[str, float | int]) -> float:
        return sum(abs(found[name] - reference[name]) for name in attributes) / len(attributes)

    ordered = sorted(sets.items(), key=lambda item: -apart(item[1]))
    cuts, reached = "", 0.0
    for name in attributes[:-1]:
        reached += reference[name]
        cuts += f'<b style="left:{100 * reached:.1f}%"></b>'
    rows = []
    for name, found in ordered:
        parts = "".join(
            f'<i title="{html.escape(a)}: {100 * found[a]:.0f} %" '
            f'style="width:{100 * found[a]:.2f}%;background:{colours[a]}"></i>'
            for a in attributes
        )
        largest = max(attributes, key=lambda a: found[a])
        said = f"{100 * found[largest]:.0f} % {html.escape(largest)}"
        rows.append((name, f'<div class="parts">{parts}{cuts}</div>', said))
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{html.escape(name)}</span>'
        for name, colour in colours.items()
    )
    note = "Share of the images that are nearest to each attribute; the marks are the reference."
    return f'<p class="note">{note}{_cut(ordered)}</p><p>{legend}</p>{_table(rows)}'


def distances(artifact: Mapping[str, Any]) -> str:
    """A bar for each set, the nearest first."""
    found = sorted(artifact["sets"].items(), key=lambda item: item[1])
    anchor = html.escape(artifact["anchor"])
    note = f"Frechet distance of each set's embeddings from those of <em>{anchor}</em>."
    return f'<p class="note">{note}{_cut(found)}</p>{_table(_bars(found, "{:.3g}"))}'


def clusters(artifact: Mapping[str, Any]) -> str:
    """A table of sets and clusters, shaded by over- and under-representation."""
    head = "<th></th>"
    for members in artifact["identities"]:
        commonest = max(members, key=members.get)
        listed = ", ".join(f"{name}: {count}" for name, count in members.items())
        of = f"{members[commonest]} of {sum(members.values())}"
        head += f'<th title="{html.escape(listed)}">{html.escape(commonest)}<br>{of}</th>'
    ordered = sorted(artifact["over_representation"].items(), key=lambda item: -max(item[1]))
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(map(_excess, found))}</tr>"
        for name, found in ordered[:_MAX_LISTED]
    )
    note = (
        "Each column is a cluster of the identities' images, named after the identity with most "
        "images in it; a cell is the cluster's share in a set minus that among the identities, in "
        "points."
    )
    table = f'<table class="heat"><tr>{head}</tr>{body}</table>'
    return f'<p class="note">{note}{_cut(ordered)}</p>{table}'


def objects(artifact: Mapping[str, Any]) -> str:
    """A bar for each object that captions name and prompts do not."""
    found = sorted(artifact["unasked"].items(), key=lambda item: -item[1])
    if not found:
        return '<p class="note">No object was shown that was not asked for.</p>'
    note = "Images that show an object which their prompt does not name."
    return f'<p class="note">{note}{_cut(found)}</p>{_table(_bars(found, "{:,}"))}'


def _bars(found: Sequence[tuple[str, float | int]], value: str) -> list[tuple[str, str, str]]:
    largest = max((number for _, number in found), default=0) or 1
    return [
        (
            name,
            f'<div class="parts plain"><i style="width:{100 * max(number, 0) / largest:.1f}%"></i>'
            "</div>",
            value.format(number),
        )
        for name, number in found
    ]


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    """A name, a bar and what it says, a line each."""
    lines = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="wide">{bar}</td><td>{said}</td></tr>'
        for name, bar, said in list(rows)[:_MAX_LISTED]
    )
    return f'<table class="narrow">{lines}</table>'


def _excess(points: float | int) -> str:
    colour = "31,95,168" if points > 0 else "224,138,60"
    style = f"background:rgba({colour},{min(0.85, abs(points)):.2f})"
    ink = ";color:#fff" if points > 0.6 else ""
    return f'<td style="{style}{ink}">{100 * points:+.0f}</td>'


def _cut(found: Sequence[Any]) -> str:
    more = len(found) - _MAX_LISTED
    return f" {_MAX_LISTED} of {len(found)} are shown." if more > 0 else ""
