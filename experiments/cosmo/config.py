"""COSMO: contrastive and captioning losses on interleaved documents (arXiv:2401.00849).

    make scenes
    python -m big_mm.train --config experiments/cosmo/config.py:language --workdir runs/cosmo_lm
    python -m big_mm.ablate --config experiments/cosmo/config.py --workdir runs/cosmo

`cosmo` has both losses, `lm` that of the next token alone; `pretrained` is `cosmo` from a language
model on, which is `lm` with its gates kept closed. A document has three scenes, each followed by
its caption.
"""

import ml_collections

from big_mm.data.documents import Documents, Interleave
from big_mm.data.pipeline import Pipeline
from big_mm.evaluators import InContext
from big_mm.losses import captioning
from big_mm.objectives.base import Weighted
from big_mm.spec import choose, spec
from big_mm.training.init_from import InitFrom
from configs import quickstart
from experiments import base
from experiments.cosmo.model import Cosmo
from experiments.cosmo.pairs import PairSoftmax

VARIANTS = ("cosmo", "lm", "pretrained")
LANGUAGE = "runs/cosmo_lm"
IMAGES, MAX_LEN = 3, 48


def get_config(arg: str = "cosmo") -> ml_collections.ConfigDict:
    choose("variant", arg, (*VARIANTS, "language"))
    config = base.coca(Cosmo)
    model = config.objective.model
    model.decoder.cross_gate = True
    model.text.max_len = config.contract.max_len = MAX_LEN
    for blocks in (model.image.blocks, model.text.blocks, model.decoder):
        blocks.unroll = 1  # compiles sooner, for a run as short as this
    losses = {
        "captioning": spec(captioning.CrossEntropy),
        "contrastive": spec(PairSoftmax, positives="pair_id"),
    }
    if arg in ("lm", "language"):
        del losses["contrastive"]
    weights = {"captioning": 2.0}
    config.objective = spec(Weighted, model=model, losses=losses, weights=weights)
    documents = spec(Documents, source=config.data.sources[0], images=IMAGES)
    transforms = (spec(Interleave, pair_len=quickstart.MAX_LEN),)
    config.data = spec(Pipeline, sources=(documents,), transforms=transforms, num_threads=1)
    test = quickstart.source(quickstart.DATA, "test_seen")
    in_context = spec(InContext, source=spec(Documents, source=test, images=IMAGES), limit=300)
    config.evaluators = {"retrieval": config.evaluators.retrieval, "in_context": in_context}
    if arg == "language":
        config.optimizer.frozen = ((r"decoder/layers/gate", True),)
        config.evaluators = {}
    elif arg == "pretrained":
        rules = ((r"(text|decoder|norm|caption_head)/.*", r"\g<0>"), (".*", None))
        config.init_from = spec(InitFrom, path=LANGUAGE, rules=rules)
    config.steps, config.batch_size = 250, 32
    return config
