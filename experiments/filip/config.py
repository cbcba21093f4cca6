"""FILIP: contrastive learning by token-wise late interaction (arXiv:2111.07783).

    make scenes
    python -m big_mm.ablate --config experiments/filip/config.py --workdir runs/filip

`filip` compares patches with words, in its loss and when it is evaluated; `clip`, its ablation, is
the same model with one embedding an image and a text.
"""

from big_mm.similarity import Cosine
from big_mm.spec import choose, spec
from experiments import base
from experiments.filip.localisation import PointingGame
from experiments.filip.similarity import LateInteraction, TokenDualEncoder

SIMILARITIES = {"filip": LateInteraction, "clip": Cosine}
VARIANTS = tuple(SIMILARITIES)


def get_config(arg="filip"):
    choose("variant", arg, VARIANTS)
    similarity = spec(SIMILARITIES[arg])
    config = base.clip(TokenDualEncoder)
    config.objective.losses.contrastive.similarity = similarity
    for kinds in ("", "_unseen"):
        config.evaluators[f"retrieval{kinds}"].similarity = similarity
        del config.evaluators[f"zero_shot{kinds}"]
        test = base.quickstart.source(
            base.quickstart.DATA, f"test{kinds or '_seen'}", extra=("scene", "mask")
        )
        config.evaluators[f"pointing{kinds}"] = spec(PointingGame, source=test)
    return config
