"""open_clip's models (its release 3.3): their configs as specs of ours.

CLIP with open_clip's own towers, plain vision transformers of timm (SigLIP, SigLIP 2 and others),
BERT and RoBERTa of Hugging Face; and CoCa. The names of the weights are in `open_clip_table`, the
way back in `open_clip_export`.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from big_mm.interop import text_towers, timm_trunks
from big_mm.interop.settings import Settings
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

Config = ml_collections.ConfigDict
# Of its poolers and of CoCa's decoder, whatever the config says.
EPSILON = 1e-5
# Experiments of blocks that no published model uses.
_CUSTOM_BLOCKS = (
    "qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc".split()
)
_POOLS = {"tok": "cls", "avg": "gap"}
_TEXT_POOLS = ("argmax", "first", "last", "eos")
_BERT_POOLS = {
    "mean_pooler": "mean",
    "cls_pooler": "first",
    "cls_last_hidden_state_pooler": "first",
}


def model_spec(config: Mapping[str, Any], source: str) -> Config:
    """The spec of our model for an open_clip config (`model_cfg` of its open_clip_config.json).

    Raises:
      UserError: a setting that is unknown, or a value that our models cannot have; names both and
        what is supported.
    """
    top = Settings(config, source)
    embed_dim, quick = top.need("embed_dim"), top.only("quick_gelu", False, True)
    vision, text = top.section("vision_cfg"), top.section("text_cfg")
    top.without_effect(
        "custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype"
    )
    bias = top.get("init_logit_bias")
    if top.get("multimodal_cfg") is not None:
        if bias is not None:
            raise UserError(f"{source}.init_logit_bias={bias!r} is not supported in a CoCa")
        made = _coca(top, vision, text, embed_dim, quick)
    else:
        made = _clip(vision, text, embed_dim, quick)
        made.logit_bias = None if bias is None else float(bias)
    for section in (top, vision, text):
        section.close()
    return made


def _clip(vision: Settings, text: Settings, embed_dim: int, quick: bool) -> Config:
    name = vision.get("timm_model_name")
    image = _vision(vision, quick) if name is None else _timm(vision, name)
    projection, bias = (True, False) if name is None else _timm_projection(vision)
    vision.only("attentional_pool", False)
    proj_type = text.only("proj_type", "linear", "none")
    text_bias = text.only("proj_bias", False, True)
    text.only("embed_cls", False)
    hidden = 0
    if (theirs := text.get("hf_model_name")) is None:
        tower = _text(text, quick, _text_pool(text))
    else:
        tower = _bert(text, theirs)
        width = tower.blocks.width
        if text.is_null("hf_proj_type"):
            proj_type = "none"
        elif text.only("hf_proj_type", "mlp", "linear") == "mlp":
            hidden = (width + embed_dim) // 2
    return spec(
        DualEncoder,
        image=image,
        text=tower,
        embed_dim=embed_dim,
        image_projection=projection,
        text_projection=proj_type == "linear",
        projection_bias=bias,
        text_projection_bias=None if text_bias == bias else text_bias,
        text_projection_hidden=hidden,
    )


def _coca(top: Settings, vision: Settings, text: Settings, embed_dim: int, quick: bool) -> Config:
    decoder = top.section("multimodal_cfg")
    top.without_effect("pad_id")
    if vision.get("timm_model_name") is not None:
        raise UserError(f"{vision.where}.timm_model_name is not supported in a CoCa")
    # Without it the decoder would read the patches; no published CoCa does.
    pooling = vision.get("attentional_pool", False)
    if pooling not in (True, "parallel", "cascade"):
        raise UserError(
            f"{vision.where}.attentional_pool={pooling!r} is not supported in a CoCa; supported: "
            "True, 'parallel', 'cascade'"
        )
    image = _vision(vision, quick)
    image.pool, image.cls_token = "none", True
    text.only("embed_cls", True)
    text.only("proj_type", "linear")
    text.only("proj_bias", False)
    text.only("no_causal_mask", False)
    text.without_effect("pool_type", "eos_id")
    if pooling is True:
        vision.only("pool_type", "tok")
        if image.blocks.norm_eps != EPSILON:
            raise UserError(f"{vision.where}.norm_kwargs is not supported with attentional_pool")
    width, layers = decoder.get("width", 512), decoder.get("layers", 12)
    if not width == embed_dim == text.get("width", 512):
        raise UserError(
            f"{top.where}: a CoCa needs embed_dim={embed_dim}, text_cfg.width="
            f"{text.get('width', 512)} and multimodal_cfg.width={width} to be the same"
        )
    # Its decoder's other settings are read by nothing.
    decoder.without_effect(
        "context_length", "vocab_size", "mlp_ratio", "dim_head", "n_queries", "attn_pooler_heads"
    )
    decoder.without_effect("embed_cls", "output_tokens", "pool_type", "hf_tokenizer_name")
    scale = decoder.get("ls_init_value")
    blocks = _blocks(width, layers, decoder.get("heads", 8), 4 * width, quick, scale)
    decoder.close()
    return spec(
        CoCa,
        image=image,
        text=_text(text, quick, "cls"),
        decoder=spec(Transformer, **blocks, cross_attention=True, self_mlp=True, context_norm=True),
        queries=vision.get("attn_pooler_queries", 256),
        pooling="shared" if pooling is True else pooling,
        pooler_heads=vision.get("attn_pooler_heads", 8),
        pooler_norms=("query", "output") if pooling is True else ("query", "context"),
        embed_dim=embed_dim,
        legacy=not text.only("correct_cls_mask", False, True),
        pad_id=text.get("pad_id", 0),
    )


def _vision(section: Settings, quick: bool) -> Config:
    if not isinstance(section.get("layers", 12), int):
        raise UserError(
            f"{section.where}.layers={section.get('layers')!r} is a ResNet, which is not "
            "supported; supported are vision transformers (an integer)"
        )
    _refuse_custom_blocks(section)
    section.without_effect("patch_dropout", "output_tokens", "timm_model_pretrained")
    # Fixed positions are stored like learned ones.
    section.only("pos_embed_type", "learnable", "sin_cos_2d")
    width = section.get("width", 768)
    side, patch = _square(section, "image_size", 224), _square(section, "patch_size", 16)
    return spec(
        VisionTransformer,
        blocks=spec(
            Transformer,
            **_blocks(
                width,
                section.get("layers", 12),
                width // section.get("head_width", 64),
                int(width * section.get("mlp_ratio", 4.0)),
                quick,
                section.get("ls_init_value"),
                section,
            ),
        ),
        image_size=side,
        patch_size=patch,
        ragged=side % patch > 0,
        pool=_POOLS[section.only("pool_type", "tok", "avg")],
        cls_token=True,
        norm_after_pool=section.only("final_ln_after_pool", False, True),
        pre_norm=not section.only("no_ln_pre", False, True),
        patch_bias=False,
    )


def _timm(section: Settings, name: str) -> Config:
    made = timm_trunks.trunk(name)
    section.only("timm_pool", "", made.pool)
    section.without_effect(
        "timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout", "output_tokens"
    )
    side = _square(section, "image_size", made.image_size)
    if side != made.image_size:
        raise UserError(
            f"{section.where}.image_size={side} is not that of timm's {name}, {made.image_size}"
        )
    return made.spec()


def _timm_projection(section: Settings) -> tuple[bool, bool]:
    """Whether there is one, and whether it has a bias."""
    bias = section.only("timm_proj_bias", False, True)
    # Without a choice it is the trunk's own classifier.
    kind = section.only("timm_proj", "", "none", "linear")
    return kind != "none", bias if kind == "linear" else kind == ""


def _bert(section: Settings, name: str) -> Config:
    """A tower of Hugging Face's; what it is says its name."""
    known = text_towers.tower(name)
    made, pool = known.spec(), section.only("hf_pooler_type", *_BERT_POOLS)
    # Silence means the mean, null what is usual for the kind.
    if section.is_null("hf_pooler_type") and not known.roberta:
        pool = "cls_last_hidden_state_pooler"
    made.pool = _BERT_POOLS[pool]
    if pool == "cls_pooler":
        made.rep_size = made.blocks.width
    section.without_effect(
        "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"
    )
    section.without_effect("context_length", "vocab_size", "width", "heads", "layers", "pool_type")
    section.without_effect("output_tokens")
    return made


