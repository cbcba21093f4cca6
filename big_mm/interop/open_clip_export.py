"""The config from which open_clip builds a model of ours, where it can express it."""

import math
from typing import Any

from big_mm.interop import tables, text_towers, timm_trunks
from big_mm.interop.open_clip import EPSILON
from big_mm.interop.open_clip_table import layout_of
from big_mm.interop.settings import differ
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.spec import UserError

_ACTIVATIONS: dict[str, dict[str, Any]] = {
    "gelu_exact": {},
    "gelu": {"act_kwargs": {"approximate": "tanh"}},
}


def config_of(model: Any, eos_id: int | None = None) -> dict[str, Any]:
    """The config (`model_cfg`) that makes open_clip build a model of ours.

    Args:
      eos_id: the tokenizer's, for a text tower that is read at the end of the caption.

    Raises:
      UserError: open_clip cannot express it; says what would have to be otherwise.
    """
    if not isinstance(model, (DualEncoder, CoCa)):
        raise UserError(f"open_clip has no model like {type(model).__name__}")
    if isinstance(model, CoCa):
        wrong = _wrong_coca(model)
    else:
        wrong = _wrong_dual_encoder(model, eos_id)
    if wrong:
        raise UserError("open_clip cannot express this model: " + "; ".join(wrong))
    bert = tables.is_bert(model.text)
    own = (model.image.blocks,) if bert else (model.image.blocks, model.text.blocks)
    quick = "quick_gelu" in (blocks.activation for blocks in own)
    config: dict[str, Any] = {"embed_dim": model.embed_dim}
    config |= {"quick_gelu": True} if quick else {}
    config["vision_cfg"] = _vision_config(model, quick)
    text = _bert_config(model) if bert else _text_config(model.text, quick, eos_id)
    config["text_cfg"] = text
    if isinstance(model, CoCa):
        return config | _coca_config(model, config)
    if layout_of(model).prefix:
        config["custom_text"] = True
    if model.logit_bias is not None:
        config["init_logit_bias"] = model.logit_bias
    if bert:
        return config
    text_bias = model.text_projection_bias
    if model.projection_bias if text_bias is None else text_bias:
        config["text_cfg"]["proj_bias"] = True
    if not model.text_projection:
        config["text_cfg"]["proj_type"] = "none"
    return config


def _wrong_blocks(name: str, blocks: Transformer) -> list[str]:
    needed = {"use_bias": True, "norm_bias": True, "cross_attention": False, "self_mlp": False}
    wrong = differ(name, blocks, needed)
    if tables.block_biases(blocks)[1] is False:
        wrong.append(f"{name}.out_bias=False (needs True)")
    return wrong


def _wrong_towers(model: DualEncoder | CoCa) -> list[str]:
    wrong = _wrong_blocks("image.blocks", model.image.blocks)
    wrong += _wrong_blocks("text.blocks", model.text.blocks)
    wrong += differ("image.blocks", model.image.blocks, {"norm": "pre"})
    wrong += differ("image", model.image, {"position": "learned", "position_grid": 0})
    wrong += differ("image", model.image, {"rep_size": 0})
    if not tables.is_bert(model.text):
        own = {"token_types": 0, "position_offset": 0, "rep_size": 0}
        wrong += differ("text", model.text, own)
    if tables.block_biases(model.text.blocks)[0] is False:
        wrong.append("text.blocks.qkv_bias=False (needs True)")
    return wrong


def _wrong_dual_encoder(model: DualEncoder, eos_id: int | None) -> list[str]:
    wrong, text = _wrong_towers(model), model.text
    if tables.is_bert(text):
        return wrong + _wrong_bert(model)
    wrong += differ("model", model, {"text_projection_hidden": 0})
    if text.pool not in ("argmax", "eos", "first", "last"):
        wrong.append(f"text.pool={text.pool!r} (needs 'argmax', 'eos', 'first' or 'last')")
    if text.pool == "eos" and text.eos_id is None and eos_id is None:
        wrong.append("text.pool='eos' without eos_id or tokenizer (needs one of them)")
    if not text.causal and text.mask_padding:
        wrong.append("text.mask_padding=True (its towers that are not causal read their padding)")
    return wrong


def _wrong_bert(model: DualEncoder) -> list[str]:
    wrong, text = [], model.text
    if text.pool not in ("first", "mean"):
        wrong.append(f"text.pool={text.pool!r} (needs 'first' or 'mean')")
    if text.rep_size not in (0, text.blocks.width if text.pool == "first" else 0):
        wrong.append(f"text.rep_size={text.rep_size} (needs 0, or text's width with pool='first')")
    hidden = (text.blocks.width + model.embed_dim) // 2
    if model.text_projection_hidden not in (0, hidden):
        wrong.append(f"text_projection_hidden={model.text_projection_hidden} (needs 0 or {hidden})")
    bias = model.text_projection_bias
    if model.text_projection and (model.projection_bias if bias is None else bias):
        wrong.append("text_projection_bias=True (needs False)")
    return wrong


