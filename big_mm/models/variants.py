"""Named sizes: the one table, and the specs of models made from it.

A config starts from `coca("base")` or the like and overrides what it wants; every part stays
reachable from the command line (`--config.objective.model.image.blocks.remat=full`).
"""

from typing import Any

import ml_collections

from big_mm.models.coca import CoCa
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


def _entry(table: dict[str, Any], name: str) -> Any:
    if name not in table:
        raise UserError(f"no variant {name!r}; there are {', '.join(table)}")
    return table[name]


def tower(name: str, **options: Any) -> Config:
    """The spec of a `Transformer` by name ("B"); options are its other attributes."""
    width, depth, heads, mlp_dim = _entry(TOWERS, name)
    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return spec(Transformer, **{**sizes, **options})


def vision(name: str, *, image_size: int = 224, blocks: Any = None, **options: Any) -> Config:
    """The spec of a `VisionTransformer` by name and patch ("B/16"); `blocks` are options of its
    layers, the others its own.
    """
    size, _, patch = name.partition("/")
    if not patch.isdigit():
        raise UserError(f"a vision variant is a size and a patch like 'B/16', not {name!r}")
    return spec(
        VisionTransformer,
        blocks=tower(size, **(blocks or {})),
        image_size=image_size,
        patch_size=int(patch),
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
    blocks: Any = None,
    **options: Any,
) -> Config:
    """The spec of a `CoCa` by name; `blocks` are options of the layers of all three stacks (dtype,
    remat, unroll, dropout), the others CoCa's own.
    """
    width, heads, image, text = _entry(COCA, name)

    def stack(depth: int, mlp_dim: int, **more: Any) -> Config:
        sizes = {"width": width, "depth": depth, "heads": heads, "mlp_dim": mlp_dim}
        return spec(Transformer, **{**sizes, **more, **(blocks or {})})

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
