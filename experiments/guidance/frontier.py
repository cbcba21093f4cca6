"""Draws what guidance trades: agreement with the references against fit and specificity.

python -m experiments.guidance.frontier --workdir runs/guidance --out frontier.svg
"""

import argparse
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from big_mm.report.curves import GREY, INK

METRICS = {"clip_score": "CLIPScore", "self_r@1": "Caption to image R@1"}
# Folders of evaluated runs by what is drawn, and the colour.
LINES = {"guided": "#1f5fa8", "seeing": GREY, "with_language": "#b42318"}


def points(workdir: pathlib.Path, line: str) -> dict[str, dict[str, list[float]]]:
    """{evaluator: {metric: a value for each seed}} of `workdir`/LINE-SEED, the scales in order."""
    found: dict[str, dict[str, list[float]]] = {}
    for file in sorted(workdir.glob(f"{line}-*/artifacts/*.json")):
        metrics = json.loads(file.read_text())["metrics"]
        for metric in ("cider", *METRICS):
            found.setdefault(file.stem, {}).setdefault(metric, []).append(metrics[metric])
    return found


def draw(workdir: pathlib.Path) -> Figure:
    figure = Figure((8.4, 3.7), layout="constrained")
    for axes, (metric, name) in zip(figure.subplots(1, 2), METRICS.items(), strict=True):
        for line, colour in LINES.items():
            if not (found := points(workdir, line)):
                continue
            means = [[np.mean(at[key]) for at in found.values()] for key in ("cider", metric)]
            # Only scales of guidance lie on a curve.
            style = "o" if line == "with_language" else "o-"
            axes.plot(*means, style, ms=4, color=colour, label=line.replace("_", " "))
            for seed in range(min(len(at["cider"]) for at in found.values())):
                each = [[at[key][seed] for at in found.values()] for key in ("cider", metric)]
                axes.plot(*each, "o", ms=2.5, color=colour, alpha=0.4)
            for label, x, y in zip(found, *means, strict=True):
                text = re.sub(r"(\d)_(\d)", r"\1.\2", label.removeprefix("captioning"))
                text = (
                    text.removeprefix("_scale_").replace("_alpha_", "α ").replace("_beta_", ", β ")
                )
                text = text or "1"
                axes.annotate(text, (x, y), (4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="CIDEr", ylabel=name)
        axes.tick_params(colors=INK)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.guidance.frontier")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the ablation")
    parser.add_argument("--out", required=True, metavar="FILE", help="a picture")
    args = parser.parse_args(argv)
    if not points(args.workdir, "guided"):
        parser.error(f"no evaluated runs guided-SEED in {args.workdir}")
    draw(args.workdir).savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
