"""Arms of an ablation as a picture: each seed a dot, their mean a bar."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.figure
import matplotlib.ticker

from big_mm.report.curves import BLUE, GREY, STYLE

_COLUMNS = 3


def svg(metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A panel for each metric.

    Args:
      metrics: {title: {arm: a value for each seed}}, the method before what it is compared with.
    """
    arms = list(next(iter(metrics.values())))
    columns = min(_COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    with matplotlib.rc_context(STYLE):
        size = (1.2 + 2.6 * columns, rows * (0.8 + 0.26 * len(arms)))
        figure = matplotlib.figure.Figure(size, layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, (title, values) in zip(grid, metrics.items(), strict=False):
            for place, (arm, found) in enumerate(values.items()):
                colour = BLUE if arm == arms[0] else GREY
                axes.plot(found, [place] * len(found), "o", ms=5, mew=0, color=colour, alpha=0.5)
                axes.plot(sum(found) / len(found), place, "|", ms=13, mew=2, color=colour)
            axes.set_title(title, fontsize=9, loc="left")
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
            axes.grid(axis="x", color="#eceff3", linewidth=0.8)
            axes.set_axisbelow(True)
        for axes in grid[len(metrics) :]:
            axes.remove()
        grid[0].set_yticks(range(len(arms)), arms)
        grid[0].set_ylim(len(arms) - 0.5, -0.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
