"""CoOp: the context of class names is learnt from a few examples (arXiv:2109.01134).

    make scenes
    python -m big_mm.train --config experiments/few_shot.py --workdir runs/few_shot/clip
    python -m big_mm.ablate --config experiments/coop/config.py --workdir runs/coop \\
        --metrics zero_shot/accuracy
    python -m big_mm.ablate --config experiments/coop/config.py --workdir runs/coop \\
        --arms coop16 coop4 coop2 coop1 --metrics zero_shot/accuracy linear_probe/accuracy

`coop16` learns from 16 examples of each class, and so on; `coop16_csc` a context for each class; in
`coop16_middle` and `coop16_front` the class name stands there; `hand` has the words that all begin
as. Beside `hand` each has a linear probe on the same examples.
"""

import itertools

import ml_collections

from big_mm.spec import choose
from experiments import few_shot

SHOTS = {"coop16": 16, "coop4": 4, "coop2": 2, "coop1": 1}
OPTIONS = {
    "": {},
    "_csc": {"specific": True},
    "_middle": {"class_position": "middle"},
    "_front": {"class_position": "front"},
}
ARMS = {
    shots + option: (SHOTS[shots], OPTIONS[option])
    for shots, option in itertools.product(SHOTS, OPTIONS)
}
# What is trained without --arms: one of each kind.
VARIANTS = ("coop16", "coop16_csc", "coop16_front", "coop1", "hand")


def get_config(arg: str = "coop16") -> ml_collections.ConfigDict:
    choose("variant", arg, (*ARMS, "hand"))
    shots, options = ARMS.get(arg, (1, {}))
    config = few_shot.task(shots, **options)
    config.evaluators = {"zero_shot": few_shot.zero_shot(few_shot.BASE)}
    if arg == "hand":
        config.steps, config.optimizer.learning_rate, config.optimizer.schedule.warmup = 1, 0.0, 0
        return config
    config.evaluators["linear_probe"] = few_shot.probe(shots, config.get_ref("seed"))
    return config
