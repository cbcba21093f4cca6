"""open_clip's architectures by name, for files of weights that come without a config.

CLIP and CoCa of its own towers with CLIP's vocabulary, and CLIP with RoBERTa: what OpenAI, LAION,
DataComp, DFN and others published as single files, and what open_clip's trainer writes. The rest
comes with its config.
"""

from typing import Any

from big_mm.interop.settings import nearest
from big_mm.spec import UserError

# Image towers: width, layers, head width, MLP ratio.
_IMAGE: dict[str, tuple[int, int, int, float]] = {
    "S": (384, 12, 64, 4.0),
    "M": (512, 12, 64, 4.0),
    "B": (768, 12, 64, 4.0),
    "B+": (896, 12, 64, 4.0),
    "L": (1024, 24, 64, 4.0),
    "H": (1280, 32, 80, 4.0),
    "g": (1408, 40, 88, 4.3637),
    "bigG": (1664, 48, 104, 4.9231),
    "e": (1792, 56, 112, 8.5715),
}
# Text towers, whose width is the embedding's: width, heads, layers.
_TEXT: dict[str, tuple[int, int, int]] = {
    "S": (384, 6, 12),
    "S-alt": (256, 4, 10),
    "M": (512, 8, 12),
    "M-alt": (384, 6, 12),
    "B": (512, 8, 12),
    "B+": (640, 10, 12),
    "L": (768, 12, 12),
    "H": (1024, 16, 24),
    "g": (1024, 16, 24),
    "bigG": (1280, 20, 32),
    "e": (1280, 20, 36),
}


def _clip(size: str, patch: int, side: int = 224, text: str = "", max_len: int = 77) -> Any:
    width, layers, head_width, ratio = _IMAGE[size]
    text_width, heads, text_layers = _TEXT[text or size]
    return {
        "embed_dim": text_width,
        "vision_cfg": {
            "image_size": side,
            "patch_size": patch,
            "width": width,
            "layers": layers,
            "head_width": head_width,
            "mlp_ratio": ratio,
        },
        "text_cfg": {
            "context_length": max_len,
            "vocab_size": 49_408,
            "width": text_width,
            "heads": heads,
            "layers": text_layers,
        },
    }


def _coca(size: str, patch: int) -> dict[str, Any]:
    made = _clip(size, patch, max_len=76)
    made["multimodal_cfg"] = dict(made["text_cfg"])
    made["text_cfg"]["embed_cls"] = True
    made["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 8}
    return made | {"custom_text": True}


def _roberta(size: str, patch: int, name: str) -> dict[str, Any]:
    named = {"hf_model_name": name, "hf_tokenizer_name": name, "hf_pooler_type": "mean_pooler"}
    return _clip(size, patch) | {"text_cfg": named}


def _architectures() -> dict[str, dict[str, Any]]:
    plain = {
        **{f"ViT-{size}-{patch}": _clip(size, patch) for size in "SMB" for patch in (16, 32)},
        **{f"ViT-S-{patch}-alt": _clip("S", patch, text="S-alt") for patch in (16, 32)},
        **{f"ViT-M-{patch}-alt": _clip("M", patch, text="M-alt") for patch in (16, 32)},
        "ViT-B-32-256": _clip("B", 32, 256),
        "ViT-B-16-plus": _clip("B+", 16),
        "ViT-B-16-plus-240": _clip("B+", 16, 240),
        "ViT-B-32-plus-256": _clip("B+", 32, 256),
        "ViT-L-14": _clip("L", 14),
        "ViT-L-14-280": _clip("L", 14, 280),
        "ViT-L-14-336": _clip("L", 14, 336),
        "ViT-L-16": _clip("L", 16),
        "ViT-L-16-320": _clip("L", 16, 320),
        "ViT-H-14": _clip("H", 14),
        "ViT-H-14-378": _clip("H", 14, 378),
        "ViT-H-16": _clip("H", 16),
        "ViT-g-14": _clip("g", 14),
        "ViT-bigG-14": _clip("bigG", 14),
        "ViT-e-14": _clip("e", 14),
    }
    plain["ViT-M-16-alt"]["vision_cfg"]["ls_init_value"] = 1e-4
    quick = {f"{name}-quickgelu": made | {"quick_gelu": True} for name, made in plain.items()}
    coca = {"coca_ViT-B-32": _coca("B", 32), "coca_ViT-L-14": _coca("L", 14)}
    roberta = {
        "roberta-ViT-B-32": _roberta("B", 32, "roberta-base") | {"quick_gelu": True},
        "xlm-roberta-base-ViT-B-32": _roberta("B", 32, "xlm-roberta-base"),
        "xlm-roberta-large-ViT-H-14": _roberta("H", 14, "xlm-roberta-large"),
    }
    return plain | quick | coca | roberta


ARCHITECTURES = _architectures()


def architecture(name: str) -> dict[str, Any]:
    """The `model_cfg` of a name.

    Raises:
      UserError: an unknown name; gives the nearest known.
    """
    if name not in ARCHITECTURES:
        raise UserError(
            f"{name!r} is neither a config file nor an architecture known by name"
            f"{nearest(name, ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
