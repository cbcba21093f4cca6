"""Writes models of ours as other programs' checkpoints: config, weights, preprocessing, texts."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import linen as nn

from big_mm import trees
from big_mm.data.contract import Contract
from big_mm.interop import (
    big_vision,
    big_vision_export,
    big_vision_inputs,
    big_vision_table,
    hugging_face,
    inputs,
    mapping,
    open_clip_export,
    open_clip_table,
)
from big_mm.interop.mapping import Table
from big_mm.interop.reading import BIG_VISION, CHECKPOINT, HUGGING_FACE, OPEN_CLIP, WEIGHTS

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": jnp.bfloat16,
}


def write_open_clip(
    folder: pathlib.Path, model: nn.Module, params: Any, contract: Contract, dtype: str = "float32"
) -> None:
    """A directory that open_clip loads as `local-dir:PATH`, and big_mm too.

    Raises:
      UserError: open_clip cannot express the model; says why.
    """
    config = open_clip_export.config_of(model, _eos_id(contract))
    text = inputs.open_clip_text(contract) | config["text_cfg"]
    given = inputs.write_open_clip(epath.Path(folder), contract, model.image.mean, model.image.std)
    described = {"model_cfg": config | {"text_cfg": text}, "preprocess_cfg": given}
    (folder / OPEN_CLIP).write_text(json.dumps(described, indent=2) + "\n")
    table = open_clip_table.table(model, open_clip_table.layout_of(model))
    _save(folder / WEIGHTS[OPEN_CLIP][0], table, model, params, dtype)


def write_hugging_face(
    folder: pathlib.Path, model: nn.Module, params: Any, contract: Contract, dtype: str = "float32"
) -> None:
    """A directory that transformers loads with `from_pretrained`, and big_mm too.

    Raises:
      UserError: Hugging Face's models cannot express ours; says why.
    """
    config = hugging_face.config_of(model, _eos_id(contract)) | {"torch_dtype": dtype}
    inputs.write_hugging_face(epath.Path(folder), contract, model.image.mean, model.image.std)
    (folder / HUGGING_FACE).write_text(json.dumps(config, indent=2) + "\n")
    _save(folder / WEIGHTS[HUGGING_FACE][0], hugging_face.table(model), model, params, dtype)


def write_big_vision(
    folder: pathlib.Path, model: nn.Module, params: Any, contract: Contract, dtype: str = "float32"
) -> None:
    """A directory with the .npz that big_vision loads, its layers numbered, its tokenizer, and what
    the shapes in it do not say, which only big_mm reads.

    Raises:
      UserError: big_vision cannot express the model; says why.
    """
    config = big_vision_export.config_of(model, contract.max_len)
    big_vision_inputs.write(epath.Path(folder), contract, big_vision.family(model))
    (folder / BIG_VISION).write_text(json.dumps(config, indent=2) + "\n")
    table = big_vision_table.table(model, big_vision_table.Layout())
    written = _arrays(table, model, params, dtype)
    np.savez(folder / CHECKPOINT, **{f"params/{name}": array for name, array in written.items()})


WRITERS: dict[str, Callable[..., None]] = {
    "open_clip": write_open_clip,
    "hugging_face": write_hugging_face,
    "big_vision": write_big_vision,
}


def _eos_id(contract: Contract) -> int | None:
    return None if contract.tokenizer is None else contract.tokenizer.eos_id


def _save(path: pathlib.Path, table: Table, model: nn.Module, params: Any, dtype: str) -> None:
    # transformers reads only what says that it is PyTorch's layout.
    arrays = _arrays(table, model, params, dtype)
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})


def _arrays(table: Table, model: nn.Module, params: Any, dtype: str) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = jax.device_get(trees.flatten(params))
    if (name := "temperature/log_scale") in flat:
        # Ours bounds the temperature whenever it is used, theirs while they train.
        flat[name] = np.minimum(flat[name], np.float32(math.log(model.max_scale)))
    written = mapping.write(table, flat)
    return {name: array.astype(DTYPES[dtype]) for name, array in written.items()}
