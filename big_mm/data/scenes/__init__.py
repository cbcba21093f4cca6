"""The embedded world: a seeded generator of rendered scenes with exact ground truth.

    python -m big_mm.data.scenes --out DIR --splits train=20000 --image_size 96 --num_workers 2

world.py says what a scene is, sampling.py draws one, rendering.py paints it, language.py describes
it, parsing.py judges descriptions, edits.py changes it, splits.py holds combinations out, writer.py
writes records, described.py adds captions of chosen detail to those that are read.
"""

from big_mm.data.scenes.described import Described
from big_mm.data.scenes.edited import Edited, Variations
from big_mm.data.scenes.edits import Edit, edit, swap_colours
from big_mm.data.scenes.language import CLASS_NAMES, DETAILS, PROMPTS, Grammar, describe
from big_mm.data.scenes.parsing import Claims, check_caption, parse_caption
from big_mm.data.scenes.rendering import Rendering, render
from big_mm.data.scenes.sampling import WORLDS, World
from big_mm.data.scenes.source import SceneSource
from big_mm.data.scenes.splits import SEEN_KINDS, SPLITS, UNSEEN_KINDS, Sample, sample
from big_mm.data.scenes.world import COLOURS, SHAPES, Object, Scene, class_index, class_kind
from big_mm.data.scenes.writer import features, write

__all__ = [
    "CLASS_NAMES",
    "COLOURS",
    "DETAILS",
    "PROMPTS",
    "SEEN_KINDS",
    "SHAPES",
    "SPLITS",
    "UNSEEN_KINDS",
    "WORLDS",
    "Claims",
    "Described",
    "Edit",
    "Edited",
    "Grammar",
    "Object",
    "Rendering",
    "Sample",
    "Scene",
    "SceneSource",
    "Variations",
    "World",
    "check_caption",
    "class_index",
    "class_kind",
    "describe",
    "edit",
    "features",
    "parse_caption",
    "render",
    "sample",
    "swap_colours",
    "write",
]
