"""SyCoCa: CoCa, and masked patches reconstructed with the caption's help (arXiv:2401.02137).

    make scenes
    python -m big_mm.ablate --config experiments/sycoca/config.py --workdir runs/sycoca

`sycoca` masks the patches that are most like the caption, `random` any; `coca` has no third loss.
"""

import ml_collections

from big_mm.models.coca import CoCa
from big_mm.models.layers import Transformer
from big_mm.spec import choose, spec
from experiments import base
from experiments.sycoca.model import SyCoCa
from experiments.sycoca.objective import Mask, MaskedPixels, Symmetric

MASKS = {"sycoca": "relevant", "random": "random"}
VARIANTS = (*MASKS, "coca")


def get_config(arg: str = "sycoca") -> ml_collections.ConfigDict:
    choose("variant", arg, VARIANTS)
    config = base.coca(CoCa if arg == "coca" else SyCoCa)
    config.steps, config.batch_size = 200, 64
    config.evaluators = {name: config.evaluators[name] for name in ("retrieval", "captioning")}
    config.evaluators.captioning.limit = 300
    model = config.objective.model
    for blocks in (model.image.blocks, model.text.blocks, model.decoder):
        blocks.unroll = 1  # compiles sooner, for a run as short as this
    if arg == "coca":
        return config
    model.image.mask_token = True
    model.image_decoder = spec(
        Transformer,
        **{size: model.decoder[size] for size in ("width", "heads", "mlp_dim")},
        depth=1,
        cross_attention=True,
    )
    config.objective = spec(
        Symmetric,
        model=model,
        losses={**config.objective.losses, "reconstruction": spec(MaskedPixels)},
        weights={**config.objective.weights, "reconstruction": 1.0},
        mask=spec(Mask, patches=MASKS[arg], ratio=0.5),
    )
    return config
