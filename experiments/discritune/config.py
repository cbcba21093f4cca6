"""DiscriTune: captions fine-tuned until a frozen retriever finds their image (arXiv:2304.01662).

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.train --config experiments/base.py:generic --workdir runs/generic
    python -m big_mm.train --config experiments/base.py:referee --workdir runs/referee
    python -m big_mm.ablate --config experiments/discritune/config.py --workdir runs/discritune \\
        --metrics in_domain/self_r@1 in_domain/cider out_of_domain/self_r@1 out_of_domain/cider

Both arms go on from one captioner of generic captions: `discritune` with REINFORCE on the
retriever's log-probability of the right image, `mle` with cross-entropy as before. The other domain
has other combinations of colour and shape, and people who say both. The judge
is the retriever; another CLIP, the referee, measures.
"""

import ml_collections

from big_mm.evaluators import Captioning, SceneAccuracy
from big_mm.evaluators.caption_figures import Fit
from big_mm.losses.policy_gradient import Reinforce
from big_mm.objectives.policy_gradient import PolicyGradient
from big_mm.spec import choose, spec
from experiments import base
from experiments.discritune.reward import Discrimination

VARIANTS = ("discritune", "mle")


def get_config(arg: str = "discritune") -> ml_collections.ConfigDict:
    choose("arm", arg, VARIANTS)
    config = base.finetuned()
    if arg == "discritune":
        config.objective = spec(
            PolicyGradient,
            model=config.objective.model,
            losses={"policy": spec(Reinforce)},
            rewards={"discrimination": spec(Discrimination)},
            judge=base.frozen(base.JUDGE, base.judge()),
            baseline="mean",
        )
    config.evaluators = {
        "in_domain": captioning(base.GENERIC_DETAILS, "retrieval_seen"),
        "out_of_domain": captioning(("kinds",), "retrieval_unseen"),
    }
    return config


def captioning(details: tuple[str, ...], split: str) -> ml_collections.ConfigDict:
    return spec(
        Captioning,
        source=base.described(details, split),
        scorer=spec(SceneAccuracy),
        figures=(spec(Fit, checkpoint=base.REFEREE, prefix=""),),
        limit=300,
    )
