"""The evaluators of tasks on a trained model: what they give, and how many images a second.

    make quickstart
    python benchmarks/task_evaluators.py --checkpoint runs/quickstart --nlvr DIR/dev-*.tfrecord \
        --photos DIR/all-*.tfrecord --json tasks.json

The sets are made of new scenes of the embedded world (swapped colours, edits, completions, planted
skews); --nlvr adds real statements about pictures, --photos real photos in several data types. A
row's time holds everything: reading, preparing pictures, the model, the arithmetic.
"""

import argparse
import dataclasses
import glob
import io
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

import big_mm
from big_mm.data import scenes
from big_mm.data.contract import Decoding
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.data.scenes import language
from big_mm.evaluators import (
    VQA,
    AttributeShares,
    Captioning,
    CaptionSets,
    Choice,
    ComposedRetrieval,
    Evaluator,
    GroupGap,
    Pairs,
    PromptBias,
    Statements,
)
from big_mm.evaluators.answering import Generation, Ranking
from big_mm.evaluators.caption_figures import Fit, Lexicon
from big_mm.evaluators.caption_graph import GraphF1
from big_mm.evaluators.choice import Attributes, Counts, Options
from big_mm.evaluators.composed_benchmarks import Triplets
from big_mm.evaluators.composition import CaptionAndRewrite, PromptDirection, Sum
from big_mm.evaluators.data_types import PROMPTS, DataTypes
from big_mm.evaluators.scoring import Likelihood, Similarity
from big_mm.spec import UserError

SIZE = 48
WORLD = scenes.WORLDS["easy"]


@dataclasses.dataclass(frozen=True)
class Records:
    """Records in memory."""

    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def where(self, index: int) -> str:
        return f"record {index}"


def png(scene: scenes.Scene) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scenes.render(scene, SIZE).image).save(file, "PNG")
    return file.getvalue()


def phrase(kind: tuple[str, str]) -> str:
    return language.article(" ".join(kind))


def drawn(count: int, objects: int, kinds: int) -> list[scenes.Scene]:
    """New scenes of so many objects of so many kinds."""
    only = dataclasses.replace(
        WORLD,
        count_weights=(0.0,) * (objects - 1) + (1.0,),
        kind_weights=(0.0,) * (kinds - 1) + (1.0,),
    )
    return [scenes.sample("test_seen", 7, i, only).scene for i in range(count)]


def apart(scene: scenes.Scene) -> bool:
    """Two objects of different colours and shapes."""
    first, second = scene.objects
    return first.colour != second.colour and first.shape != second.shape


def two_objects(count: int) -> list[scenes.Scene]:
    return [scene for scene in drawn(2 * count, 2, 2) if apart(scene)][:count]


def swaps(count: int) -> Records:
    rows = []
    for i, scene in enumerate(two_objects(count)):
        (a, b), (c, d) = (item.kind for item in scene.objects)
        texts = [f"{phrase(x)} and {phrase(y)}" for x, y in (((a, b), (c, d)), ((c, b), (a, d)))]
        row = {"captions": texts[:1], "negatives": texts[1:], "key": f"s{i}"}
        rows.append(row | {"image": png(scene), "size": scene.objects[0].size})
    return Records(tuple(rows))


def pairs(count: int) -> Records:
    rows = []
    for i, scene in enumerate(two_objects(count)):
        for j, one in enumerate((scene, scenes.swap_colours(scene, 0, 1))):
            text = " and ".join(phrase(item.kind) for item in one.objects)
            rows.append(
                {"image": png(one), "captions": [text], "group": f"p{i}", "key": f"p{i}/{j}"}
            )
    return Records(tuple(rows))


