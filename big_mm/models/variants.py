"""Named sizes: the one table, and the specs of models made from it.

A config starts from `coca("base")` or the like and overrides what it wants; every part stays
reachable from the command line (`--config.objective.model.image.blocks.remat=full`).
"""

import math
from typing import Any

import ml_collections

from big_mm.models.captioner import Captioner
from big_mm.models.coca import CoCa
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

Config = ml_collections.ConfigDict

# width, depth, heads, mlp_dim: arXiv:2010.11929 (B, L, H), 2012.12877 (Ti, S), 2106.04560 (g, G).
TOWERS = {
    "tiny": (128, 4, 4, 512),
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}
# arXiv:2205.01917, table 1: width, heads, then (depth, mlp_dim) of the image encoder and of each of
# the two halves of the text decoder.
COCA = {
    "tiny": (128, 4, (4, 512), (2, 512)),
    "base": (768, 12, (12, 3072), (12, 3072)),
    "large": (1024, 16, (24, 4096), (12, 4096)),
    "giant": (1408, 16, (40, 6144), (18, 5632)),
}

# arXiv:2103.00020, table 20 (B, L), and open_clip (H): width, depth, heads of the text tower; the
# width is also the shared space's.
CLIP_TEXT = {"B": (512, 12, 8), "L": (768, 12, 12), "H": (1024, 24, 16)}
CLIP_PIXELS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def _entry(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise UserError(f"no variant {name!r}; there are {', '.join(table)}")
    return table[name]


def _stack(width: int, depth: int, heads: int, mlp_dim: int, **options: Any) -> Config:
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return spec(Transformer, **{**sizes, **options})


def vision(
    name: str, *, image_size: int = 224, blocks: dict[str, Any] | None = None, **options: Any
) -> Config:
    """The spec of a `VisionTransformer` by size and patch ("B/16"); `blocks` are options of its
    layers, the others its own.
    """
    size, _, patch = name.partition("/")
    if not patch.isdigit():
        raise UserError(f"a vision variant is a size and a patch like 'B/16', not {name!r}")
    return spec(
        VisionTransformer,
        blocks=_stack(*_entry(TOWERS, size), **(blocks or {})),
        image_size=image_size,
        patch_size=int(patch),
        **options,
    )


def clip(
    name: str = "B/16",
    *,
    image_size: int = 224,
    vocab_size: int = 49_408,
    max_len: int = 77,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """CLIP as a `DualEncoder`: causal text, read at eos (arXiv:2103.00020). OpenAI's own weights
    have blocks={"activation": "quick_gelu"}. The options are the dual encoder's.
    """
    blocks = {"activation": "gelu_exact", "norm_eps": 1e-5, **(blocks or {})}
    width, depth, heads = _entry(CLIP_TEXT, name.partition("/")[0])
    return spec(
        DualEncoder,
        image=vision(
            name,
            image_size=image_size,
            blocks=blocks,
            pool="cls",
            pre_norm=True,
            patch_bias=False,
            **CLIP_PIXELS,
        ),
        text=spec(
            TextTransformer,
            blocks=_stack(width, depth, heads, 4 * width, **blocks),
            vocab_size=vocab_size,
            max_len=max_len,
            pool="eos",
        ),
        **{"embed_dim": width, **options},
    )


def siglip(
    name: str = "B/16",
    *,
    image_size: int = 224,
    vocab_size: int = 32_000,
    max_len: int = 64,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """SigLIP as a `DualEncoder` (arXiv:2303.15343): bidirectional text that reads its padding too,
    both towers of one size. The options are the dual encoder's.
    """
    width, _, heads, mlp_dim = _entry(TOWERS, name.partition("/")[0])
    depth = TOWERS[name.partition("/")[0]][1]
    return spec(
        DualEncoder,
        image=vision(name, image_size=image_size, blocks=blocks, pool="map"),
        text=spec(
            TextTransformer,
            blocks=_stack(width, depth, heads, mlp_dim, **(blocks or {})),
            vocab_size=vocab_size,
            max_len=max_len,
            causal=False,
            mask_padding=False,
            pool="last",
        ),
        **{
            "embed_dim": width,
            "image_projection": False,
            "projection_bias": True,
            "log_scale": math.log(10),
            "logit_bias": -10.0,
            **options,
        },
    )


def bert(
    name: str = "B",
    *,
    vocab_size: int = 30_522,
    max_len: int = 512,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """BERT ("B" its base, "L" its large; arXiv:1810.04805) as a `TextTransformer` that is read at
    its first token, [CLS]; `rep_size` of its width adds what BERT calls its pooler. The options are
    the text tower's.
    """
    stack = {"activation": "gelu_exact", "norm": "post", "norm_eps": 1e-12, **(blocks or {})}
    return spec(
        TextTransformer,
        blocks=_stack(*_entry(TOWERS, name), **stack),
        vocab_size=vocab_size,
        max_len=max_len,
        causal=False,
        **{"pool": "first", "token_types": 2, **options},
    )


def lit(
    name: str = "B/16",
    *,
    text: str = "B",
    image_size: int = 224,
    vocab_size: int = 30_522,
    max_len: int = 512,
    **options: Any,
) -> Config:
    """LiT as a `DualEncoder` (arXiv:2111.07991): BERT beside an image tower that is to be frozen,
    into whose space it leads. The options are the dual encoder's.
    """
    image = vision(name, image_size=image_size, pool="cls", cls_position=False)
    return spec(
        DualEncoder,
        image=image,
        # flaxformer's BERT has the tanh form of the GELU.
        text=bert(text, vocab_size=vocab_size, max_len=max_len, blocks={"activation": "gelu"}),
        **{
            "embed_dim": image.blocks.width,
            "image_projection": False,
            "projection_bias": True,
            "log_scale": math.log(10),
            **options,
        },
    )


def captioner(
    name: str = "B/16",
    *,
    image_size: int = 224,
    vocab_size: int = 32_000,
    max_len: int = 64,
    depth: int = 6,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """A `Captioner` whose decoder has `depth` layers of the image encoder's width; 6 is the paper's
    choice (arXiv:2306.07915, section 3.1). The options are the captioner's.
    """
    width, _, heads, mlp_dim = _entry(TOWERS, name.partition("/")[0])
    return spec(
        Captioner,
        image=vision(name, image_size=image_size, blocks=blocks),
        text=spec(
            TextTransformer,
            blocks=_stack(width, depth, heads, mlp_dim, cross_attention=True, **(blocks or {})),
            vocab_size=vocab_size,
            max_len=max_len,
            pool="none",
        ),
        **options,
    )


def coca(
    name: str,
    *,
    image_size: int = 288,
    patch_size: int = 18,
    vocab_size: int = 64_000,
    max_len: int = 64,
    queries: int = 256,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """The spec of a `CoCa` by name; `blocks` are options of the layers of all three stacks (dtype,
    remat, unroll, dropout), the others CoCa's own.
    """
    width, heads, image, text = _entry(COCA, name)

    def stack(depth: int, mlp_dim: int, **more: Any) -> Config:
        return _stack(width, depth, heads, mlp_dim, **more, **(blocks or {}))

    return spec(
        CoCa,
        image=spec(
            VisionTransformer,
            blocks=stack(*image),
            image_size=image_size,
            patch_size=patch_size,
        ),
        text=spec(
            TextTransformer,
            blocks=stack(*text),
            vocab_size=vocab_size,
            max_len=max_len,
        ),
        decoder=stack(*text, cross_attention=True),
        queries=queries,
        **options,
    )


def open_clip_coca(
    name: str = "L/14",
    *,
    image_size: int = 224,
    vocab_size: int = 49_408,
    max_len: int = 76,
    blocks: dict[str, Any] | None = None,
    **options: Any,
) -> Config:
    """The `CoCa` of open_clip's weights ("B/32", "L/14"), faults included: see `CoCa.legacy`.
    The options are CoCa's.
    """
    blocks = {"activation": "gelu_exact", "norm_eps": 1e-5, **(blocks or {})}
    width, depth, heads = _entry(CLIP_TEXT, name.partition("/")[0])
    return spec(
        CoCa,
        image=vision(
            name,
            image_size=image_size,
            blocks=blocks,
            cls_token=True,
            pre_norm=True,
            patch_bias=False,
            **CLIP_PIXELS,
        ),
        text=spec(
            TextTransformer,
            blocks=_stack(width, depth, heads, 4 * width, **blocks),
            vocab_size=vocab_size,
            max_len=max_len,
        ),
        decoder=_stack(
            width,
            depth,
            heads,
            4 * width,
            cross_attention=True,
            self_mlp=True,
            context_norm=True,
            **blocks,
        ),
        **{
            "embed_dim": width,
            "pooling": "shared",
            "pooler_heads": 8,
            "pooler_norms": ("query", "output"),
            "legacy": True,
            **options,
        },
    )
