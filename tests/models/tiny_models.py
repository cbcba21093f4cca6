"""The smallest models of each kind, and a batch for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_mm import trees
from big_mm.models.captioner import Captioner
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer

SIZE, PATCH, VOCAB, LENGTH, WIDTH = 16, 8, 20, 8, 16


def blocks(**options) -> Transformer:
    sizes = {"width": WIDTH, "depth": 2, "heads": 2, "mlp_dim": 32}
    return Transformer(**{**sizes, **options})


def vision(pool: str = "none", **options) -> VisionTransformer:
    layers = options.pop("blocks", None) or blocks()
    return VisionTransformer(blocks=layers, image_size=SIZE, patch_size=PATCH, pool=pool, **options)


def text(pool: str = "cls", **options) -> TextTransformer:
    layers = options.pop("blocks", None) or blocks()
    return TextTransformer(blocks=layers, vocab_size=VOCAB, max_len=LENGTH, pool=pool, **options)


def coca(layers: dict | None = None, **options) -> CoCa:
    layers = layers or {}
    return CoCa(
        image=vision(blocks=blocks(**layers)),
        text=text(blocks=blocks(**layers)),
        decoder=blocks(cross_attention=True, **layers),
        queries=3,
        **options,
    )


def captioner(**options) -> Captioner:
    decoder = text("none", blocks=blocks(cross_attention=True, width=24))
    return Captioner(image=vision(), text=decoder, **options)


def dual_encoder(**options) -> DualEncoder:
    return DualEncoder(image=vision("map"), text=text("eos"), embed_dim=12, **options)


def batch(lengths: tuple[int, ...] = (8, 5, 3), seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    rows = len(lengths)
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    return {
        "image": jnp.asarray(rng.integers(0, 256, (rows, SIZE, SIZE, 3)), jnp.uint8),
        "tokens": jnp.asarray(np.where(mask, rng.integers(5, VOCAB, mask.shape), 0), jnp.int32),
        "token_mask": jnp.asarray(mask),
    }


@functools.cache
def method(model, name: str = "__call__", mutable: tuple[str, ...] = ()):
    """A jitted `model.apply` of one method: run operation by operation, models take seconds."""
    return jax.jit(functools.partial(model.apply, method=name, mutable=list(mutable) or False))


def decode(model, variables, batch: dict[str, jax.Array], prefix: int) -> jax.Array:
    """Caption logits of every position: `prefix` tokens at once, then one by one."""
    tokens = method(model, "encode_image")(variables, batch["image"])["image_tokens"]
    _, cache = method(model, "init_cache", ("cache",))(variables, tokens)
    step = method(model, "decode_step", ("cache",))
    logits, start = [], 0
    for count in [prefix] + [1] * (LENGTH - prefix):
        out, cache = step(variables | cache, batch["tokens"][:, start : start + count])
        logits.append(out["caption_logits"])
        start += count
    return jnp.concatenate(logits, axis=1)


def variables(model, scale: float = 1.5, seed: int = 0):
    """Random parameters, none of them zero or one, so that no part of the model is idle."""
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), batch())
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf) -> jax.Array:
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("log_scale") or path.endswith("logit_bias"):
            return jnp.float32(1.0)
        if path.endswith("norm/scale"):
            return jnp.asarray(1 + 0.2 * values)
        if path.endswith("kernel"):
            return jnp.asarray(scale * values / WIDTH**0.5)
        return jnp.asarray(0.5 * values)

    flat = trees.flatten(shapes["params"])
    return {"params": trees.unflatten({k: draw(k, v) for k, v in flat.items()})}