def counted(count: int) -> Records:
    rows = []
    for i in range(count):
        number = 2 + i % 4
        scene = drawn(1 + i // 4, number, 1)[-1]
        colour, shape = scene.objects[0].kind
        text = f"{language.COUNT_WORDS[number - 1]} {colour} {language.plural(shape)}"
        rows.append({"image": png(scene), "captions": [text], "key": f"c{i}"})
    return Records(tuple(rows))


def associations(count: int) -> Records:
    rows = []
    for i, scene in enumerate(two_objects(count)):
        first, second = scene.objects
        row = {"prompt": f"a {{}} {first.shape}", "attribute": first.colour}
        row |= {"other_attribute": second.colour, "key": f"a{i}"}
        rows.append(row | {"image": png(scene)})
    return Records(tuple(rows))


def completions(count: int) -> Records:
    """ "a red" ... what? Ten people agree."""
    rows = []
    for i, scene in enumerate(drawn(count, 1, 1)):
        item = scene.objects[0]
        text = language.article(item.colour)
        row = {"question": text, "answers": [item.shape] * 10, "answer_type": "other"}
        rows.append(row | {"image": png(scene), "key": f"q{i}"})
    return Records(tuple(rows))


def described(count: int) -> Records:
    rows = []
    for i in range(count):
        sample = scenes.sample("test_seen", 0, i, WORLD)
        row = {"captions": sample.short, "prompt": sample.short[0], "key": f"d{i}"}
        row["group"] = f"{len(sample.scene.objects)} objects"
        rows.append(row | {"image": png(sample.scene)})
    return Records(tuple(rows))


def edited(count: int, folder: pathlib.Path) -> tuple[Records, str]:
    """Scenes and their edits as one gallery, and the queries' file."""
    rng, rows, queries = np.random.default_rng(0), [], []
    for i, scene in enumerate(two_objects(count)):
        edit = scenes.edit(rng, scene, ("recolour", "reshape"))
        rows += [{"image": png(s), "key": f"e{i}/{j}"} for j, s in enumerate((scene, edit.scene))]
        query = {"id": i, "reference": f"e{i}/0", "edit": edit.words, "targets": [f"e{i}/1"]}
        queries.append(query)
    path = folder / "edits.json"
    path.write_text(json.dumps(queries))
    return Records(tuple(rows)), str(path)


def follow(caption: str, edit: str) -> str:
    """The rewriter that knows how edits are worded: exchanges the name of the changed object."""
    words = edit.removeprefix("make the ").removeprefix("turn the ").split()
    old = " ".join(words[:2])
    new = f"{words[2]} {words[1]}" if len(words) == 3 else f"{words[0]} {words[-1]}"
    return caption.replace(old, new)


def things(text: str) -> list[str]:
    return [f"{group.colour} {group.shape}" for group in scenes.parse_caption(text).groups]


def evaluators(count: int, folder: pathlib.Path) -> dict[str, tuple[Evaluator, str]]:
    """Name -> evaluator and the metric to show."""
    swapped, gallery = swaps(count), edited(count, folder)
    captioned, asked = described(count), completions(count)
    edits = Triplets(gallery[1])
    rewriting = CaptionAndRewrite(follow)
    colours = tuple(f"a picture of {language.article(c)} shape" for c in scenes.COLOURS)
    made: dict[str, tuple[Evaluator, str]] = {
        "colour swaps, similarity": (Choice(swapped), "accuracy"),
        "colour swaps, likelihood": (Choice(swapped, scorer=Likelihood()), "accuracy"),
        "the same, worst group by size": (
            GroupGap(Choice(swapped, scorer=Likelihood()), "size"),
            "accuracy_worst",
        ),
        "pairs, similarity": (Pairs(pairs(count // 2)), "group"),
        "pairs, likelihood": (Pairs(pairs(count // 2), scorer=Likelihood()), "group"),
    }
    numbers = Counts(words=language.COUNT_WORDS[1:5])
    for name, scorer in (("similarity", Similarity()), ("likelihood", Likelihood())):
        made[f"counts, {name}"] = (Choice(counted(count), numbers, scorer), "accuracy")
        probe = Choice(associations(count), Attributes(scenes.COLOURS), scorer)
        made[f"association bias, {name}"] = (probe, "lured")
    for name, composition in {
        "image alone": Sum(0.0),
        "edit alone": Sum(1.0),
        "sum": Sum(),
        "rewritten caption": rewriting,
        "prompt direction": PromptDirection(mapper=rewriting),
    }.items():
        made[f"edits, {name}"] = (ComposedRetrieval(gallery[0], edits, composition), "r@1")
    answer = {"prompt": "{} "}
    made |= {
        "completions, ranked": (
            VQA(asked, answerer=Ranking(scenes.SHAPES), **answer),
            "accuracy",
        ),
        "completions, generated": (VQA(asked, answerer=Generation(), **answer), "accuracy"),
        "CLIPScore of its captions": (Captioning(captioned, figures=(Fit(),)), "clip_score"),
        "self-retrieval in bags of 10": (
            Captioning(captioned, figures=(Fit(bag=10), Lexicon())),
            "self_bag_r@1",
        ),
        "CAPTURE": (Captioning(captioned, scorer=GraphF1()), "capture"),
        "sets of 5 captions": (
            CaptionSets(captioned, Decoding(temperature=1.0, top_p=0.9)),
            "self_cider",
        ),
        "objects nobody asked for": (PromptBias(captioned, things), "hallucination"),
        "colours, from equal shares": (AttributeShares(captioned, colours), "deviation"),
    }
    return made


def real(nlvr: str, photos: str) -> dict[str, tuple[Evaluator, str]]:
    """On real data; a model of scenes knows nothing of either."""
    made: dict[str, tuple[Evaluator, str]] = {}
    if nlvr:
        schema = Schema(captions=None, extra=("statement", "answer", "group"))
        source = TFRecordSource(tuple(sorted(glob.glob(nlvr))), schema)
        for name, answerer in (("ranked", Ranking()), ("generated", Generation())):
            evaluator = Statements(source, answerer=answerer, prompt="{} ", consistency="statement")
            made[f"NLVR statements, {name}"] = (evaluator, "accuracy")
    if photos:
        schema = Schema(captions=None)
        source = DataTypes(TFRecordSource(tuple(sorted(glob.glob(photos))), schema))
        made["data types of photos"] = (Choice(source, Options(PROMPTS)), "informedness")
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=400, help="scenes of a set (400)")
    parser.add_argument("--nlvr", default="", metavar="GLOB", help="shards of statements")
    parser.add_argument("--photos", default="", metavar="GLOB", help="shards of photos")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    predictor = dataclasses.replace(big_mm.load(arguments.checkpoint), progress=False)
    rows = []
    print(f"{'':32} {'metric':16} {'value':>7} {'chance':>7} {'images':>7} {'images/s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        suite = evaluators(arguments.count, pathlib.Path(folder))
        for name, (evaluator, metric) in (suite | real(arguments.nlvr, arguments.photos)).items():
            try:
                evaluator.run(predictor)  # compiles
                start = time.perf_counter()
                values = evaluator.run(predictor)
            except UserError as error:
                print(f"{name:32} {error}", file=sys.stderr)
                continue
            seconds = time.perf_counter() - start
            images = int(values.get("images", values.get("examples", 0)))
            chance = values.get(f"{metric}_chance", float("nan"))
            rate = images / seconds
            shown = f"{values[metric]:7.3f} {chance:7.3f} {images:7d} {rate:9.0f}"
            print(f"{name:32} {metric:16} {shown}", flush=True)
            rows.append({"name": name, "seconds": seconds, "images": images, **values})
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
