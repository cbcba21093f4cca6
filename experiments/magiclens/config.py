"""MagicLens: images found by an image and an instruction (arXiv:2403.19651), on edited scenes.

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.ablate --config experiments/magiclens/config.py --workdir runs/magiclens \\
        --metrics composed/r@1 composed/map@5 composed/reference@1
    python -m big_mm.evaluate --config experiments/magiclens/config.py:judge \\
        --checkpoint runs/judge --workdir runs/magiclens/judge

All arms begin with the judge's towers and learn from the same triplets. `no_negatives` leaves out
the query images as negatives; `sum` adds the two embeddings instead of attending to them, `image`
and `text` are one of them alone. `judge` is for the judge itself, without any of this training,
which is asked by the sum of its embeddings and by either alone.
"""

import ml_collections

from big_mm.data import scenes
from big_mm.data.transforms import Decode
from big_mm.evaluators import ComposedRetrieval, composition
from big_mm.evaluators.composed_benchmarks import SceneEdits
from big_mm.losses.contrastive import Softmax
from big_mm.similarity import Cosine
from big_mm.spec import choose, spec
from big_mm.training.init_from import InitFrom
from configs import quickstart
from experiments import base
from experiments.magiclens.model import Attention, MagicLens, Sum

VARIANTS = ("magiclens", "no_negatives", "sum", "image", "text")
FUSIONS = {"sum": spec(Sum), "image": spec(Sum, text=0.0), "text": spec(Sum, image=0.0)}


def get_config(arg: str = "magiclens") -> ml_collections.ConfigDict:
    choose("arm", arg, (*VARIANTS, "judge"))
    if arg == "judge":
        config = base.judge()
        weights = {"sum": 0.5, "image": 0.0, "text": 1.0}
        config.evaluators = {
            name: composed(spec(composition.Sum, text_weight=weight))
            for name, weight in weights.items()
        }
        return config
    config = base.clip()
    model = config.objective.model
    towers = {name: model[name] for name in ("image", "text", "embed_dim")}
    config.objective.model = spec(MagicLens, **towers, fusion=FUSIONS.get(arg, spec(Attention)))
    config.init_from = spec(InitFrom, path=base.JUDGE)
    similarity = spec(Cosine, image=("query_embedding",), text=("target_embedding",))
    negatives = () if arg == "no_negatives" else ("image_embedding",)
    config.objective.losses.contrastive = spec(
        Softmax, similarity=similarity, negatives=negatives, directions="image_to_text"
    )
    config.data.sources = (spec(scenes.Edited, source=described("train")),)
    decode, *others = config.data.transforms
    config.data.transforms = (decode, spec(Decode, key="target_image"), *others)
    config.evaluators = {"composed": composed(spec(composition.Fused))}
    config.steps, config.batch_size = 200, 64
    return config


def composed(how: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    gallery = spec(scenes.Variations, source=described("test_seen"), count=3, limit=200)
    benchmark = spec(SceneEdits, source=gallery)
    return spec(ComposedRetrieval, source=gallery, benchmark=benchmark, composition=how)


def described(split: str) -> ml_collections.ConfigDict:
    return quickstart.source(quickstart.DATA, split, extra=("scene",))
