"""Reads other programs' checkpoints as specs and parameters of ours.

What is recognised: a directory with open_clip_config.json, a Hugging Face directory (config.json
with a model_type), a big_vision .npz or the directory that `convert` writes of one, and a single
file of weights beside or with such a config.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from etils import epath

from big_mm import spec
from big_mm.interop import (
    architectures,
    big_vision,
    big_vision_inputs,
    big_vision_table,
    hugging_face,
    inputs,
    mapping,
    open_clip,
    open_clip_table,
)
from big_mm.interop import tokenizer_files as files
from big_mm.interop.mapping import Entry
from big_mm.interop.tensors import SUFFIXES, Tensors, open_tensors
from big_mm.spec import UserError

OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
BIG_VISION, CHECKPOINT = "big_vision_config.json", "checkpoint.npz"
# In their order of preference.
WEIGHTS = {
    OPEN_CLIP: (
        "open_clip_model.safetensors",
        "model.safetensors",
        "open_clip_pytorch_model.bin",
        "pytorch_model.bin",
    ),
    HUGGING_FACE: (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint of another program in our terms.

    Attributes:
      components: the specs of `model` and `contract`.
      params: by path, float32.
      source: the file of weights.
      kind: what it was taken for.
      ignored: names of what carries no weights.
    """

    components: ml_collections.ConfigDict
    params: Mapping[str, np.ndarray]
    source: str
    kind: str
    ignored: Sequence[str]


def recognises(path: epath.Path) -> bool:
    """Whether this is for `read`: a file of weights, or a directory with another one's config."""
    if path.name.endswith(SUFFIXES):
        return path.is_file()
    if any((path / name).is_file() for name in (OPEN_CLIP, BIG_VISION)):
        return True
    file = path / HUGGING_FACE
    return file.is_file() and "model_type" in _json(file)


def read(path: epath.Path, config: str | None = None, tokenizer: str | None = None) -> Imported:
    """Reads a checkpoint.

    Args:
      path: a directory or a file of weights.
      config: the file that describes it, where it does not lie beside the weights; or a name of
        `architectures`.
      tokenizer: the user's tokenizer file; None takes the directory's.

    Raises:
      UserError: what is missing, damaged, unknown or not supported.
    """
    if (path / BIG_VISION).is_file():
        path = path / CHECKPOINT
    if path.suffix == ".npz":
        return _big_vision(path, config, tokenizer)
    if path.name.endswith(SUFFIXES):
        folder, weights = path.parent, path
    else:
        folder, weights = path, None
    described = epath.Path(config) if config else _beside(folder)
    if described is None:
        raise UserError(
            f"{path} says nothing of its model: give its open_clip_config.json (or model config) "
            "or open_clip's name of the architecture with --config, or keep the config beside it"
        )
    weights = weights or _weights(folder, described)
    if config and not described.is_file():
        says, described = architectures.architecture(config), folder / config
    else:
        says = _json(described)
    tensors = open_tensors(weights)
    logging.info("%s: %d tensors", weights, len(tensors))
    if "model_type" in says:
        return _hugging_face(says, described, tensors, tokenizer)
    return _open_clip(says, described, tensors, tokenizer)


def _open_clip(
    says: Mapping[str, Any], described: epath.Path, tensors: Tensors, tokenizer: str | None
) -> Imported:
    config = says.get("model_cfg", says)
    model = open_clip.model_spec(config, described.name)
    given = inputs.open_clip(says, described.parent, tokenizer)
    table = open_clip_table.table(
        spec.build(model), open_clip_table.layout(config, tensors.entries)
    )
    return _imported("open_clip", model, given, table, tensors, open_clip_table.IGNORED)


def _hugging_face(
    says: Mapping[str, Any], described: epath.Path, tensors: Tensors, tokenizer: str | None
) -> Imported:
    model = hugging_face.model_spec(says, described.name)
    given = inputs.hugging_face(described.parent, tokenizer)
    linear = says["model_type"] == "siglip2"
    table = hugging_face.table(spec.build(model), linear_patches=linear)
    kind = f"Hugging Face {says['model_type']}"
    return _imported(kind, model, given, table, tensors, hugging_face.IGNORED)


def _big_vision(path: epath.Path, config: str | None, tokenizer: str | None) -> Imported:
    beside, names = path.parent / BIG_VISION, (*files.SENTENCEPIECE[1:2], *files.WORD_PIECES)
    if beside.is_file():
        config = config or str(beside)
        lies = files.find(path.parent, tokenizer, names)
        tokenizer = None if lies is None else str(lies)
    tensors = big_vision.parameters(open_tensors(path))
    found = big_vision.find(tensors, _json(epath.Path(config)) if config else {})
    built = spec.build(found.model)
    family = big_vision.family(built)
    given = big_vision_inputs.read(family, built.image.image_size, found.max_len, tokenizer)
    table = big_vision_table.table(built, found.layout)
    return _imported(f"big_vision {family}", found.model, given, table, tensors, ())


def _imported(
    kind: str,
    model: ml_collections.ConfigDict,
    given: inputs.Inputs,
    table: Sequence[Entry],
    tensors: Tensors,
    ignored: Sequence[str],
) -> Imported:
    model.image.mean, model.image.std = given.mean, given.std
    shapes = mapping.shapes_of(spec.build(model))
    params, unused = mapping.read(table, tensors, shapes, ignored)
    # The peers clip the temperature while they train and not when they load.
    scale = math.exp(float(params.get("temperature/log_scale", 0.0)))
    if scale > 100.01:
        model.max_scale = 10.0 ** math.ceil(math.log10(scale))
    components = ml_collections.ConfigDict({"model": model, "contract": given.contract})
    return Imported(components, params, tensors.source, kind, unused)


def _beside(folder: epath.Path) -> epath.Path | None:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    return None


def _weights(folder: epath.Path, described: epath.Path) -> epath.Path:
    names = WEIGHTS.get(described.name, WEIGHTS[OPEN_CLIP])
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder} holds none of {', '.join(names)}")
    return found[0]


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value
