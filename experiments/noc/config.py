"""NoC: a captioner told how well its training captions fit, on captions of every quality.

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.ablate --config experiments/noc/config.py --workdir runs/noc \\
        --metrics captioning/cider captioning/self_r@1 captioning/clip_score

`noc` sees the level of each pair's similarity by the judge, and writes at a high one; `vanilla`
does not; `filtered` leaves out the pairs of low levels, `strict` all but those of the highest one.
"""

import ml_collections

from big_mm.data.noise import Mismatched
from big_mm.evaluators import Altered, Captioning
from big_mm.evaluators.altered import Fields
from big_mm.evaluators.caption_figures import Fit
from big_mm.models.captioner import Captioner
from big_mm.spec import choose, spec
from experiments import base
from experiments.noc import noc

VARIANTS = ("noc", "vanilla", "filtered", "strict")
LEVELS = 8
# Of the training pairs' similarities, as `python -m experiments.noc.noc` prints them.
LOW, HIGH = -0.46, 0.85
# Without the pairs of lower levels: most of the wrong captions, all but the most specific ones.
MINIMUM = {"filtered": 5, "strict": 7}


def get_config(arg: str = "noc") -> ml_collections.ConfigDict:
    choose("arm", arg, VARIANTS)
    config = base.captioner(noc.ControlledCaptioner if arg == "noc" else Captioner)
    # A caption says how many shapes there are, or which, or all; and it is that of another image in
    # 40 % of the records.
    source = base.described(("number", "shapes", "kinds"))
    config.data.sources = (spec(Mismatched, source=source, share=0.4),)
    if arg == "noc":
        config.objective.model.levels, config.objective.model.level = LEVELS, LEVELS - 1
    if arg != "vanilla":
        config.objective = spec(
            noc.Aligned,
            model=config.objective.model,
            losses=config.objective.losses,
            judge=base.frozen(base.JUDGE, base.judge()),
            boundaries=noc.uniform(LOW, HIGH, LEVELS),
            minimum=MINIMUM.get(arg, 0),
        )
    written = captioning()
    config.evaluators = {"captioning": written}
    if arg == "noc":
        lowest = spec(Altered, evaluator=written, alter=spec(Fields, fields={"level": 0}))
        config.evaluators["captioning_lowest"] = lowest
    config.steps, config.batch_size = 200, 64
    return config


def captioning() -> ml_collections.ConfigDict:
    """Against captions that name every object's colour and shape."""
    return spec(
        Captioning,
        source=base.described(("kinds",), "retrieval_seen", captions="caption_short"),
        figures=(spec(Fit, checkpoint=base.JUDGE, prefix=""),),
        limit=300,
    )