def _text(section: Settings, quick: bool, pool: str) -> Config:
    section.only("hf_model_name", None)
    _refuse_custom_blocks(section)
    section.without_effect(
        "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "output_tokens", "pad_id"
    )
    section.without_effect("final_ln_after_pool", "hf_model_pretrained", "hf_proj_type")
    section.without_effect("hf_pooler_type")
    width = section.get("width", 512)
    return spec(
        TextTransformer,
        blocks=spec(
            Transformer,
            **_blocks(
                width,
                section.get("layers", 12),
                section.get("heads", 8),
                int(width * section.get("mlp_ratio", 4.0)),
                quick,
                section.get("ls_init_value"),
                section,
            ),
        ),
        vocab_size=section.get("vocab_size", 49_408),
        max_len=section.get("context_length", 77),
        causal=not section.only("no_causal_mask", False, True),
        mask_padding=section.only("use_pad_mask", False, True),
        pool=pool,
        eos_id=section.get("eos_id", 2) if pool == "eos" else None,
    )


def _text_pool(section: Settings) -> str:
    section.without_effect("eos_id")
    return section.only("pool_type", *_TEXT_POOLS)


def _blocks(
    width: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    quick: bool,
    layer_scale: float | None,
    section: Settings | None = None,
) -> dict[str, Any]:
    """Settings of a stack; without a section, what open_clip does when it reads none."""
    activation, epsilon = "quick_gelu" if quick else "gelu_exact", EPSILON
    if section is not None:
        norms = Settings(section.get("norm_kwargs", {}), f"{section.where}.norm_kwargs")
        epsilon = norms.get("eps", EPSILON)
        norms.close()
        if section.get("act_kwargs"):
            kind = Settings(section.get("act_kwargs"), f"{section.where}.act_kwargs")
            if quick:
                raise UserError(f"{kind.where} is not supported with quick_gelu")
            form = kind.only("approximate", "none", "tanh")
            activation = "gelu" if form == "tanh" else activation
            kind.close()
    return {
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "activation": activation,
        "norm_eps": epsilon,
        # A layer scale of zero has its weights too.
        "layer_scale": 0.0 if layer_scale is None else layer_scale or 1e-5,
    }


def _refuse_custom_blocks(section: Settings) -> None:
    section.only("block_type", None, "default")
    for key in _CUSTOM_BLOCKS:
        section.only(key, False)


def _square(section: Settings, key: str, default: int) -> int:
    value = section.get(key, default)
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1:
        raise UserError(f"{section.where}.{key}={value!r} is not supported; supported are squares")
    return sides.pop()
