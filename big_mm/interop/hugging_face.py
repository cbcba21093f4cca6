"""Hugging Face's CLIP, Chinese CLIP (whose text tower is BERT), SigLIP and SigLIP 2: their configs
as specs of ours, and back; the names.

SigLIP 2 of a fixed resolution is SigLIP to it. The other kind (model_type "siglip2", which takes
pictures of any aspect ratio) is read as a model of square pictures at its own grid of positions,
where it is the same function.
"""

import math
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from big_mm.interop import tables
from big_mm.interop.mapping import ONE_AXIS, Entry, patches
from big_mm.interop.settings import Settings, differ, nearest
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

Config = ml_collections.ConfigDict
MODEL_TYPES = ("clip", "chinese_clip", "siglip", "siglip2")
# The index of positions, which older versions saved.
IGNORED = (r".*\.position_ids",)
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu_exact",
    "gelu_python": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
}
_WRITTEN = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
# Its defaults, where a config says nothing: width, MLP, layers, heads.
_SIZES = {
    ("clip", "text"): (512, 2048, 12, 8),
    ("clip", "vision"): (768, 3072, 12, 12),
    ("bert", "text"): (768, 3072, 12, 12),
    ("siglip", "text"): (768, 3072, 12, 12),
    ("siglip", "vision"): (768, 3072, 12, 12),
}
# Its activation and the norms' epsilon.
_DEFAULTS = {
    "clip": ("quick_gelu", 1e-5),
    "bert": ("gelu", 1e-12),
    "siglip": ("gelu_pytorch_tanh", 1e-6),
}


def model_spec(config: Mapping[str, Any], source: str) -> Config:
    """The spec of our model for a config.json.

    Raises:
      UserError: another model_type, or a setting that our models cannot have.
    """
    top = Settings(config, source)
    kind = top.need("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{source}.model_type={kind!r} is not supported{nearest(str(kind), MODEL_TYPES)}"
        )
    text, vision = (_section(top, name) for name in ("text", "vision"))
    if "siglip" in kind:
        return _siglip(kind, text, vision)
    return spec(
        DualEncoder,
        image=_vision("clip", vision, image_size=vision.get("image_size", 224), pool="cls"),
        text=_bert(text) if kind == "chinese_clip" else _clip_text(text),
        embed_dim=top.get("projection_dim", 512),
    )


def _section(top: Settings, name: str) -> Settings:
    # Old configs have it twice, and the second one counts.
    old = top.get(f"{name}_config_dict")
    return top.section(f"{name}_config" if old is None else f"{name}_config_dict")


def _clip_text(text: Settings) -> Config:
    # Before its release 4.31 every CLIP said 2, which no tokenizer of CLIP has.
    eos_id = text.get("eos_token_id", 49_407)
    return spec(
        TextTransformer,
        blocks=_blocks("clip", "text", text),
        vocab_size=text.get("vocab_size", 49_408),
        max_len=text.get("max_position_embeddings", 77),
        **({"pool": "argmax"} if eos_id == 2 else {"pool": "eos", "eos_id": eos_id}),
    )


def _bert(text: Settings) -> Config:
    text.only("position_embedding_type", "absolute")
    blocks = _blocks("bert", "text", text)
    blocks.norm = "post"
    return spec(
        TextTransformer,
        blocks=blocks,
        vocab_size=text.get("vocab_size", 30_522),
        max_len=text.get("max_position_embeddings", 512),
        causal=False,
        pool="first",
        token_types=text.get("type_vocab_size", 2),
    )


def _siglip(kind: str, text: Settings, vision: Settings) -> Config:
    vision.only("vision_use_head", True)
    patch = vision.get("patch_size", 16)
    side = vision.get("image_size", 224)
    if kind == "siglip2":
        side = patch * math.isqrt(vision.get("num_patches", 256))
        logging.warning(
            "this SigLIP 2 takes pictures of any aspect ratio; here it takes squares of %d pixels",
            side,
        )
    blocks = _blocks("siglip", "text", text)
    width = vision.get("hidden_size", 768)
    if text.get("projection_size", blocks["width"]) != width:
        raise UserError(
            f"{text.where}.projection_size={text.get('projection_size', blocks['width'])} is not "
            f"{vision.where}.hidden_size={width}"
        )
    return spec(
        DualEncoder,
        image=_vision("siglip", vision, image_size=side, pool="map"),
        text=spec(
            TextTransformer,
            blocks=blocks,
            vocab_size=text.get("vocab_size", 32_000),
            max_len=text.get("max_position_embeddings", 64),
            causal=False,
            mask_padding=False,
            pool="last",
        ),
        embed_dim=width,
        image_projection=False,
        projection_bias=True,
        log_scale=math.log(10),
        logit_bias=-10.0,
    )


