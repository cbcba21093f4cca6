"""LaCLIP: CLIP with language rewrites, on scenes whose own captions are all in one phrasing.

    python -m big_mm.ablate --config experiments/laclip/config.py --workdir runs/laclip

`laclip` draws the original caption or one of its rewrites, all alike; `clip` has the original only.
Both are scored by captions in phrasings that neither has met.
"""

import ml_collections

from big_mm.data.transforms import ChooseCaption
from big_mm.spec import choose, spec
from experiments import base

VARIANTS = ("laclip", "clip")


def get_config(arg: str = "laclip") -> ml_collections.ConfigDict:
    choose("arm", arg, VARIANTS)
    config = base.clip()
    # Two red circles and a blue star; then up to three paraphrases of it.
    config.data.sources = (base.described(("kinds",), captions="caption_short"),)
    decode, _, tokenize = config.data.transforms
    weights = None if arg == "laclip" else (1.0,)
    config.data.transforms = (decode, spec(ChooseCaption, weights=weights), tokenize)
    retrieval, zero_shot = (config.evaluators[name] for name in ("retrieval", "zero_shot"))
    retrieval.source.schema.captions = "caption_held_out"
    retrieval.captions_per_image = None
    config.evaluators = {"retrieval": retrieval, "zero_shot": zero_shot}
    config.steps, config.batch_size = 250, 64
    return config
