"""Files as the peers write them, made from names alone, and what big_mm computes from them."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from big_mm import decoding, programs, spec, trees
from big_mm.interop import (
    hugging_face,
    mapping,
    open_clip,
    open_clip_table,
    reading,
    text_towers,
    timm_trunks,
)
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from tests.interop import cases

TOKENS = jnp.asarray(cases.TOKENS)
# What is not padding: all up to the last id that is none.
TOKEN_MASK = jnp.asarray(np.cumsum(cases.TOKENS[:, ::-1] != 0, axis=1)[:, ::-1] > 0)


def register_tiny_towers(patch: pytest.MonkeyPatch) -> None:
    """Makes our tables know the tiny towers by name."""
    for name, (_, ours) in cases.TRUNKS.items():
        patch.setitem(timm_trunks.TRUNKS, name, timm_trunks.Trunk(**ours))
    for name, (_, ours) in cases.TEXT_TOWERS.items():
        patch.setitem(text_towers.TOWERS, name, text_towers.Tower(**ours))
    for name, sizes in cases.SIZES.items():
        patch.setitem(variants.TOWERS, name, sizes)


def open_clip_folder(
    folder: pathlib.Path, config: dict[str, Any], weights: dict[str, np.ndarray]
) -> pathlib.Path:
    """A directory as open_clip pushes it to the hub."""
    said = {"model_cfg": config, "preprocess_cfg": {"mean": cases.MEAN, "std": cases.STD}}
    said["preprocess_cfg"]["size"] = cases.SIZE
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    safetensors.numpy.save_file(weights, folder / "open_clip_model.safetensors")
    return folder


@functools.cache
def open_clip_names(case: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of an open_clip model, as our table has them."""
    config = cases.OPEN_CLIP[case]
    model = spec.build(open_clip.model_spec(config, "config"))
    prefix = {"text.token_embedding.weight"} if config.get("custom_text") else set()
    table = open_clip_table.table(model, open_clip_table.layout(config, prefix))
    return mapping.expected(table, mapping.shapes_of(model))


def hugging_face_folder(
    folder: pathlib.Path, config: dict[str, Any], weights: dict[str, np.ndarray]
) -> pathlib.Path:
    """A directory as transformers saves it."""
    clip = "siglip" not in config["model_type"]
    half = (0.5, 0.5, 0.5)
    size = {"height": cases.SIZE, "width": cases.SIZE}
    kinds = {"clip": "CLIP", "chinese_clip": "ChineseCLIP"}
    kind = kinds.get(config["model_type"], config["model_type"].capitalize())
    pictures = {"image_processor_type": f"{kind}ImageProcessor"}
    if kind == "Siglip2":
        pictures |= {"max_num_patches": 4, "patch_size": 8, "resample": 2}
    else:
        pictures |= {"size": size, "do_center_crop": False}
    pictures |= {"image_mean": cases.MEAN if clip else half}
    pictures |= {"image_std": cases.STD if clip else half}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return folder


@functools.cache
def hugging_face_names(case: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a Hugging Face model, as our table has them."""
    config = cases.HUGGING_FACE[case]
    model = spec.build(hugging_face.model_spec(config, "config"))
    table = hugging_face.table(model, linear_patches=config["model_type"] == "siglip2")
    return mapping.expected(table, mapping.shapes_of(model))


def batch(pad_id: int | None = None) -> dict[str, jax.Array]:
    """The cases' inputs; with `pad_id`, captions whose padding is told by it."""
    tokens = TOKENS if pad_id is None else jnp.asarray(cases.padded(pad_id))
    token_mask = TOKEN_MASK if pad_id is None else tokens != pad_id
    return {"image": jnp.asarray(cases.images()), "tokens": tokens, "token_mask": token_mask}


class Loaded:
    """An imported checkpoint: the model, its parameters, its outputs for the cases' inputs."""

    def __init__(self, path: pathlib.Path, config: str | None = None, pad_id: int | None = None):
        """`pad_id` as in `batch`."""
        self.imported = reading.read(epath.Path(path), config)
        self.model = spec.build(self.imported.components)["model"]
        params = {k: jnp.asarray(v) for k, v in self.imported.params.items()}
        self.variables = {"params": trees.unflatten(params)}
        self.batch = batch(pad_id)
        self.outputs = jax.jit(self.model.apply)(self.variables, self.batch)

    def logits(self) -> jax.Array:
        """Of all images with all texts."""
        out = self.outputs
        cosines = out["image_embedding"] @ out["text_embedding"].T
        return out["logit_scale"] * cosines + out.get("logit_bias", 0.0)

    def losses(self, counted: Any = TOKEN_MASK) -> list[float]:
        """The contrastive loss and, of a captioner, the captioning loss over the counted tokens."""
        kind = contrastive.Sigmoid if "logit_bias" in self.outputs else contrastive.Softmax
        terms = [kind()(self.outputs, self.batch)[0]]
        if "caption_logits" in self.outputs:
            batch = self.batch | {"token_mask": counted}
            terms.append(captioning.CrossEntropy()(self.outputs, batch)[0])
        return [float(term.total / term.count) for term in terms]

    def captions(self, pad_id: int = 0, **options: Any) -> list[list[int]]:
        """Token rows of the cases' images."""
        start = jnp.full(TOKENS.shape, pad_id).at[:, 0].set(cases.BOS)
        tokens, _ = programs.generate(
            self.model,
            self.variables["params"],
            self.batch["image"],
            start,
            jnp.arange(len(start)),
            0,
            decoding.options(**options),
            vocabulary=decoding.Vocabulary(
                cases.VOCAB, pad_id, cases.EOS, pad_id, (pad_id, cases.BOS)
            ),
        )
        return np.where(tokens == pad_id, 0, tokens).tolist()