def _vision(kind: str, section: Settings, *, image_size: int, pool: str) -> Config:
    section.only("num_channels", 3)
    clip = kind == "clip"
    patch = section.get("patch_size", 32 if clip else 16)
    return spec(
        VisionTransformer,
        blocks=_blocks(kind, "vision", section),
        image_size=image_size,
        patch_size=patch,
        ragged=image_size % patch > 0,
        pool=pool,
        pre_norm=clip,
        patch_bias=not clip,
    )


def _blocks(kind: str, tower: str, section: Settings) -> Config:
    width, mlp_dim, depth, heads = _SIZES[kind, tower]
    default, epsilon = _DEFAULTS[kind]
    return spec(
        Transformer,
        width=section.get("hidden_size", width),
        depth=section.get("num_hidden_layers", depth),
        heads=section.get("num_attention_heads", heads),
        mlp_dim=section.get("intermediate_size", mlp_dim),
        activation=_ACTIVATIONS[
            section.only("hidden_act", default, *(_ACTIVATIONS.keys() - {default}))
        ],
        norm_eps=section.get("layer_norm_eps", epsilon),
    )


def table(model: DualEncoder, *, linear_patches: bool = False) -> list[Entry]:
    """The table of a model.

    Args:
      linear_patches: the patch embedding is a linear layer (model_type "siglip2").
    """
    make, vision, text = tables.Maker(), "vision_model.", "text_model."
    image, clip = model.image, model.image.pool == "cls"
    scalar = {} if clip else {"codec": ONE_AXIS}
    layers, names = "encoder.layers.{}.", tables.HUGGING_FACE
    entries = [
        *make.one("image/position_embedding", f"{vision}embeddings.position_embedding.weight"),
        *tables.stack("image/blocks", vision + layers, image.blocks, names),
        *make.norm("image/norm", f"{vision}post_layernorm"),
        *make.one("temperature/log_scale", "logit_scale", **scalar),
    ]
    if tables.is_bert(model.text):
        entries += tables.bert(text, model.text)
    else:
        entries += [
            *make.one("text/embedding", f"{text}embeddings.token_embedding.weight"),
            *make.one("text/position_embedding", f"{text}embeddings.position_embedding.weight"),
            *tables.stack("text/blocks", text + layers, model.text.blocks, names),
            *make.norm("text/norm", f"{text}final_layer_norm"),
        ]
    patch = f"{vision}embeddings.patch_embedding"
    if linear_patches:
        entries += make.dense("image/patch", patch)
    else:
        entries += make.one("image/patch/kernel", f"{patch}.weight", patches(image.patch_size))
        entries += make.one("image/patch/bias", f"{patch}.bias") if image.patch_bias else []
    if clip:
        return [
            *entries,
            *make.one("image/cls", f"{vision}embeddings.class_embedding"),
            *make.norm("image/pre_norm", f"{vision}pre_layrnorm"),
            *make.dense("image_head", "visual_projection", bias=False),
            *make.dense("text_head", "text_projection", bias=False),
        ]
    head = f"{vision}head."
    mlp = (f"{head}mlp.fc1", f"{head}mlp.fc2")
    attention = tables.fused(f"{head}attention.")
    return [
        *entries,
        *make.one("image/pooler/query", f"{head}probe", ONE_AXIS),
        *tables.map_pooler("image/pooler", make, attention, f"{head}layernorm", mlp),
        *make.dense("text_head", f"{text}head"),
        *make.one("logit_bias", "logit_bias", ONE_AXIS),
    ]


