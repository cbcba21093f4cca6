"""ALBEF: align before fuse, with momentum distillation (arXiv:2107.07651), on noisy captions.

    make quickstart
    python -m big_mm.ablate --config experiments/albef/config.py --workdir runs/albef

`albef` is all of it; `no_distillation` has alpha 0; `no_itc` has no contrastive loss, and so random
negatives for matching. Three captions in ten are another picture's. The image tower begins as the
quickstart's, as the paper's begins as DeiT.
"""

import ml_collections

from big_mm.data import scenes
from big_mm.data.noise import Mismatched
from big_mm.evaluators import Choice, Retrieval
from big_mm.evaluators.choice import FirstWord
from big_mm.evaluators.retrieval import Rerank
from big_mm.evaluators.scoring import Matching
from big_mm.losses.masked import MaskedTokens
from big_mm.losses.matching import Matching as MatchingLoss
from big_mm.losses.momentum import MomentumContrast
from big_mm.models.layers import Transformer
from big_mm.spec import choose, spec
from big_mm.training.init_from import InitFrom
from configs import quickstart
from experiments import base
from experiments.albef.model import ALBEF
from experiments.albef.objective import AlignBeforeFuse

VARIANTS = ("albef", "no_distillation", "no_itc")
GALLERY = 150


def get_config(arg: str = "albef") -> ml_collections.ConfigDict:
    choose("variant", arg, VARIANTS)
    config = base.clip(ALBEF)
    config.steps, config.batch_size = 400, 64
    config.data.sources = (spec(Mismatched, source=config.data.sources[0], share=0.3),)
    model = config.objective.model
    for blocks in (model.image.blocks, model.text.blocks):
        blocks.unroll = 1  # compiles sooner, for a run as short as this
    model.text.update(causal=False, pool="first")
    sizes = {"width": 64, "heads": 4, "mlp_dim": 256}
    model.text.blocks.update(sizes)
    model.fusion = spec(Transformer, **sizes, depth=2, cross_attention=True)
    losses = {
        "contrastive": spec(MomentumContrast),
        "matching": spec(MatchingLoss),
        "words": spec(MaskedTokens),
    }
    if arg == "no_itc":
        del losses["contrastive"]
    config.objective = spec(
        AlignBeforeFuse,
        model=model,
        losses=losses,
        momentum=0.97,
        queue_size=512,
        alpha=0.0 if arg == "no_distillation" else 0.4,
        ramp_steps=100,
        mask_share=0.25,
        negatives="random" if arg == "no_itc" else "hard",
    )
    rules = ((r"image/.*", r"\g<0>"), (r".*", None))
    config.init_from = spec(InitFrom, path="runs/quickstart", rules=rules)
    gallery = quickstart.source(quickstart.DATA, "retrieval_seen")
    pairs = {"source": gallery, "captions_per_image": 1, "limit": GALLERY}
    config.evaluators = {
        "retrieval": spec(Retrieval, source=gallery, captions_per_image=1),
        "matching": spec(
            Retrieval, **pairs, rerank=spec(Rerank, depth=GALLERY, scorer=spec(Matching))
        ),
        "colours": spec(
            Choice,
            source=quickstart.source(quickstart.DATA, "test_seen"),
            candidates=spec(FirstWord, words=scenes.COLOURS),
            scorer=spec(Matching),
        ),
    }
    return config
