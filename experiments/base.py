"""The small runs that experiments vary, and the models that several begin with or ask.

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.train --config experiments/base.py:referee --workdir runs/referee
    python -m big_mm.train --config experiments/base.py:generic --workdir runs/generic

All read runs/scenes, which `make scenes` writes.
"""

import ml_collections

from big_mm.data import scenes
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.data.transforms import ChooseCaption
from big_mm.losses import contrastive
from big_mm.models import variants
from big_mm.models.captioner import Captioner
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.objectives.judge import Judge
from big_mm.spec import CLASS, choose, spec
from big_mm.training.init_from import InitFrom
from big_mm.training.optimizer import AdamW
from big_mm.training.schedules import WarmupCosine
from configs import quickstart

JUDGE, REFEREE, GENERIC = "runs/judge", "runs/referee", "runs/generic"
# Of ten captions six say "two shapes and a shape", three name the colours, one colours and shapes.
GENERIC_DETAILS = ("groups",) * 6 + ("colours",) * 3 + ("kinds",)


def coca(model: type[CoCa] = CoCa) -> ml_collections.ConfigDict:
    """The quickstart's run, of 700 steps."""
    config = quickstart.get_config()
    fields = {name: value for name, value in config.objective.model.items() if name != CLASS}
    config.objective.model = spec(model, **fields)
    return config


def clip(model: type[DualEncoder] = DualEncoder) -> ml_collections.ConfigDict:
    """The towers of the same model without its decoder; zero-shot classification and retrieval."""
    config = coca()
    towers = config.objective.model
    towers.image.pool = "gap"
    config.objective.model = spec(
        model, image=towers.image, text=towers.text, embed_dim=towers.text.blocks.width
    )
    config.objective.losses = {"contrastive": spec(contrastive.Softmax, positives="text_id")}
    config.objective.weights = {}
    kept = ("zero_shot", "retrieval")
    config.evaluators = {k: v for k, v in config.evaluators.items() if k.startswith(kept)}
    config.steps = 500
    return config


def judge() -> ml_collections.ConfigDict:
    """A CLIP that has also met captions which say little: it scores other models' captions."""
    config = clip()
    config.data.sources = (described(("number", "shapes", "colours"), captions="caption_short"),)
    decode, _, tokenize = config.data.transforms
    weights = (0.1, 0.1, 0.1, 1.0, 1.0, 1.0)
    config.data.transforms = (decode, spec(ChooseCaption, weights=weights), tokenize)
    config.steps = 400
    return config


def captioner(model: type[Captioner] = Captioner) -> ml_collections.ConfigDict:
    """A captioner of the same size on the judge's image tower, which stays; no evaluators."""
    config = coca()
    size = {"image_size": quickstart.IMAGE_SIZE, "max_len": quickstart.MAX_LEN}
    size |= {"vocab_size": quickstart.VOCABULARY, "depth": 2, "blocks": {"unroll": 4}}
    text = variants.captioner("tiny/12", **size).text
    config.objective.model = spec(model, image=config.objective.model.image, text=text)
    config.objective.losses = {"captioning": config.objective.losses.captioning}
    config.objective.weights = {}
    config.init_from = spec(InitFrom, path=JUDGE, rules=(("image/.*", r"\g<0>"), (".*", None)))
    config.optimizer.frozen = (("image/.*", True),)
    config.evaluators = {}
    return config


def referee() -> ml_collections.ConfigDict:
    """Another judge: where the first one rewards, it measures."""
    config = judge()
    config.seed = 1
    config.evaluators = {}
    return config


def generic() -> ml_collections.ConfigDict:
    """A captioner that has learnt from captions which mostly say little, and so says little."""
    config = captioner()
    config.data.sources = (described(GENERIC_DETAILS),)
    config.steps, config.batch_size = 200, 64
    return config


def finetuned() -> ml_collections.ConfigDict:
    """100 further steps of the generic captioner, at a lower rate, on the same data."""
    config = generic()
    config.init_from = spec(InitFrom, path=GENERIC)
    schedule = spec(WarmupCosine, warmup=5, final=0.1)
    config.optimizer = spec(
        AdamW, learning_rate=5e-4, schedule=schedule, frozen=config.optimizer.frozen
    )
    config.steps = 100
    return config


def frozen(path: str, run: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The model that `run` has trained in `path`, as a judge."""
    return spec(Judge, model=run.objective.model, init_from=spec(InitFrom, path=path))


def described(
    details: tuple[str, ...], split: str = "train", **schema: object
) -> ml_collections.ConfigDict:
    """The scenes of a split with plain captions of these details before those of the schema."""
    schema = {"captions": None, "extra": ("scene",), **schema}
    source = spec(
        TFRecordSource,
        shards=f"{quickstart.DATA}/{split}-*.tfrecord",
        schema=spec(Schema, **schema),
    )
    return spec(scenes.Described, source=source, details=details)


ARMS = {
    "coca": coca,
    "clip": clip,
    "judge": judge,
    "referee": referee,
    "generic": generic,
}
VARIANTS = tuple(ARMS)


def get_config(arg: str = "coca") -> ml_collections.ConfigDict:
    choose("arm", arg, VARIANTS)
    return ARMS[arg]()
