"""FILIP: contrastive learning by token-wise late interaction (arXiv:2111.07783).

    make scenes
    python -m big_mm.ablate --config experiments/filip/config.py --workdir runs/filip

`filip` compares patches with words, in its loss and when it is evaluated; `clip`, its ablation, is
the same model with one embedding an image and a text. The loss of `selected` sees a quarter of all
tokens; its evaluation sees them all.
"""

from big_mm.evaluators import PointingGame
from big_mm.losses.selection import Selected
from big_mm.similarity import Cosine
from big_mm.spec import choose, spec
from configs import quickstart
from experiments import base
from experiments.filip.similarity import LateInteraction, TokenDualEncoder

VARIANTS = ("filip", "clip", "selected")


def get_config(arg="filip"):
    choose("variant", arg, VARIANTS)
    similarity = spec(Cosine if arg == "clip" else LateInteraction)
    config = base.clip(TokenDualEncoder)
    config.objective.losses.contrastive.similarity = similarity
    if arg == "selected":
        loss = config.objective.losses.contrastive
        config.objective.losses.contrastive = spec(Selected, loss=loss)
    for kinds in ("seen", "unseen"):
        suffix = "" if kinds == "seen" else f"_{kinds}"
        for name in ("retrieval", "zero_shot"):
            config.evaluators[f"{name}{suffix}"].similarity = similarity
        test = quickstart.source(quickstart.DATA, f"test_{kinds}", extra=("scene", "mask"))
        config.evaluators[f"pointing{suffix}"] = spec(PointingGame, source=test)
    return config
