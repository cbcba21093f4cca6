"""TIPS: two captions, local crops and masked patches, against an EMA teacher (arXiv:2410.16512).

    python -m big_mm.ablate --config experiments/tips/config.py --workdir runs/tips

Three arms: "tips"; "captions", without self-distillation; "clip", with the alt-text alone, of which
three in ten are another picture's. Scored by a linear probe of the patches, and by retrieval.
"""

import ml_collections

from big_mm.data.noise import Mismatched
from big_mm.data.transforms import (
    ChooseCaption,
    Decode,
    RandomResizedCrop,
    Resize,
    Tokenize,
    Views,
)
from big_mm.evaluators import SegmentationProbe, masks
from big_mm.losses import contrastive
from big_mm.objectives.base import Weighted
from big_mm.spec import choose, spec
from configs import quickstart
from experiments import base
from experiments.tips.model import TIPS
from experiments.tips.objective import Distillation, SpatialAwareness

VARIANTS = ("tips", "captions", "clip")
IMAGE_SIZE, PATCH_SIZE, LOCAL_SIZE, MAX_LEN = 40, 8, 16, 36
CROP = {"size": LOCAL_SIZE, "scale": (0.05, 0.4)}


def get_config(arm: str = "tips") -> ml_collections.ConfigDict:
    choose("arm", arm, VARIANTS)
    config = base.clip()
    config.steps, config.batch_size = 200, 64
    config.contract.update(image_size=IMAGE_SIZE, max_len=MAX_LEN)
    source = quickstart.source(quickstart.DATA, "train", texts=("captions_full=caption_long",))
    config.data.sources = (spec(Mismatched, source=source, share=0.3),)
    config.evaluators = {"retrieval": config.evaluators.retrieval, "segmentation": segmentation()}
    model = config.objective.model
    for tower in (model.image, model.text):
        tower.blocks.unroll = 1  # compiles sooner, for a run as short as this
    model.text.max_len = MAX_LEN
    model.image.update(pool="cls", image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    if arm == "clip":
        config.data.transforms = (spec(Decode), spec(Resize), spec(ChooseCaption), spec(Tokenize))
        return config
    model.image.update(cls_tokens=2, mask_token=True, any_size=True)
    config.objective.model = spec(TIPS, **{key: model[key] for key in ("image", "text")})
    config.objective.model.embed_dim = model.embed_dim
    config.data.transforms = (
        spec(Decode),
        spec(Views, crop=spec(RandomResizedCrop, **CROP), count=4, out="local_crops"),
        spec(Resize),
        spec(ChooseCaption),
        spec(ChooseCaption, key="captions_full", out="caption_full"),
        spec(Tokenize),
        spec(Tokenize, key="caption_full", suffix="_full"),
    )
    full = {key: f"{key}_embedding_full" for key in ("image", "text")}
    losses = {
        "contrastive": spec(contrastive.Softmax, positives="text_id"),
        "contrastive_full": spec(contrastive.Softmax, **full, positives="text_id_full"),
    }
    weights = {"contrastive": 0.5, "contrastive_full": 0.5}
    if arm == "captions":
        config.objective = spec(
            Weighted, model=config.objective.model, losses=losses, weights=weights
        )
        return config
    distilled = {
        "local": spec(Distillation, student="local", teacher="target"),
        "masked": spec(Distillation, student="masked", teacher="patch_target", mask="patch_mask"),
    }
    config.objective = spec(
        SpatialAwareness,
        model=config.objective.model,
        losses=losses | distilled,
        weights=weights | {"local": 1.0, "masked": 2.0},
        momentum=0.97,
        final_momentum=1.0,
        momentum_steps=config.steps,
    )
    return config


def segmentation() -> ml_collections.ConfigDict:
    """A linear probe of the patches, on scenes with masks."""
    train, test = (
        quickstart.source(quickstart.DATA, split, extra=("mask", "scene"))
        for split in ("train", "test_seen")
    )
    return spec(
        SegmentationProbe,
        train=train,
        test=test,
        masks=spec(masks.SceneMasks, by="shape"),
        train_limit=1000,
    )
