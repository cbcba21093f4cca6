"""Accuracy of a linear probe as its training contexts move away from the test context.

    make quickstart
    python benchmarks/context_shift.py --checkpoint runs/quickstart --json shift.json

MetaShift's experiment (arXiv:2202.06523, section 4.1) on scenes of the embedded world: a circle or
a star stands beside two other shapes, neighbours in a row of six. The test is on the first of the
row; the circles of training stand beside the next two, the stars beside two that are farther and
farther away. Whatever the probe learns of what stands beside speaks for a circle then.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

import big_mm
from big_mm.data import scenes
from big_mm.evaluators import GroupGap, LinearProbe
from big_mm.evaluators.contexts import ContextSets, InContext
from big_mm.evaluators.contexts import Scenes as Graphs

ROW = ("square", "triangle", "heart", "cross", "ring", "moon")
CLASSES = ("circle", "star")


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """Scenes with their graphs, in memory."""

    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"scene {index}"


def drawn(count: int, seed: int, size: int) -> Scenes:
    """`count` scenes, with every class beside every pair of neighbours equally often."""
    rng, rows = np.random.default_rng(seed), []
    three = {"count_weights": (0.0, 0.0, 1.0), "kind_weights": (0.0, 0.0, 1.0)}
    world = dataclasses.replace(scenes.WORLDS["easy"], **three)
    for i in range(count):
        place = i // 2 % (len(ROW) - 1)
        shapes = (CLASSES[i % 2], *ROW[place : place + 2])
        colours = rng.choice(scenes.COLOURS, len(shapes))
        scene = world.sample(rng, [(str(c), s) for c, s in zip(colours, shapes, strict=True)])
        file = io.BytesIO()
        Image.fromarray(scenes.render(scene, size).image).save(file, "PNG")
        rows.append({"image": file.getvalue(), "key": f"s{i}", "scene": scene.to_json()})
    return Scenes(tuple(rows))


def shifts(contexts: ContextSets) -> list[tuple[str, str, float]]:
    """Pairs of contexts of the stars and their mean distance from the one of the test."""
    far = contexts.distances(f"star({ROW[0]})")
    pairs = [(f"star({a})", f"star({b})") for a, b in zip(ROW[1:], ROW[2:], strict=False)]
    return [(a, b, (far[a] + far[b]) / 2) for a, b in pairs]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=1000, help="scenes of a world (1000)")
    parser.add_argument("--worlds", type=int, default=4, help="to average over (4)")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    predictor = dataclasses.replace(big_mm.load(arguments.checkpoint), progress=False)
    found: dict[int, list[dict[str, float]]] = {}
    for seed in range(arguments.worlds):
        images = drawn(arguments.count, seed, predictor.contract.image_size)
        contexts = ContextSets(Graphs(images, background=""), CLASSES, fewest=6, dimensions=1)
        test = InContext(images, contexts, tuple(f"{name}({ROW[0]})" for name in CLASSES))
        circles = tuple(f"circle({name})" for name in ROW[1:3])
        for step, (first, second, distance) in enumerate(shifts(contexts)):
            train = InContext(images, contexts, (*circles, first, second), without=test.chosen)
            values = GroupGap(LinearProbe(train, test), "context").run(predictor)
            row = {"distance": distance, "accuracy": values["accuracy"]}
            row |= {"worst": values["accuracy_worst"], "stars": len(train)}
            found.setdefault(step, []).append(row)
    print(f"{'stars beside':20} {'distance':>8} {'accuracy':>8} {'worst':>8}")
    rows = []
    for step, several in found.items():
        row = {name: float(np.mean([one[name] for one in several])) for name in several[0]}
        name = " and ".join(ROW[step + 1 : step + 3])
        rows.append({"name": name, **row})
        print(f"{name:20} {row['distance']:8.2f} {row['accuracy']:8.3f} {row['worst']:8.3f}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
