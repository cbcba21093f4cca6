"""ALIP on scenes whose own captions are often of other images.

    python -m big_mm.ablate --config experiments/alip/config.py --workdir runs/alip

`alip` weights rows and pairs by their agreement; `unweighted` trains on the same two texts without.
"""

import ml_collections

from big_mm.data.noise import Mismatched
from big_mm.data.transforms import ChooseCaption, Tokenize
from big_mm.losses.contrastive import Softmax
from big_mm.similarity import Cosine
from big_mm.spec import choose, spec
from experiments import base
from experiments.alip import alip

VARIANTS = ("alip", "unweighted")


def get_config(arg: str = "alip") -> ml_collections.ConfigDict:
    choose("arm", arg, VARIANTS)
    config = base.clip()
    # The raw caption names each object's colour and shape, and is that of another image in 40 % of
    # the records. The synthetic one is always right, and says less.
    source = base.described(("colours",), captions="caption_short")
    source.out = "synthetic"
    config.data.sources = (spec(Mismatched, source=source, share=0.4),)
    decode, choose_raw, tokenize_raw = config.data.transforms
    config.data.transforms = (
        decode,
        choose_raw,
        spec(ChooseCaption, key="synthetic", out="synthetic"),
        tokenize_raw,
        spec(Tokenize, key="synthetic", suffix="_synthetic"),
    )
    term = alip.Adaptive if arg == "alip" else Softmax
    config.objective = spec(
        alip.Alip,
        model=config.objective.model,
        losses={
            "raw": spec(term, positives="text_id"),
            "synthetic": spec(
                term,
                similarity=spec(Cosine, text=("text_embedding_synthetic",)),
                positives="text_id_synthetic",
            ),
        },
    )
    config.evaluators = {"retrieval": config.evaluators["retrieval"]}
    config.steps, config.batch_size = 350, 64
    return config
