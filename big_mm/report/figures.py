"""Pictures for notebooks: a matrix of similarities, and captioned images.

Both return Pillow images, which a notebook shows and anything can save.
"""

import io
import math
import textwrap
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from big_mm.report.curves import GREY, INK

_THUMBNAIL = 0.95  # inches
_TILE = 1.75


def similarity(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    texts: Sequence[str],
    cosines: Float[np.ndarray, "images texts"],
) -> Image.Image:
    """Images across, texts down, the cosine of each pair; framed is each text's best image.

    The shade is relative to the row, since a text's cosines are compared with one another.
    """
    rows, columns = len(texts), len(images)
    label = 0.075 * max(len(line) for text in texts for line in _wrap(text, 34)) + 0.2
    width, height = label + columns * _THUMBNAIL + 0.05, _THUMBNAIL + rows * 0.62 + 0.05
    figure = matplotlib.figure.Figure((width, height), dpi=110)

    def axes(left: float, top: float, wide: float, high: float) -> matplotlib.axes.Axes:
        made = figure.add_axes(
            (left / width, 1 - (top + high) / height, wide / width, high / height)
        )
        made.axis("off")
        return made

    for column, image in enumerate(images):
        left = label + column * _THUMBNAIL
        axes(left + 0.05, 0.05, _THUMBNAIL - 0.1, _THUMBNAIL - 0.1).imshow(image)
    cells = axes(label, _THUMBNAIL, columns * _THUMBNAIL, rows * 0.62)
    low, high = cosines.min(axis=0)[:, None], cosines.max(axis=0)[:, None]
    shade = (cosines.T - low) / np.maximum(high - low, 1e-6)
    cells.imshow(shade, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for row, text in enumerate(texts):
        best = int(cosines[:, row].argmax())
        for column in range(columns):
            weight = "bold" if column == best else "normal"
            value = f"{cosines[column, row]:.2f}"
            cells.text(column, row, value, ha="center", va="center", color=INK, weight=weight)
        frame = {"fill": False, "edgecolor": INK, "linewidth": 1.5, "clip_on": False}
        cells.add_patch(matplotlib.patches.Rectangle((best - 0.5, row - 0.5), 1, 1, **frame))
        wrapped = "\n".join(_wrap(text, 34))
        cells.text(-0.6, row, wrapped, ha="right", va="center", color=INK, fontsize=9)
    return _picture(figure)


def captioned(
    images: Sequence[UInt8[np.ndarray, "height width 3"]],
    captions: Sequence[str],
    truths: Sequence[str] = (),
    columns: int = 4,
) -> Image.Image:
    """Images with the generated caption below each, and in grey what a person or the world says."""
    columns = min(columns, len(images))
    lines = [_wrap(text, 25) for text in captions]
    below = [_wrap(text, 25) for text in truths] or [[] for _ in images]
    tallest = max(len(a) + len(b) for a, b in zip(lines, below, strict=True))
    row_height = _TILE + 0.3 + 0.165 * tallest
    rows = math.ceil(len(images) / columns)
    width, height = columns * (_TILE + 0.25), rows * row_height
    figure = matplotlib.figure.Figure((width, height), dpi=110)
    for place, (image, said, true) in enumerate(zip(images, lines, below, strict=True)):
        left = (place % columns) * (_TILE + 0.25) + 0.1
        top = (place // columns) * row_height + 0.05
        bottom = 1 - (top + _TILE) / height
        tile = figure.add_axes((left / width, bottom, _TILE / width, _TILE / height))
        tile.imshow(image)
        tile.axis("off")
        text = {"fontsize": 9, "va": "top", "linespacing": 1.25}
        figure.text(left / width, bottom - 0.06 / height, "\n".join(said), color=INK, **text)
        lower = bottom - (0.08 + 0.165 * len(said)) / height
        figure.text(left / width, lower, "\n".join(true), color=GREY, **text)
    return _picture(figure)


def _wrap(text: str, width: int) -> list[str]:
    # A model that is not yet trained may say anything: no control characters, no mathematics.
    plain = "".join(c if c.isprintable() else "\ufffd" for c in text).replace("$", r"\$")
    return textwrap.wrap(plain, width) or [""]


def _picture(figure: matplotlib.figure.Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white")
    return Image.open(file)
