"""Guidance of captions on scenes that most captions describe without saying anything specific.

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.ablate --config experiments/guidance/config.py --workdir runs/guidance

`guided` is blind in training for half of its images; `seeing` never is. Both are decoded at several
scales of guidance, of which 1 is plain greedy decoding. With a language model:

    python -m big_mm.train --config experiments/guidance/config.py:language --workdir runs/language
    python -m big_mm.evaluate --config experiments/guidance/config.py:with_language \\
        --checkpoint runs/guidance/guided-0 --workdir runs/guidance/with_language-0
"""

import ml_collections

from big_mm.data.contract import Decoding
from big_mm.evaluators import Altered, Captioning
from big_mm.evaluators.caption_figures import Fit
from big_mm.spec import choose, spec
from experiments import base
from experiments.guidance import guidance

VARIANTS = ("guided", "seeing")
BLIND = {"guided": 0.5, "seeing": 0.0, "language": 1.0, "with_language": 0.5}
SCALES = (1.0, 1.5, 2.0, 3.0)
EXPONENTS = ((1.0, 0.5), (1.0, 1.0), (2.0, 1.0))


def get_config(arg: str = "guided") -> ml_collections.ConfigDict:
    choose("arm", arg, BLIND)
    config = base.captioner(guidance.BlindableCaptioner)
    config.objective.model.blind = BLIND[arg]
    # The language model has read other texts than the captioner: specific ones.
    details = ("kinds",) if arg == "language" else base.GENERIC_DETAILS
    config.data.sources = (base.described(details),)
    if arg == "with_language":
        for alpha, beta in EXPONENTS:
            alter = spec(
                guidance.WithLanguageModel, checkpoint="runs/language", alpha=alpha, beta=beta
            )
            name = f"captioning_alpha_{alpha:g}_beta_{beta:g}".replace(".", "_")
            config.evaluators[name] = spec(Altered, evaluator=captioning(1.0), alter=alter)
    elif arg != "language":
        for scale in SCALES:
            name = "captioning" if scale == 1 else f"captioning_scale_{scale:g}".replace(".", "_")
            config.evaluators[name] = captioning(scale)
    config.steps, config.batch_size = 200, 64
    return config


def captioning(scale: float) -> ml_collections.ConfigDict:
    return spec(
        Captioning,
        source=base.described(base.GENERIC_DETAILS, "retrieval_seen"),
        decoding=spec(Decoding, guidance=scale),
        figures=(spec(Fit, checkpoint=base.JUDGE, prefix=""),),
        limit=300,
    )
