"""The tiny models whose outputs the peers were asked for (see `make_golden`), and their weights.

Weights and inputs are functions of their names, so that only outputs are stored, and a digest of
names and shapes.
"""

import hashlib
import json
import math
import pathlib
import zlib
from typing import Any

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden")
SIZE, VOCAB, LENGTH = 16, 20, 7
BOS, EOS = 18, 19
# The last rows: a caption that fills the length, and one with an id 0 inside it.
TOKENS = np.array(
    [
        [18, 5, 7, 19, 0, 0, 0],
        [18, 3, 19, 0, 0, 0, 0],
        [18, 1, 2, 3, 4, 5, 19],
        [18, 6, 0, 8, 9, 19, 0],
    ],
    np.int32,
)
_CAPTIONS = [[18, 5, 7, 19], [18, 3, 19], [18, 11, 2, 3, 4, 5, 19], [18, 6, 10, 8, 9, 19]]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_VISION = {"image_size": SIZE, "patch_size": 8, "layers": 2, "width": 24, "head_width": 8}
_TEXT = {"context_length": LENGTH, "vocab_size": VOCAB, "width": 16, "heads": 2, "layers": 2}
_CLIP = {"embed_dim": 12, "vision_cfg": _VISION, "text_cfg": _TEXT}
_POOL = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5}
_COCA = {
    "embed_dim": 16,
    "custom_text": True,
    "vision_cfg": {**_VISION, **_POOL, "output_tokens": True},
    "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": _TEXT,
}


def _trunk(name: str, **options: Any) -> dict[str, Any]:
    return {"image_size": SIZE, "timm_model_name": name, **options}