def config_of(model: Any, eos_id: int | None = None) -> dict[str, Any]:
    """The config.json of a model of ours.

    Args:
      eos_id: the tokenizer's, for a text tower that is read at the end of the caption.

    Raises:
      UserError: Hugging Face's CLIP, Chinese CLIP and SigLIP cannot express it; says what would
        have to be otherwise.
    """
    if not isinstance(model, DualEncoder):
        raise UserError(f"Hugging Face has no model like {type(model).__name__}")
    bert = tables.is_bert(model.text)
    kind = "siglip" if model.image.pool == "map" else "chinese_clip" if bert else "clip"
    if wrong := _wrong(model, kind, eos_id):
        raise UserError(f"Hugging Face's {kind} cannot express this model: " + "; ".join(wrong))
    text, image = model.text, model.image
    says = {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_len,
        **_written(text.blocks),
    }
    sees = {"image_size": image.image_size, "patch_size": image.patch_size}
    sees |= _written(image.blocks)
    config: dict[str, Any] = {"model_type": kind, "text_config": says, "vision_config": sees}
    if kind == "siglip":
        says["projection_size"] = model.embed_dim
        return config | {"architectures": ["SiglipModel"]}
    if bert:
        says["type_vocab_size"] = text.token_types
    else:
        says["eos_token_id"] = 2 if text.pool == "argmax" else text.eos_id or eos_id
    for section in (config, says, sees):
        section["projection_dim"] = model.embed_dim
    return config | {"architectures": ["ChineseCLIPModel" if bert else "CLIPModel"]}


def _written(blocks: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp_dim,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.heads,
        "hidden_act": _WRITTEN[blocks.activation],
        "layer_norm_eps": blocks.norm_eps,
    }


def _wrong(model: DualEncoder, kind: str, eos_id: int | None) -> list[str]:
    """What would have to be otherwise."""
    clip, bert = kind != "siglip", kind == "chinese_clip"
    text_bias = model.text_projection_bias
    biased = model.projection_bias if text_bias is None else text_bias
    blocks = {"use_bias": True, "norm_bias": True, "layer_scale": 0.0, "cross_attention": False}
    vision = {"position": "learned", "cls_position": True, "registers": 0, "pool": "cls"}
    vision |= {"norm_after_pool": False, "pre_norm": clip, "patch_bias": not clip}
    vision |= {"position_grid": 0, "rep_size": 0}
    vision |= {} if clip else {"cls_token": False, "pool": "map"}
    needed = [
        ("image.blocks", model.image.blocks, blocks | {"norm": "pre"}),
        ("text.blocks", model.text.blocks, blocks | {"norm": "post" if bert else "pre"}),
        ("image", model.image, vision),
        ("text", model.text, {"causal": kind == "clip", "position_offset": 0, "rep_size": 0}),
        ("text", model.text, {} if bert else {"token_types": 0}),
        ("model", model, {"image_projection": clip, "text_projection": True}),
        ("model", model, {"text_projection_hidden": 0}),
    ]
    wrong = [text for entry in needed for text in differ(*entry)]
    for name, part in (("image", model.image.blocks), ("text", model.text.blocks)):
        if tables.block_biases(part) != (True, True):
            wrong.append(f"{name}.blocks.qkv_bias or out_bias=False (needs True)")
    if biased == clip or (clip and model.projection_bias):
        wrong.append(f"projection_bias={biased} (needs {not clip})")
    if (model.logit_bias is None) != clip:
        wrong.append(f"logit_bias={model.logit_bias} (needs {'none' if clip else 'one'})")
    pools = {"clip": ("argmax", "eos"), "chinese_clip": ("first",), "siglip": ("last",)}[kind]
    if model.text.pool not in pools:
        wrong.append(f"text.pool={model.text.pool!r} (needs {pools[0]!r})")
    if bert and not (model.text.token_types and model.text.mask_padding):
        wrong.append("text.token_types=0 or mask_padding=False (needs 2, True)")
    if model.text.pool == "eos" and model.text.eos_id is None and eos_id is None:
        wrong.append("text.pool='eos' without eos_id or tokenizer (needs one of them)")
    if not clip and model.text.mask_padding:
        wrong.append("text.mask_padding=True (its text towers read their padding)")
    return wrong
