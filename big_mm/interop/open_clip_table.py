"""What open_clip calls the weights of our models."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

from big_mm.interop import tables, timm_trunks
from big_mm.interop.mapping import ONE_AXIS, Entry, patches
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer

# Buffers of older versions, and what OpenAI's files hold beside the weights.
IGNORED = (
    r"(text\.|text_decoder\.)?attn_mask",
    r"text\.(transformer\.embeddings\.)?position_ids",
    r"input_resolution|context_length|vocab_size",
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a config leaves open about the names.

    Attributes:
      prefix: of the text tower: "text." or, in open_clip's class CLIP, nothing.
      trunk_head: the projection of a tower from timm: "head.proj", or "trunk.head" where it is the
        trunk's own classifier; None for open_clip's own towers.
      scalar: the temperature and its bias are scalars, or vectors of length one.
    """

    prefix: str
    trunk_head: str | None = None
    scalar: bool = True


def layout(config: Mapping[str, Any], names: Container[str]) -> Layout:
    """How a file with these names is laid out."""
    vision, coca = config.get("vision_cfg", {}), config.get("multimodal_cfg") is not None
    bert = config.get("text_cfg", {}).get("hf_model_name") is not None
    trunk_head = "head.proj" if vision.get("timm_proj") == "linear" else "trunk.head"
    return Layout(
        prefix="text." if coca or bert or "text.token_embedding.weight" in names else "",
        trunk_head=trunk_head if vision.get("timm_model_name") else None,
        scalar=not config.get("nonscalar_logit_scale", False),
    )


def layout_of(model: DualEncoder | CoCa) -> Layout:
    """The layout that a model of ours is written in."""
    if isinstance(model, CoCa):
        return Layout("text.")
    image = model.image
    has_cls = image.cls_token or image.pool == "cls"
    own = has_cls and image.cls_position and not (image.registers or image.patch_bias)
    own &= image.pool != "map" and image.blocks.qkv_bias is not False
    if own and model.image_projection and not model.projection_bias:
        return Layout("text." if tables.is_bert(model.text) else "")
    return Layout("text.", "trunk.head" if model.projection_bias else "head.proj")


def table(model: DualEncoder | CoCa, layout: Layout) -> list[Entry]:
    """The table of a model."""
    make, coca = tables.Maker(), isinstance(model, CoCa)
    shape = {} if layout.scalar else {"codec": ONE_AXIS}
    bert, text = tables.is_bert(model.text), f"{layout.prefix}transformer."
    entries = tables.bert(text, model.text) if bert else _text(model.text, layout.prefix)
    entries += make.one("temperature/log_scale", "logit_scale", **shape)
    if layout.trunk_head is not None:
        entries += timm_trunks.table("image", "visual.trunk.", model.image)
    else:
        # Where one pooler serves all, the tower's final norm is the pooler's norm of its context.
        shared = coca and model.pooling == "shared"
        entries += _vision(model.image, "attn_pool.ln_k" if shared else "ln_post")
    if coca:
        return entries + _coca(model)
    image_bias, text_bias = model.projection_bias, model.text_projection_bias
    if model.image_projection and layout.trunk_head is not None:
        entries += make.dense("image_head", f"visual.{layout.trunk_head}", image_bias)
    elif model.image_projection:
        entries += make.one("image_head/kernel", "visual.proj")
    if model.text_projection and bert:
        proj = f"{layout.prefix}proj"
        if model.text_projection_hidden:
            entries += make.mlp("text_head", (f"{proj}.0", f"{proj}.2"), bias=False)
        else:
            entries += make.dense("text_head", proj, bias=False)
    elif model.text_projection:
        biased = image_bias if text_bias is None else text_bias
        entries += _text_projection("text_head", layout.prefix, biased)
    if model.logit_bias is not None:
        entries += make.one("logit_bias", "logit_bias", **shape)
    return entries


def _text_projection(ours: str, prefix: str, bias: bool) -> list[Entry]:
    make, name = tables.Maker(), f"{prefix}text_projection"
    return make.dense(ours, name) if bias else make.one(f"{ours}/kernel", name)


