"""TIPS: two captions, local crops and masked patches, against an EMA teacher (arXiv:2410.16512).

    make scenes
    python -m big_mm.ablate --config experiments/tips/config.py --workdir runs/tips

`tips` is all of it, `captions` without self-distillation, `clip` has the alt-text alone. The
alt-text of three pictures in ten is another's; the full caption is sound.
"""

import ml_collections

from big_mm.data.noise import Mismatched
from big_mm.data.transforms import ChooseCaption, Decode, RandomResizedCrop, Resize, Tokenize, Views
from big_mm.evaluators import SegmentationProbe, masks
from big_mm.losses import contrastive
from big_mm.losses.distillation import Distillation
from big_mm.models.dual_encoder import DualEncoder
from big_mm.objectives.base import Weighted
from big_mm.probing.heads import Recipe
from big_mm.similarity import Cosine
from big_mm.spec import choose, spec
from configs import quickstart
from experiments import base
from experiments.tips.model import TIPS
from experiments.tips.objective import SpatialAwareness

VARIANTS = ("tips", "captions", "clip")
IMAGE_SIZE, PATCH_SIZE, LOCAL_SIZE, MAX_LEN = 40, 8, 16, 36
CROP = {"size": LOCAL_SIZE, "scale": (0.05, 0.4)}


def get_config(arg: str = "tips") -> ml_collections.ConfigDict:
    choose("variant", arg, VARIANTS)
    config = base.clip(DualEncoder if arg == "clip" else TIPS)
    config.steps, config.batch_size = 200, 64
    config.contract.update(image_size=IMAGE_SIZE, max_len=MAX_LEN)
    source = quickstart.source(quickstart.DATA, "train", texts=("captions_full=caption_long",))
    config.data.sources = (spec(Mismatched, source=source, share=0.3),)
    alt_text = (spec(Resize), spec(ChooseCaption), spec(Tokenize))
    config.data.transforms = (spec(Decode), *alt_text)
    config.evaluators = {
        "retrieval": config.evaluators.retrieval,
        "segmentation": segmentation("shape"),
        "segmentation_colours": segmentation("colour"),
    }
    model = config.objective.model
    for tower in (model.image, model.text):
        tower.blocks.unroll = 1  # compiles sooner, for a run as short as this
    model.text.max_len = MAX_LEN
    model.image.update(pool="cls", image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    if arg == "clip":
        return config
    model.image.update(cls_tokens=2, mask_token=True, any_size=True)
    config.data.transforms = (
        spec(Decode),
        spec(Views, crop=spec(RandomResizedCrop, **CROP), count=4, out="local_crops"),
        *alt_text[:2],
        spec(ChooseCaption, key="captions_full", out="caption_full"),
        alt_text[2],
        spec(Tokenize, key="caption_full", suffix="_full"),
    )
    full = spec(Cosine, image=("image_embedding_full",), text=("text_embedding_full",))
    losses = {
        "contrastive": spec(contrastive.Softmax, positives="text_id"),
        "contrastive_full": spec(contrastive.Softmax, similarity=full, positives="text_id_full"),
    }
    weights = {"contrastive": 0.5, "contrastive_full": 0.5}
    config.objective = spec(Weighted, model=model, losses=losses, weights=weights)
    if arg == "captions":
        return config
    losses["local"] = spec(Distillation, student="local", teacher="target")
    losses["masked"] = spec(
        Distillation, student="masked", teacher="patch_target", mask="patch_mask"
    )
    config.objective = spec(
        SpatialAwareness,
        model=model,
        losses=losses,
        weights=weights | {"local": 1.0, "masked": 2.0},
        momentum=0.97,
        final_momentum=1.0,
        momentum_steps=config.steps,
    )
    return config


def segmentation(by: str) -> ml_collections.ConfigDict:
    """A linear probe of the patches, on scenes with masks."""
    train, test = (
        quickstart.source(quickstart.DATA, split, extra=("mask", "scene"))
        for split in ("train", "test_seen")
    )
    return spec(
        SegmentationProbe,
        train=train,
        test=test,
        masks=spec(masks.SceneMasks, by=by),
        train_limit=1000,
        recipe=spec(Recipe, batch_size=32, learning_rate=1e-2, epochs=20),
    )