def _wrong_coca(model: CoCa) -> list[str]:
    wrong, decoder = _wrong_towers(model), model.decoder
    for name, blocks in (("text.blocks", model.text.blocks), ("decoder", decoder)):
        wrong += differ(name, blocks, {"norm": "pre"})
    norms = ("query", "output") if model.pooling == "shared" else ("query", "context")
    needed = [
        ("image", model.image, {"cls_token": True, "patch_bias": False, "registers": 0}),
        ("image", model.image, {"cls_position": True}),
        ("decoder", decoder, {"self_mlp": True, "context_norm": True, "norm_eps": EPSILON}),
        ("decoder", decoder, {"use_bias": True, "norm_bias": True, "mlp_dim": 4 * decoder.width}),
        ("model", model, {"pooler_norms": norms, "tie_embeddings": False, "legacy": True}),
    ]
    if model.pooling == "shared":
        needed.append(("image.blocks", model.image.blocks, {"norm_eps": EPSILON}))
    elif model.image.blocks.width != decoder.width:
        wrong.append(f"image.blocks.width={model.image.blocks.width} (needs {decoder.width})")
    for name, part, values in needed:
        wrong += differ(name, part, values)
    quick = "quick_gelu" in (model.image.blocks.activation, model.text.blocks.activation)
    if decoder.activation != (activation := "quick_gelu" if quick else "gelu_exact"):
        wrong.append(f"decoder.activation={decoder.activation!r} (needs {activation!r})")
    if model.embed_dim != decoder.width:
        wrong.append(f"embed_dim={model.embed_dim} (needs the decoder's width {decoder.width})")
    return wrong


def _vision_config(model: DualEncoder | CoCa, quick: bool) -> dict[str, Any]:
    image = model.image
    if layout_of(model).trunk_head is not None:
        name, known = timm_trunks.name_of(image), timm_trunks.TRUNKS
        made = {"timm_model_name": name, "timm_model_pretrained": False}
        made |= {"timm_pool": known[name].pool, "image_size": image.image_size}
        if not model.image_projection:
            return made | {"timm_proj": "none"}
        return made | {"timm_proj": "" if model.projection_bias else "linear"}
    blocks = image.blocks
    made = {
        "image_size": image.image_size,
        "patch_size": image.patch_size,
        "head_width": blocks.width // blocks.heads,
        **_blocks_config(blocks, quick),
    }
    made |= {} if image.pre_norm else {"no_ln_pre": True}
    made |= {"pool_type": "avg"} if image.pool == "gap" else {}
    return made | ({"final_ln_after_pool": True} if image.norm_after_pool else {})


def _text_config(text: TextTransformer, quick: bool, eos_id: int | None) -> dict[str, Any]:
    made = {
        "context_length": text.max_len,
        "vocab_size": text.vocab_size,
        "heads": text.blocks.heads,
        **_blocks_config(text.blocks, quick),
    }
    made |= {} if text.causal else {"no_causal_mask": True}
    made |= {} if text.pool in ("argmax", "cls") else {"pool_type": text.pool}
    if text.pool == "eos":
        made["eos_id"] = eos_id if text.eos_id is None else text.eos_id
    return made


def _bert_config(model: DualEncoder) -> dict[str, Any]:
    text, projection = model.text, "mlp" if model.text_projection_hidden else "linear"
    first = "cls_pooler" if text.rep_size else "cls_last_hidden_state_pooler"
    return {
        "hf_model_name": text_towers.name_of(text),
        "hf_model_pretrained": False,
        "hf_proj_type": projection if model.text_projection else None,
        "hf_pooler_type": "mean_pooler" if text.pool == "mean" else first,
    }


def _coca_config(model: CoCa, config: dict[str, Any]) -> dict[str, Any]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    vision |= {"attentional_pool": True if model.pooling == "shared" else model.pooling}
    vision |= {"attn_pooler_queries": model.queries, "output_tokens": True}
    vision["attn_pooler_heads"] = model.pooler_heads or model.decoder.heads
    text |= {"embed_cls": True, "output_tokens": True}
    text |= {"pad_id": model.pad_id} if model.pad_id else {}
    decoder = {
        "context_length": model.text.max_len,
        "vocab_size": model.text.vocab_size,
        "width": model.decoder.width,
        "heads": model.decoder.heads,
        "layers": model.decoder.depth,
    }
    if model.decoder.layer_scale:
        decoder["ls_init_value"] = model.decoder.layer_scale
    return {"multimodal_cfg": decoder, "custom_text": True}


def _blocks_config(blocks: Transformer, quick: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"width": blocks.width, "layers": blocks.depth}
    if blocks.mlp_dim != 4 * blocks.width:
        made["mlp_ratio"] = _ratio(blocks.mlp_dim, blocks.width)
    if blocks.norm_eps != EPSILON:
        made["norm_kwargs"] = {"eps": blocks.norm_eps}
    if blocks.layer_scale:
        made["ls_init_value"] = blocks.layer_scale
    if quick and blocks.activation != "quick_gelu":
        raise UserError(
            "open_clip cannot express this model: one tower is quick_gelu, the other "
            f"{blocks.activation}"
        )
    return made if quick else made | _ACTIVATIONS[blocks.activation]


def _ratio(mlp_dim: int, width: int) -> float:
    """A short number that times the width, cut to an integer, is `mlp_dim`."""
    for digits in (1, 2, 4, 6):
        up = math.ceil(mlp_dim / width * 10**digits) / 10**digits
        if int(width * up) == mlp_dim:
            return up
    return (mlp_dim + 0.5) / width