def _text(text: TextTransformer, prefix: str) -> list[Entry]:
    make = tables.Maker()
    entries = [
        *make.one("text/embedding", f"{prefix}token_embedding.weight"),
        *make.one("text/position_embedding", f"{prefix}positional_embedding"),
        *make.norm("text/norm", f"{prefix}ln_final"),
        *tables.stack(
            "text/blocks", f"{prefix}transformer.resblocks.{{}}.", text.blocks, tables.OPEN_CLIP
        ),
    ]
    if text.pool == "cls":
        entries += make.one("text/cls", f"{prefix}cls_emb")
    return entries


def _vision(image: VisionTransformer, norm: str) -> list[Entry]:
    make, resblocks = tables.Maker(), "visual.transformer.resblocks.{}."
    entries = [
        *make.one("image/patch/kernel", "visual.conv1.weight", patches(image.patch_size)),
        *make.one("image/cls", "visual.class_embedding"),
        *make.one("image/position_embedding", "visual.positional_embedding"),
        *make.norm("image/norm", f"visual.{norm}"),
        *tables.stack("image/blocks", resblocks, image.blocks, tables.OPEN_CLIP),
    ]
    return [*entries, *make.norm("image/pre_norm", "visual.ln_pre")] if image.pre_norm else entries


def _coca(model: CoCa) -> list[Entry]:
    make = tables.Maker()
    one_width = model.image.blocks.width == model.decoder.width
    attention = (tables.fused if one_width else tables.separate)("attn.")
    entries = [
        *_pooler(model, "pooler", "visual.attn_pool.", attention),
        *make.one("image_projection/kernel", "visual.proj"),
        *make.one("text_projection/kernel", "text.text_projection"),
        *tables.stack(
            "decoder",
            "text_decoder.resblocks.{}.",
            model.decoder,
            tables.OPEN_CLIP,
            mlp="self_mlp",
        ),
        *_cross("decoder/layers", "text_decoder.cross_attn.{}.", model.decoder),
        *make.norm("norm", "text_decoder.ln_final"),
        *make.one("caption_head/kernel", "text_decoder.text_projection"),
    ]
    if model.pooling == "shared":
        return [*entries, *make.norm("pooler/norm", "visual.ln_post")]
    contrastive = "visual.attn_pool_contrastive."
    return [*entries, *_pooler(model, "contrastive_pooler", contrastive, tables.fused("attn."))]


def _pooler(model: CoCa, ours: str, theirs: str, names: tables.Attention) -> list[Entry]:
    make = tables.Maker()
    entries = [
        *make.one(f"{ours}/query", f"{theirs}query"),
        *make.norm(f"{ours}/query_norm", f"{theirs}ln_q"),
        *make.attention(f"{ours}/attention", names, theirs, cross=True),
    ]
    if "context" in model.pooler_norms:
        entries += make.norm(f"{ours}/context_norm", f"{theirs}ln_k")
    return entries


def _cross(ours: str, theirs: str, decoder: Transformer) -> list[Entry]:
    """The other half of the decoder's blocks, each one of its own there."""
    make, names = tables.Maker(depth=decoder.depth), tables.OPEN_CLIP
    up, down = names.mlp
    entries = [
        *make.norm(f"{ours}/cross_attention_norm", f"{theirs}ln_1"),
        *make.norm(f"{ours}/context_norm", f"{theirs}ln_1_kv"),
        *make.attention(f"{ours}/cross_attention", names.attention, theirs, cross=True),
        *make.norm(f"{ours}/mlp_norm", f"{theirs}ln_2"),
        *make.mlp(f"{ours}/mlp", (theirs + up, theirs + down)),
    ]
    if decoder.layer_scale:
        for name, scale in zip(("cross_attention", "mlp"), names.scales, strict=True):
            entries += make.one(f"{ours}/{name}_layer_scale", theirs + scale)
    return entries