def _with(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A config with some keys of its sections changed, a section by its name without _cfg."""
    sections = {k: {**config[k], **changes.pop(k[:-4], {})} for k in config if k.endswith("_cfg")}
    return {**config, **sections, **changes}


def _with_text(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**config, "text_config": {**config["text_config"], **changes}}


_SIGLIP = {
    "embed_dim": 24,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": _trunk("vit_golden_patch8_siglip_16", timm_pool="map", timm_proj="none"),
    "text_cfg": {
        **_TEXT,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}


def _bert(
    kind: str, proj: str | None = "mlp", pooler: str | None = "mean_pooler", **top: Any
) -> Any:
    named = {"hf_model_name": f"golden-{kind}", "hf_model_pretrained": False}
    how = {"hf_proj_type": proj, "hf_pooler_type": pooler, "context_length": LENGTH}
    return {**_CLIP, **top, "text_cfg": {**named, **how}}


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "clip": _CLIP,
    "quick_gelu": _with(_CLIP, quick_gelu=True),
    "custom_text": _with(_CLIP, custom_text=True, nonscalar_logit_scale=True),
    # The ratio of ViT-g, whose MLP is not a multiple of the width.
    "mlp_ratio": _with(_CLIP, vision={"mlp_ratio": 4.3637}, text={"mlp_ratio": 3.7362}),
    "clipa": _with(
        _CLIP,
        vision={"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        text={"pool_type": "last", "no_causal_mask": True},
    ),
    "avg_layer_scale": _with(
        _CLIP,
        vision={"pool_type": "avg", "ls_init_value": 0.1},
        text={"pool_type": "first", "ls_init_value": 0.1, "proj_bias": True},
    ),
    "eos": _with(
        _CLIP,
        vision={"norm_kwargs": {"eps": 1e-3}, "act_kwargs": {"approximate": "tanh"}},
        text={"pool_type": "eos", "eos_id": EOS},
    ),
    "coca": _COCA,
    "coca_parallel": _with(_COCA, vision={"attentional_pool": "parallel", "width": 16}),
    "coca_cascade": _with(
        _COCA, vision={"attentional_pool": "cascade", "width": 16, "attn_pooler_queries": 256}
    ),
    "coca_pad_id": _with(_COCA, quick_gelu=True, text={"pad_id": 3}),
    "siglip": _SIGLIP,
    "siglip_i18n": _with(
        _SIGLIP, embed_dim=16, vision={"timm_proj": "linear"}, text={"proj_type": "none"}
    ),
    "registers": _with(
        _SIGLIP, vision=_trunk("vit_golden_patch8_reg4_gap_16", timm_pool="avg", timm_proj="")
    ),
    "bert": _bert("bert", embed_dim=12, proj="linear", pooler="cls_pooler"),
    "bert_alone": _bert("bert", embed_dim=16, proj=None, pooler=None),
    "roberta": _bert("roberta", embed_dim=12, quick_gelu=True),
    "biomed": {
        **_bert("bert", embed_dim=12, pooler="cls_last_hidden_state_pooler"),
        "vision_cfg": _trunk("vit_golden_patch8_16", timm_pool="", timm_proj="linear"),
    },
    "timm_clip": _with(
        _CLIP,
        custom_text=True,
        vision_cfg=_trunk("vit_golden_patch8_clip_16", timm_pool="token", timm_proj=None),
    ),
    "no_bias": _with(
        _CLIP,
        custom_text=True,
        vision_cfg=_trunk("vit_golden_patch8_gap_16", timm_pool="avg", timm_proj="linear"),
    ),
}
_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
# What the names of the tiny text towers stand for, in Hugging Face's words and in those of
# `text_towers`.
TEXT_TOWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "golden-bert": (
        {"model_type": "bert", "max_position_embeddings": 9, **_BERT},
        {"vocab_size": VOCAB, "max_len": 9},
    ),
    "golden-roberta": (
        {
            "model_type": "xlm-roberta",
            "max_position_embeddings": 12,
            "pad_token_id": 1,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            **_BERT,
        },
        {"vocab_size": VOCAB, "max_len": 10, "roberta": True},
    ),
}
TEXT_TOWERS = {name: (theirs, {"size": "golden", **o}) for name, (theirs, o) in TEXT_TOWERS.items()}
# In `variants.TOWERS`.
SIZES = {"golden": (16, 2, 2, 64)}
_HF_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "pad_token_id": 1,
}
_HF_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 8,
}
_HF_CLIP = {
    "model_type": "clip",
    "projection_dim": 12,
    "text_config": {**_HF_TEXT, "projection_dim": 12, "eos_token_id": EOS},
    "vision_config": {**_HF_VISION, "projection_dim": 12},
}
_HF_SIGLIP = {
    "model_type": "siglip",
    "text_config": {**_HF_TEXT, "projection_size": 24},
    "vision_config": _HF_VISION,
}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "clip": _HF_CLIP,
    "clip_legacy_eos": _with_text(_HF_CLIP, eos_token_id=2, hidden_act="gelu", layer_norm_eps=1e-3),
    "chinese_clip": {
        "model_type": "chinese_clip",
        "projection_dim": 12,
        "text_config": {**_HF_TEXT, "max_position_embeddings": 9, "pad_token_id": 0},
        "vision_config": {**_HF_VISION, "projection_dim": 12},
    },
    "siglip": _HF_SIGLIP,
    "siglip2": {
        **_HF_SIGLIP,
        "model_type": "siglip2",
        "vision_config": {
            **{k: v for k, v in _HF_VISION.items() if k != "image_size"},
            "num_patches": 4,
        },
    },
}
_TOWER = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 2}
_IMG = {**_TOWER, "patch_size": (8, 8), "num_heads": 4}
_TXT = {**_TOWER, "vocab_size": VOCAB}
_CAPPA = {
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 24,
    "emb_dim": 16,
    "vocab_size": VOCAB,
    "seq_len": LENGTH,
    "patches": (8, 8),
    "decoder_num_layers": 3,
    "decoder_num_heads": 2,
}
_NAFLEX = {**_TOWER, "num_heads": 4, "pool_type": "map"}
# The arguments of its models: CapPa where it has patches, else two towers.
BIG_VISION: dict[str, dict[str, Any]] = {
    "siglip": {
        "image": {**_IMG, "pool_type": "map"},
        "text": _TXT,
        "out_dim": (None, 16),
        "bias_init": -10.0,
    },
    "scan": {
        "image": {**_IMG, "pool_type": "map", "scan": True},
        "text": {**_TXT, "scan": True},
        "out_dim": (None, 16),
        "bias_init": -10.0,
    },
    "lit": {
        "image": {**_IMG, "pool_type": "tok"},
        "text": {**_TXT, "pool_type": "first"},
        "out_dim": (12, 12),
    },
    "lit_bert": {
        "image": {**_IMG, "pool_type": "tok"},
        "text": {"config": "base"},
        "text_model": "proj.flaxformer.bert",
        "out_dim": (None, 16),
        "bias_init": -2.71,
    },
    "rep_size": {
        "image": {**_IMG, "pool_type": "gap", "rep_size": 12},
        "text": _TXT,
        "out_dim": (None, 12),
    },
    "naflex": {
        "image": {**_NAFLEX, "nposemb": 2},
        "image_model": "proj.image_text.naflex_vit",
        "text": _TXT,
        "out_dim": (None, 16),
        "bias_init": -10.0,
    },
    "naflex_resized": {
        "image": {**_NAFLEX, "nposemb": 3},
        "image_model": "proj.image_text.naflex_vit",
        "text": _TXT,
        "out_dim": (None, 16),
        "bias_init": -10.0,
    },
    "cappa": {**_CAPPA, "masked_pred_prob": 0.75, "masking_ratio": 1.0, "decoder_bias": False},
    "cappa_scan": {**_CAPPA, "scan": True},
}
# What flaxformer's "base" stands for.
BERT = {
    "hidden_size": 16,
    "intermediate_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": VOCAB,
    "max_length": 9,
}
# Weights with which captions end before they are full.
SEEDS = {"coca": 177, "coca_parallel": 166, "coca_cascade": 109, "coca_pad_id": 177}
# What the names of the tiny trunks stand for, in timm's words and in those of `timm_trunks`.
_WIDTHS = {"width": 24, "depth": 2, "heads": 3, "mlp_dim": 48, "image_size": SIZE, "patch_size": 8}
TRUNKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit_golden_patch8_siglip_16": (
        {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"},
        {"pool": "map", "activation": "gelu"},
    ),
    "vit_golden_patch8_reg4_gap_16": (
        {
            "class_token": False,
            "global_pool": "avg",
            "reg_tokens": 4,
            "no_embed_class": True,
            "init_values": 1e-5,
        },
        {"pool": "avg", "registers": 4, "layer_scale": 1e-5, "fc_norm": True},
    ),
    "vit_golden_patch8_16": ({"global_pool": "token"}, {"pool": "token"}),
    "vit_golden_patch8_clip_16": (
        {"pre_norm": True, "global_pool": "token"},
        {"pool": "token", "clip": True},
    ),
    "vit_golden_patch8_gap_16": (
        {"class_token": False, "global_pool": "avg", "qkv_bias": False, "fc_norm": False},
        {"pool": "avg", "qkv_bias": False},
    ),
}
TRUNKS = {name: (theirs, {**_WIDTHS, **ours}) for name, (theirs, ours) in TRUNKS.items()}


def array(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Uniform numbers that depend on the name; around one for scales."""
    values = np.random.default_rng(zlib.crc32(name.encode()) + seed).random(shape) - 0.5
    last = name.replace("/", ".").split(".")[-1]
    is_norm = any(part in name for part in ("ln_", "norm", "Norm"))
    if last in ("logit_scale", "t"):
        return np.full(shape, 2.5, np.float32)
    if last in ("gamma", "scale") or (is_norm and last == "weight"):
        return (1 + values).astype(np.float32)
    if len(shape) < 2 or max(shape) == math.prod(shape):
        return np.float32(values)
    return (4 * values / max(shape) ** 0.5).astype(np.float32)


def weights(names: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """All weights of a model, by {name: shape}."""
    return {name: np.asarray(array(name, tuple(shape), seed)) for name, shape in names.items()}


def pad_id(config: dict[str, Any]) -> int | None:
    """By which the text tower of a config tells padding; None: it does not."""
    if "model_type" in config:
        return 0 if config["model_type"] == "chinese_clip" else None
    name = config["text_cfg"].get("hf_model_name")
    return None if name is None else TEXT_TOWERS[name][0].get("pad_token_id", 0)


def padded(pad_id: int) -> np.ndarray:
    """[4, length] int32: captions that hold no padding, which is told by its id."""
    rows = [row + [pad_id] * (LENGTH - len(row)) for row in _CAPTIONS]
    return np.array(rows, np.int32)


def images() -> np.ndarray:
    """[4, size, size, 3] uint8."""
    return (np.random.default_rng(0).random((4, SIZE, SIZE, 3)) * 256).astype(np.uint8)


def pixels(mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    """The same as PyTorch models take them: [4, 3, size, size] float32, normalised."""
    scaled = (images() / 255 - np.array(mean)) / np.array(std)
    return scaled.astype(np.float32).transpose(0, 3, 1, 2)


def digest(names: dict[str, Any]) -> str:
    """Of the names and shapes of all weights, which are too many to be stored."""
    listed = sorted((name, list(shape)) for name, shape in names.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def golden(family: str) -> dict[str, Any]:
    """What the peers computed: {"made_with": versions, "cases": {name: ...}}."""
    return json.loads((GOLDEN / f"{family}.json").read_text())
