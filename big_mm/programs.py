"""What a predictor computes on the device, as pure functions of a model, parameters and inputs.

`predictor.py` compiles them, `export.py` writes them out as portable artifacts. A model that lacks
the method or the output that one of them needs is refused while it is traced, with a UserError.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from big_mm import decoding
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs

# What a model without the method cannot do.
_SKILLS = {
    "encode_image": "see images alone",
    "encode_text": "embed texts",
    "init_cache": "write captions",
    "decode_step": "write captions",
    "match": "match images with texts",
}


def encode_image(
    model: nn.Module, params: Any, image: UInt8[Array, "batch size size 3"]
) -> Float[Array, "batch dim"]:
    """Image embeddings."""
    outputs = _method(model, "encode_image")({"params": params}, image)
    return _output(model, outputs, "image_embedding")


def image_outputs(
    model: nn.Module,
    params: Any,
    image: UInt8[Array, "batch size size 3"],
    *,
    keys: tuple[str, ...],
    dtype: str,
) -> Outputs:
    """Outputs of images alone, as `dtype`."""
    outputs = _method(model, "encode_image")({"params": params}, image)
    return {key: _output(model, outputs, key).astype(dtype) for key in keys}


def text_outputs(
    model: nn.Module,
    params: Any,
    tokens: Int[Array, "batch length"],
    token_mask: Array,
    *,
    keys: tuple[str, ...],
) -> Outputs:
    """Outputs of texts alone, float32."""
    outputs = _method(model, "encode_text")({"params": params}, tokens, token_mask)
    return {key: _output(model, outputs, key).astype(jnp.float32) for key in keys}


def encode_text(
    model: nn.Module, params: Any, tokens: Int[Array, "batch length"], token_mask: Array
) -> Float[Array, "batch dim"]:
    """Text embeddings."""
    outputs = _method(model, "encode_text")({"params": params}, tokens, token_mask)
    return _output(model, outputs, "text_embedding")


def generate(
    model: nn.Module,
    params: Any,
    image: UInt8[Array, "batch *pictures size size 3"],
    prefix: Int[Array, "batch length"],
    rows: Int[Array, " batch"],
    seed: Any,
    how: decoding.Decoding,
    *,
    vocabulary: decoding.Vocabulary,
    prefill: int = 1,
) -> tuple[Int[Array, "batch length"], Float[Array, " batch"]]:
    """Caption tokens and their log-probabilities; see `decoding.decode`.

    For guidance, an image that is not seen is image tokens that are all zero.

    Args:
      rows: a number for each row; with `seed` it determines the row's samples.
    """
    outputs = _method(model, "encode_image")({"params": params}, image)
    image_tokens = _output(model, outputs, "image_tokens")
    if how.guided:
        both = jnp.stack([image_tokens, jnp.zeros_like(image_tokens)], axis=1)
        image_tokens = both.reshape(-1, *image_tokens.shape[1:])
    _, variables = _method(model, "init_cache")({"params": params}, image_tokens, mutable=["cache"])
    decode_step = _method(model, "decode_step")

    def step(tokens: Array, cache: Any) -> tuple[Array, Any]:
        outputs, new = decode_step({"params": params, "cache": cache}, tokens, mutable=["cache"])
        return outputs["caption_logits"], new["cache"]

    if how.guided:
        step = decoding.guide(step, how.guidance)
    keys = None
    if how.sample:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)
    return decoding.decode(
        step,
        variables["cache"],
        prefix,
        how,
        vocabulary,
        keys=keys,
        prefill=prefill,
        batch_axis=model.cache_batch_axis,
    )


def caption_log_likelihood(
    model: nn.Module,
    params: Any,
    image: UInt8[Array, "batch size size 3"],
    tokens: Int[Array, "batch length"],
    token_mask: Array,
    counted: Bool[Array, "batch length"],
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Log-probability of the counted tokens of each caption, bos excluded, and their number."""
    batch = {"image": image, "tokens": tokens, "token_mask": token_mask}
    outputs = model.apply({"params": params}, batch, train=False)
    return _log_likelihood(_output(model, outputs, "caption_logits")[:, :-1], tokens, counted)


def texts_log_likelihood(
    model: nn.Module,
    params: Any,
    image: UInt8[Array, "batch size size 3"],
    tokens: Int[Array, "batch texts length"],
    counted: Bool[Array, "batch texts length"],
) -> tuple[Float[Array, "batch texts"], Int[Array, "batch texts"]]:
    """`caption_log_likelihood` of several texts of each image, which is encoded once."""
    outputs = _method(model, "encode_image")({"params": params}, image)
    image_tokens = _output(model, outputs, "image_tokens")
    _, variables = _method(model, "init_cache")({"params": params}, image_tokens, mutable=["cache"])
    decode_step = functools.partial(_method(model, "decode_step"), mutable=["cache"])

    def score(text: tuple[Array, Array]) -> tuple[Array, Array]:
        tokens, counted = text
        outputs, _ = decode_step({"params": params, "cache": variables["cache"]}, tokens[:, :-1])
        return _log_likelihood(outputs["caption_logits"], tokens, counted)

    totals, counts = jax.lax.map(score, (tokens.swapaxes(0, 1), counted.swapaxes(0, 1)))
    return totals.T, counts.T


def texts_match(
    model: nn.Module,
    params: Any,
    image: UInt8[Array, "batch size size 3"],
    tokens: Int[Array, "batch texts length"],
    token_mask: Bool[Array, "batch texts length"],
) -> Float[Array, "batch texts"]:
    """The log odds of several texts of each image, which is encoded once."""
    match, encode_text = _method(model, "match"), _method(model, "encode_text")
    outputs = _method(model, "encode_image")({"params": params}, image)
    image_tokens = _output(model, outputs, "image_tokens")

    def score(text: tuple[Array, Array]) -> Array:
        read = _output(model, encode_text({"params": params}, *text), "text_tokens")
        outputs = match({"params": params}, image_tokens, read, text[1])
        return _output(model, outputs, "match_logit").astype(jnp.float32)

    return jax.lax.map(score, (tokens.swapaxes(0, 1), token_mask.swapaxes(0, 1))).T


def _log_likelihood(
    logits: Float[Array, "batch steps vocabulary"],
    tokens: Int[Array, "batch length"],
    counted: Bool[Array, "batch length"],
) -> tuple[Float[Array, " batch"], Int[Array, " batch"]]:
    """Of the tokens behind the first; step i predicts token i + 1."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    log_probability = chosen - jax.nn.logsumexp(logits, axis=-1)
    counted = counted[:, 1:]
    return jnp.where(counted, log_probability, 0.0).sum(axis=1), counted.sum(axis=1)


def forward(
    model: nn.Module, params: Any, batch: Batch, *, keys: tuple[str, ...] | None
) -> Outputs:
    """The model's outputs as in training, without dropout."""
    outputs = model.apply({"params": params}, batch, train=False)
    return outputs if keys is None else {key: _output(model, outputs, key) for key in keys}


def _method(model: nn.Module, name: str) -> Callable[..., Any]:
    if not hasattr(model, name):
        raise UserError(f"{type(model).__name__} cannot {_SKILLS[name]}: it has no {name}")
    return functools.partial(model.apply, method=name)


def _output(model: nn.Module, outputs: Outputs, key: str) -> Array:
    if key not in outputs:
        raise UserError(
            f"{type(model).__name__} has no {key}; its outputs here are {', '.join(outputs)}"
        )
    return outputs[key]
