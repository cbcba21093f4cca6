"""What beside its parameters describes a model of ours to big_vision, where that can express it."""

from typing import Any

from big_mm.interop import tables
from big_mm.interop.big_vision import TEXT_POOLS
from big_mm.interop.inputs import HALF
from big_mm.interop.settings import differ
from big_mm.models.captioner import Captioner
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError

_POOLS = {"cls": "tok", "gap": "gap", "map": "map"}
_BLOCKS: dict[str, Any] = {
    "activation": "gelu",
    "norm": "pre",
    "norm_eps": 1e-6,
    "layer_scale": 0.0,
    "self_mlp": False,
    "context_norm": False,
    "cross_attention": False,
}
_BIASED = {"use_bias": True, "norm_bias": True}
_TEXT = {"position_offset": 0, "rep_size": 0}


def config_of(model: Any, max_len: int) -> dict[str, Any]:
    """What the shapes of a model's parameters do not say, as `big_vision.find` takes it.

    Args:
      max_len: tokens of a text, the contract's.

    Raises:
      UserError: big_vision cannot express the model; says what would have to be otherwise.
    """
    if not isinstance(model, (DualEncoder, Captioner)):
        raise UserError(f"big_vision has no model like {type(model).__name__}")
    two_towers = isinstance(model, DualEncoder)
    wrong = _wrong_image(model.image)
    wrong += _wrong_two_towers(model) if two_towers else _wrong_captioner(model)
    if wrong:
        raise UserError("big_vision cannot express this model: " + "; ".join(wrong))
    if not two_towers:
        return {}
    image, text = model.image, model.text
    img: dict[str, Any] = {"image_size": image.image_size, "pool_type": _POOLS[image.pool]}
    if tables.is_bert(text):
        return {"img": img, "txt": {"num_heads": text.blocks.heads, "token_len": max_len}}
    return {"img": img, "txt": {"pool_type": text.pool}}


def _wrong_blocks(name: str, blocks: Transformer, **needed: Any) -> list[str]:
    wrong = differ(name, blocks, _BLOCKS | _BIASED | needed)
    if tables.block_biases(blocks) != (True, True):
        wrong.append(f"{name}.qkv_bias or out_bias=False (needs True)")
    return wrong


def _wrong_image(image: VisionTransformer) -> list[str]:
    needed = {"position": "learned", "registers": 0, "norm_after_pool": False, "pre_norm": False}
    needed |= {"patch_bias": True, "mean": HALF, "std": HALF}
    if image.position_grid:
        needed |= {"cls_token": False, "ragged": False}
    wrong = _wrong_blocks("image.blocks", image.blocks) + differ("image", image, needed)
    if image.position_grid and image.pool == "cls":
        wrong.append("image.pool='cls' (needs 'gap' or 'map', as image.position_grid is not 0)")
    if image.cls_token and image.pool in ("gap", "map"):
        wrong.append(f"image.cls_token=True (needs False, as image.pool={image.pool!r})")
    return wrong


def _wrong_two_towers(model: DualEncoder) -> list[str]:
    wrong = _wrong_bert(model.text) if tables.is_bert(model.text) else _wrong_text(model.text)
    wrong += differ("model", model, {"text_projection_hidden": 0})
    image_bias, text_bias = model.projection_bias, model.text_projection_bias
    if model.image_projection and not image_bias:
        wrong.append("projection_bias=False (needs True)")
    if model.text_projection and not (image_bias if text_bias is None else text_bias):
        wrong.append("text_projection_bias=False (needs True)")
    return wrong


def _wrong_text(text: TextTransformer) -> list[str]:
    needed = _TEXT | {"causal": False, "mask_padding": False, "token_types": 0}
    wrong = _wrong_blocks("text.blocks", text.blocks) + differ("text", text, needed)
    # Its mean is of padding too, and only towers that read padding are for that.
    if text.pool not in TEXT_POOLS:
        wrong.append(f"text.pool={text.pool!r} (needs 'last', 'first' or 'mean')")
    return wrong


def _wrong_bert(text: TextTransformer) -> list[str]:
    blocks = _wrong_blocks("text.blocks", text.blocks, norm="post", norm_eps=1e-12)
    needed = _TEXT | {"causal": False, "mask_padding": True, "pool": "first"}
    wrong = blocks + differ("text", text, needed)
    if not text.token_types:
        wrong.append("text.token_types=0 (needs 2, as BERT has)")
    return wrong


def _wrong_captioner(model: Captioner) -> list[str]:
    image, text = model.image, model.text
    blocks = _BLOCKS | {"cross_attention": True, "qkv_bias": False, "out_bias": False}
    blocks |= {"norm_bias": text.blocks.use_bias}
    needed: dict[str, Any] = {"pool": "none", "ragged": False, "position_grid": 0}
    return [
        *differ("image", image, needed),
        *differ("text.blocks", text.blocks, blocks),
        *differ("text", text, _TEXT | {"token_types": 0}),
        *differ("model", model, {"tie_embeddings": False, "head_bias": True}),
    ]
