"""MaPLe: prompts in the first layers of both towers, coupled (arXiv:2210.03117), against CoOp.

    make scenes
    python -m big_mm.train --config experiments/few_shot.py --workdir runs/few_shot/clip
    python -m big_mm.ablate --config experiments/maple/config.py --workdir runs/maple

Both learn from 16 examples of each of 26 classes and are asked about these and about 26 others.
"""

import ml_collections

from big_mm.evaluators import BaseToNovel
from big_mm.spec import choose, spec
from experiments import few_shot

VARIANTS = {"maple": {"depth": 2, "image_prompts": True}, "coop": {}}


def get_config(arg: str = "maple") -> ml_collections.ConfigDict:
    choose("variant", arg, VARIANTS)
    config = few_shot.task(**VARIANTS[arg])
    base, novel = (few_shot.zero_shot(group) for group in (few_shot.BASE, few_shot.NOVEL))
    config.evaluators = {"base_to_novel": spec(BaseToNovel, base=base, novel=novel)}
    return config
