"""The task of coop and maple: a CLIP of bright plain scenes, and a few of another style.

    make scenes
    python -m big_mm.train --config experiments/few_shot.py --workdir runs/few_shot/clip

trains that CLIP, of 300 steps. `task` is a run on top of it: the pictures have light and grey
grounds and textured objects; half of the classes, all known to the CLIP, are there to learn from.
"""

import ml_collections

from big_mm.data import scenes
from big_mm.data.pipeline import Pipeline
from big_mm.data.scenes import SceneSource, World
from big_mm.data.shots import Shots
from big_mm.data.transforms import ChooseCaption, ClassTexts, Decode, Tokenize
from big_mm.evaluators import LinearProbe, ZeroShot
from big_mm.losses.classification import ClassTexts as Classification
from big_mm.models.prompted import PromptedDualEncoder
from big_mm.objectives.base import Weighted
from big_mm.spec import CLASS, build, spec
from big_mm.training.init_from import InitFrom
from big_mm.training.optimizer import AdamW
from big_mm.training.schedules import WarmupCosine
from configs import quickstart
from experiments import base

CLIP = "runs/few_shot/clip"
WORDS = "a picture of"  # that the context begins as
SEEN = tuple(scenes.class_index(kind) for kind in scenes.SEEN_KINDS)
BASE, NOVEL = SEEN[::2], SEEN[1::2]


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = base.clip()
    config.steps = 300
    return config


def names(classes: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(scenes.CLASS_NAMES[number] for number in classes)


def images(count: int, seed: int) -> ml_collections.ConfigDict:
    """Single objects in the style that the CLIP has not seen."""
    world = spec(World, texture_weights=(0.0, 0.5, 0.5), tones=("light", "grey"))
    size = quickstart.IMAGE_SIZE
    return spec(
        SceneSource, split="zero_shot_seen", count=count, image_size=size, seed=seed, world=world
    )


def zero_shot(classes: tuple[int, ...]) -> ml_collections.ConfigDict:
    """Among these classes, by their names alone: the model has the context."""
    test = spec(Shots, source=images(1000, seed=1), shots=None, classes=classes)
    return spec(ZeroShot, source=test, classnames=names(classes))


def probe(shots: int, seed) -> ml_collections.ConfigDict:
    """CLIP's linear probe on the same examples; C chosen on as many others, at most 4 a class."""
    train, validation = (
        spec(Shots, source=images(1600, seed=start), shots=count, classes=BASE, seed=seed)
        for start, count in ((0, shots), (2, min(shots, 4)))
    )
    test = spec(Shots, source=images(1000, seed=1), shots=None, classes=BASE)
    return spec(LinearProbe, train=train, validation=validation, test=test)


def task(shots: int = 16, specific: bool = False, **prompts) -> ml_collections.ConfigDict:
    """A run that learns prompts (options of `PromptedDualEncoder`) from `shots` of each base class,
    which the run's seed chooses; if `specific`, a context of its own for each class.
    """
    config = base.clip()
    with config.unlocked():
        config.seed = 0
    contract = build(config.contract)
    words = tuple(contract.tokenizer.encode_batch([WORDS])[0])
    if specific:
        rows = zip(*contract.text(names(BASE)), strict=True)
        prompts["classes"] = tuple(tuple(tokens[mask].tolist()) for tokens, mask in rows)
    towers = {key: value for key, value in config.objective.model.items() if key != CLASS}
    for tower in ("image", "text"):
        towers[tower].blocks.unroll = 1  # compiles sooner, for a run as short as this
    model = spec(PromptedDualEncoder, **towers, length=len(words), words=words, **prompts)
    config.objective = spec(Weighted, model=model, losses={"classes": spec(Classification)})
    # The prompts take up positions of the text tower.
    config.contract.max_len = quickstart.MAX_LEN - len(words)
    examples = spec(
        Shots, source=images(1600, seed=0), shots=shots, classes=BASE, seed=config.get_ref("seed")
    )
    texts = spec(ClassTexts, classnames=names(BASE))
    config.data = spec(
        Pipeline,
        sources=(examples,),
        transforms=(spec(Decode), texts, spec(ChooseCaption), spec(Tokenize)),
        num_threads=1,
        cache=True,
    )
    config.optimizer = spec(
        AdamW,
        learning_rate=1e-2,
        schedule=spec(WarmupCosine, warmup=10, final=0.01),
        frozen=(("prompts/.*", False), (".*", True)),
    )
    with config.unlocked():
        config.init_from = spec(InitFrom, path=CLIP)
    config.steps, config.batch_size, config.evaluators = 150, 32, {}
    config.checkpoint.every = 0
    return config
