"""Composed retrieval beside the benchmarks' public evaluation code, on the same embeddings.

    git clone https://github.com/miccunifi/SEARLE
    python benchmarks/composed_retrieval.py --searle SEARLE/src/validate.py --peer-python PYTHON

PYTHON is an interpreter with torch. Made-up queries over random unit vectors: 500 of CIRR's kind in
a gallery of 2,000, 300 of CIRCO's in 3,000 with 1 to 22 right images, 200 of each category of
FashionIQ. SEARLE's functions (arXiv:2303.15247, by CIRCO's authors) get the queries' embeddings and
the gallery; only the loading of models and data sets around them is replaced.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from big_mm.data.contract import Contract
from big_mm.evaluators import ComposedRetrieval
from big_mm.evaluators.composed_benchmarks import Circo, Cirr, FashionIq
from big_mm.evaluators.composition import unit
from big_mm.predictor import Predictor

IMAGES, CIRR_IMAGES, WIDTH, NOISE = 3000, 2000, 64, 4.5
CATEGORIES = {"dress": (0, 900), "shirt": (900, 2100), "toptee": (2100, 3000)}


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Records whose picture says their number."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.zeros((1, 1, 3), np.uint8)
        image[:] = (index % 256, index // 256, 0)
        return {"image": Image.fromarray(image), "key": f"n{index}"}

    def where(self, index: int) -> str:
        return f"record {index}"


class Given(Predictor):
    """A predictor of given image embeddings."""

    def __init__(self, gallery: np.ndarray):
        object.__setattr__(self, "contract", Contract(image_size=1))
        object.__setattr__(self, "gallery", gallery)

    def encode_image(self, images: Any) -> np.ndarray:
        numbers = images[:, 0, 0].astype(int)
        return self.gallery[numbers[:, 0] + 256 * numbers[:, 1]]


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """A composition of given query embeddings."""

    embeddings: np.ndarray

    sees = False

    def __call__(self, predictor: Predictor, references: Any) -> np.ndarray:
        return unit(self.embeddings)

    def protocol(self) -> dict[str, Any]:
        return {"query": "given"}


def sets(rng: np.random.Generator) -> dict[str, Any]:
    """The annotations in the benchmarks' own forms."""
    cirr = []
    for i in range(500):
        members = [f"n{m}" for m in rng.permutation(CIRR_IMAGES)[:6]]
        row = {"pairid": i, "reference": members[0], "target_hard": members[1], "caption": "x"}
        cirr.append(row | {"img_set": {"members": members}})
    circo = []
    for i in range(300):
        chosen = rng.permutation(IMAGES)[: rng.integers(2, 24)].tolist()
        row = {"id": i, "reference_img_id": chosen[0], "target_img_id": chosen[1]}
        circo.append(row | {"gt_img_ids": chosen[1:], "relative_caption": "x"})
    fashion = {}
    for category, (first, last) in CATEGORIES.items():
        pairs = [first + rng.permutation(last - first)[:2] for _ in range(200)]
        fashion[category] = [
            {"target": f"n{a}", "candidate": f"n{b}", "captions": ["x", "y"]} for a, b in pairs
        ]
    return {"cirr": cirr, "circo": circo, "fashion": fashion}


def targets(made: dict[str, Any]) -> dict[str, list[int]]:
    """The number of each query's target."""
    found = {
        "cirr": [int(row["target_hard"][1:]) for row in made["cirr"]],
        "circo": [row["target_img_id"] for row in made["circo"]],
    }
    return found | {
        name: [int(row["target"][1:]) for row in rows] for name, rows in made["fashion"].items()
    }


def ours(
    made: dict[str, Any], arrays: dict[str, np.ndarray], folder: pathlib.Path
) -> dict[str, float]:
    def file(name: str, content: Any) -> str:
        (folder / name).write_text(json.dumps(content))
        return str(folder / name)

    split = {f"n{i}": "" for i in range(CIRR_IMAGES)}
    captions, splits = {}, {}
    for name, (first, last) in CATEGORIES.items():
        captions[name] = file(f"cap.{name}.json", made["fashion"][name])
        splits[name] = file(f"split.{name}.json", [f"n{i}" for i in range(first, last)])
    benchmarks = {
        "cirr": Cirr(file("cap.json", made["cirr"]), file("split.json", split)),
        "circo": Circo(file("circo.json", made["circo"]), "n{}"),
        "fashion": FashionIq(captions, splits),
    }
    queries = arrays | {"fashion": np.concatenate([arrays[name] for name in CATEGORIES])}
    found = {}
    for name, benchmark in benchmarks.items():
        evaluator = ComposedRetrieval(Numbered(), benchmark, Queries(queries[name]))
        values = evaluator.run(Given(arrays["gallery"]))
        found |= {f"{name} {metric}": 100 * value for metric, value in values.items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searle", required=True, metavar="FILE", help="SEARLE/src/validate.py")
    parser.add_argument("--peer-python", required=True, metavar="PYTHON")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    made = sets(rng)
    gallery = unit(rng.normal(size=(IMAGES, WIDTH)))
    arrays = {"gallery": gallery.astype(np.float32)}
    for name, numbers in targets(made).items():
        noise = unit(rng.normal(size=(len(numbers), WIDTH)))
        arrays[name] = (gallery[numbers] + NOISE * noise).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        np.savez(folder / "arrays.npz", **arrays)
        content = made | {"cirr_images": CIRR_IMAGES, "categories": CATEGORIES}
        (folder / "sets.json").write_text(json.dumps(content))
        peer = pathlib.Path(__file__).with_name("composed_retrieval_searle.py")
        command = [arguments.peer_python, peer, arguments.searle, folder]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        theirs = json.loads(answer.stdout.splitlines()[-1])
        found = ours(made, arrays, folder)
    print(f"{'':24} {'big_mm':>9} {'SEARLE':>9} {'difference':>10}")
    for name, value in theirs.items():
        print(f"{name:24} {found[name]:9.4f} {value:9.4f} {abs(found[name] - value):10.1e}")
    print(f"largest difference: {max(abs(found[n] - v) for n, v in theirs.items()):.1e} points")
    return 0


if __name__ == "__main__":
    sys.exit(main())
