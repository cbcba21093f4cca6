"""The input contract of other programs' models."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from big_mm.data.contract import Contract
from big_mm.spec import spec

RGB = tuple[float, float, float]
MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
STD: RGB = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a foreign model is fed."""

    contract: ml_collections.ConfigDict
    mean: RGB
    std: RGB


def open_clip(config: Mapping[str, Any], folder: epath.Path, tokenizer: str | None) -> Inputs:
    """Of an open_clip model."""
    pre, model = config.get("preprocess_cfg", {}), config.get("model_cfg", config)
    made = spec(
        Contract,
        image_size=model["vision_cfg"].get("image_size", 224),
        max_len=model["text_cfg"].get("context_length", 77),
    )
    return Inputs(made, tuple(pre.get("mean", MEAN)), tuple(pre.get("std", STD)))


def hugging_face(folder: epath.Path, tokenizer: str | None) -> Inputs:
    """Of a Hugging Face directory."""
    says = json.loads((folder / "preprocessor_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    made = spec(
        Contract,
        image_size=says["size"]["height"],
        max_len=config["text_config"]["max_position_embeddings"],
    )
    return Inputs(made, tuple(says["image_mean"]), tuple(says["image_std"]))


def big_vision(family: str, image_size: int, max_len: int, tokenizer: str | None) -> Inputs:
    """Of a big_vision checkpoint."""
    made = spec(Contract, image_size=image_size, max_len=max_len)
    return Inputs(made, (0.5,) * 3, (0.5,) * 3)
