"""SyCoCa: CoCa, and masked patches reconstructed with the caption's help (arXiv:2401.02137).

    python -m big_mm.ablate --config experiments/sycoca/config.py --workdir runs/sycoca

Three arms: "sycoca" masks the patches that the caption is about, "random" any, "coca" has no third
loss.
"""

import ml_collections

from big_mm.models.layers import Transformer
from big_mm.spec import choose, spec
from experiments import base
from experiments.sycoca.model import SyCoCa
from experiments.sycoca.objective import Mask, MaskedPixels, Symmetric

VARIANTS = ("sycoca", "random", "coca")


def get_config(arm: str = "sycoca") -> ml_collections.ConfigDict:
    choose("arm", arm, VARIANTS)
    config = base.coca()
    config.steps, config.batch_size = 200, 64
    config.evaluators = {name: config.evaluators[name] for name in ("retrieval", "captioning")}
    config.evaluators.captioning.limit = 300
    model = config.objective.model
    for blocks in (model.image.blocks, model.text.blocks, model.decoder):
        blocks.unroll = 1  # compiles sooner, for a run as short as this
    if arm == "coca":
        return config
    model.image.mask_token = True
    blocks = model.decoder
    decoder = spec(
        Transformer,
        width=blocks.width,
        depth=1,
        heads=blocks.heads,
        mlp_dim=blocks.mlp_dim,
        cross_attention=True,
    )
    given = {key: model[key] for key in model if not key.startswith("_")}
    config.objective = spec(
        Symmetric,
        model=spec(SyCoCa, **given, image_decoder=decoder),
        losses={**config.objective.losses, "reconstruction": spec(MaskedPixels)},
        weights={**config.objective.weights, "reconstruction": 1.0},
        mask=spec(Mask, patches="relevant" if arm == "sycoca" else "random", ratio=0.5),
    )
    return config
