"""CoOp: the context of class names is learnt from a few examples (arXiv:2109.01134).

    make scenes
    python -m big_mm.train --config experiments/few_shot.py --workdir runs/few_shot/clip
    python -m big_mm.ablate --config experiments/coop/config.py --workdir runs/coop \\
        --metrics zero_shot/accuracy
    python -m big_mm.ablate --config experiments/coop/config.py --workdir runs/coop \\
        --arms coop1 coop2 coop4 coop16 --metrics zero_shot/accuracy linear_probe/accuracy

`coop16` learns from 16 examples of each class, and so on; `hand` has the words it begins as. `csc`
has a context for each class, and in `middle` and `front` the class name stands there. The arms of
the second table have a linear probe on the same examples.
"""

import ml_collections

from big_mm.spec import choose
from experiments import few_shot

SHOTS = {"coop16": 16, "coop4": 4, "coop2": 2, "coop1": 1}
OPTIONS = {
    "csc": {"specific": True},
    "middle": {"class_position": "middle"},
    "front": {"class_position": "front"},
}
FURTHER = ("coop16_csc", "coop4_csc", "coop1_csc", "coop16_middle", "coop16_front")
VARIANTS = (*SHOTS, *FURTHER, "hand")


def get_config(arg: str = "coop16") -> ml_collections.ConfigDict:
    choose("variant", arg, VARIANTS)
    name, _, option = arg.partition("_")
    config = few_shot.task(SHOTS.get(name, 1), **OPTIONS.get(option, {}))
    config.evaluators = {"zero_shot": few_shot.zero_shot(few_shot.BASE)}
    if arg == "hand":
        config.steps, config.optimizer.learning_rate, config.optimizer.schedule.warmup = 1, 0.0, 0
        return config
    config.evaluators["linear_probe"] = few_shot.probe(SHOTS[name], config.get_ref("seed"))
    return config
