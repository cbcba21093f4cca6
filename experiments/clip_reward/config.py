"""CLIP reward: captions fine-tuned for what a CLIP sees in them (arXiv:2205.13115).

    python -m big_mm.train --config experiments/base.py:judge --workdir runs/judge
    python -m big_mm.train --config experiments/base.py:generic --workdir runs/generic
    python -m big_mm.train --config experiments/base.py:referee --workdir runs/referee
    python -m big_mm.train --config experiments/clip_reward/config.py:scorer --workdir runs/scorer
    python -m big_mm.ablate --config experiments/clip_reward/config.py --workdir runs/clip_reward \\
        --metrics captioning/self_r@1 captioning/cider captioning/repeated_2 captioning/exact

All arms go on from one captioner of generic captions, with self-critical rewards: CLIPScore and
grammar by the scorer, CLIPScore alone, CIDEr; or with cross-entropy as before. Another CLIP than
the scorer, the referee, retrieves.
"""

import ml_collections

from big_mm.data import scenes
from big_mm.data.corruption import Corrupt
from big_mm.data.transforms import ChooseCaption, Tokenize
from big_mm.evaluators import Captioning, SceneAccuracy
from big_mm.evaluators.caption_figures import Fit, Lexicon
from big_mm.losses.policy_gradient import Reinforce
from big_mm.objectives import rewards
from big_mm.objectives.policy_gradient import PolicyGradient
from big_mm.spec import choose, spec
from big_mm.training.init_from import InitFrom
from big_mm.training.optimizer import AdamW
from big_mm.training.schedules import WarmupCosine
from experiments import base
from experiments.clip_reward import grammar

VARIANTS = ("clip_grammar", "clip", "cider", "mle")
REWARDS = {"clip_grammar": ("clip", "grammar"), "clip": ("clip",), "cider": ("cider",), "mle": ()}
SCORER = "runs/scorer"
WORDS = (*scenes.COLOURS, *scenes.SHAPES, "a", "and", "two", "three", "shape", "shapes")


def get_config(arg: str = "clip_grammar") -> ml_collections.ConfigDict:
    choose("arm", arg, (*VARIANTS, "scorer"))
    if arg == "scorer":
        return scorer()
    config = base.finetuned()
    if arg != "mle":
        kinds = {
            "clip": spec(rewards.ClipScore),
            "grammar": spec(grammar.Grammar),
            "cider": spec(rewards.Cider, source=base.described(base.GENERIC_DETAILS)),
        }
        config.objective = spec(
            PolicyGradient,
            model=config.objective.model,
            losses={"policy": spec(Reinforce, per="tokens")},
            rewards={name: kinds[name] for name in REWARDS[arg]},
            judge=None if arg == "cider" else base.frozen(SCORER, scorer()),
        )
    written = spec(
        Captioning,
        source=base.described(base.GENERIC_DETAILS, "retrieval_seen"),
        scorer=spec(SceneAccuracy),
        figures=(spec(Fit, checkpoint=base.REFEREE, prefix=""), spec(Lexicon)),
        limit=300,
    )
    config.evaluators = {"captioning": written}
    return config


def scorer() -> ml_collections.ConfigDict:
    """The judge, trained on with a grammar head: the rewards' CLIP."""
    config = base.judge()
    model = config.objective.model
    towers = {name: model[name] for name in ("image", "text", "embed_dim")}
    config.objective.model = spec(grammar.GrammarDualEncoder, **towers)
    config.objective.losses["grammar"] = spec(grammar.GrammarLoss)
    source = base.described(("groups", "colours", "kinds"), captions="caption_short")
    config.data.sources = (source,)
    config.data.transforms = (
        config.data.transforms[0],
        spec(ChooseCaption, weights=(0.1, 0.1, 1.0, 0.5, 0.5, 0.5)),
        spec(Corrupt, words=WORDS),
        spec(Tokenize),
        spec(Tokenize, key="corrupted", suffix="_corrupted"),
    )
    config.init_from = spec(InitFrom, path=base.JUDGE)
    schedule = spec(WarmupCosine, warmup=10)
    config.optimizer = spec(AdamW, learning_rate=1e-3, schedule=schedule)
    config.evaluators = {}
    config.steps, config.batch_size = 150, 64
    return config
