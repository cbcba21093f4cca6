"""The small runs that experiments vary: CoCa and CLIP on the quickstart's scenes.

Both read runs/scenes, which `make scenes` writes.
"""

import ml_collections

from big_mm.losses import contrastive
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.spec import CLASS, spec
from configs import quickstart


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
