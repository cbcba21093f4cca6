"""The image towers that open_clip takes from timm by name: plain vision transformers.

A name says everything that its weights do not: heads, activation, pooling, the norms' epsilon.
"""

import dataclasses
from typing import Any

import ml_collections

from big_mm.interop import tables
from big_mm.interop.mapping import ONE_AXIS, TWO_AXES, Entry, patches
from big_mm.interop.settings import nearest
from big_mm.models.layers import Transformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

# Names' first part: width, depth, heads, mlp ratio.
SIZES: dict[str, tuple[int, int, int, float]] = {
    "xsmall": (256, 10, 4, 4.0),
    "small": (384, 12, 6, 4.0),
    "medium": (512, 12, 8, 4.0),
    "betwixt": (640, 12, 10, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16, 4.0),
    "giant": (1408, 40, 16, 48 / 11),
    "giantopt": (1536, 40, 16, 4.0),
    "gigantic": (1664, 48, 16, 64 / 13),
}


@dataclasses.dataclass(frozen=True)
class Trunk:
    """What a name stands for.

    Attributes:
      pool: "token", "avg" or "map".
      registers: learned tokens before the patches, none of which has a position then.
      fc_norm: the final norm comes after the pooling.
      clip: a cls token, a norm before the blocks, no bias of the patches, epsilon 1e-5.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    image_size: int
    patch_size: int
    pool: str
    registers: int = 0
    clip: bool = False
    activation: str = "gelu_exact"
    qkv_bias: bool = True
    layer_scale: float = 0.0
    fc_norm: bool = False

    def spec(self) -> ml_collections.ConfigDict:
        """The spec of our tower."""
        blocks = spec(
            Transformer,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_eps=1e-5 if self.clip else 1e-6,
            qkv_bias=None if self.qkv_bias else False,
            layer_scale=self.layer_scale,
        )
        return spec(
            VisionTransformer,
            blocks=blocks,
            image_size=self.image_size,
            patch_size=self.patch_size,
            ragged=self.image_size % self.patch_size > 0,
            pool={"token": "cls", "avg": "gap", "map": "map"}[self.pool],
            registers=self.registers,
            norm_after_pool=self.fc_norm,
            pre_norm=self.clip,
            patch_bias=not self.clip,
        )


def _trunks() -> dict[str, Trunk]:
    made: dict[str, Trunk] = {}

    def add(size: str, patch: int, kind: str, sides: tuple[int, ...], **options: Any) -> None:
        width, depth, heads, ratio = SIZES[size]
        sizes = (width, depth, heads, int(width * ratio))
        for side in sides:
            name = "_".join(filter(None, (f"vit_{size}_patch{patch}", kind, str(side))))
            made[name] = Trunk(*sizes, side, patch, **options)

    for kind, pool in (("siglip", "map"), ("siglip_gap", "avg")):
        tanh = {"pool": pool, "activation": "gelu"}
        add("base", 16, kind, (224, 256, 384, 512), pool=pool)
        add("base", 32, kind, (256,), **tanh)
        add("large", 16, kind, (256, 384), pool=pool)
        add("large", 16, kind, (512,), **tanh)
        add("so400m", 14, kind, (224, 378, 384), pool=pool)
        add("so400m", 16, kind, (256, 384, 512), **tanh)
        add("giantopt", 16, kind, (256, 384), **tanh)
    for kind, activation in (("clip", "gelu_exact"), ("clip_quickgelu", "quick_gelu")):
        clip = {"pool": "token", "clip": True, "activation": activation}
        add("base", 32, kind, (224,), **clip)
        add("base", 16, kind, (224,), **clip)
        add("large", 14, kind, (224, 336), **clip)
        add("huge", 14, kind, (224, 378), **clip)
        add("gigantic", 14, kind, (224,), **clip)
    add("giant", 14, "clip", (224,), pool="token", clip=True)
    registers = {"pool": "avg", "registers": 4, "fc_norm": True}
    add("medium", 16, "reg4_gap", (256,), layer_scale=1e-5, **registers)
    add("betwixt", 16, "reg4_gap", (256, 384), layer_scale=1e-5, **registers)
    add("base", 16, "reg4_gap", (256,), **registers)
    add("medium", 16, "gap", (256,), pool="avg", qkv_bias=False, layer_scale=1e-6)
    # Those of the first paper have no kind.
    for size, patch in (("small", 32), ("small", 16), ("base", 32), ("base", 16), ("large", 16)):
        add(size, patch, "", (224, 384), pool="token")
    return made


TRUNKS = _trunks()


def trunk(name: str) -> Trunk:
    """What a name stands for.

    Raises:
      UserError: an unknown name; gives the nearest known.
    """
    if name not in TRUNKS:
        raise UserError(
            f"vision_cfg.timm_model_name={name!r} is not supported{nearest(name, TRUNKS)}"
        )
    return TRUNKS[name]


def name_of(image: VisionTransformer) -> str:
    """The name of a tower of ours, pixel statistics, types and initial values aside.

    Raises:
      UserError: timm has no such tower.
    """
    for name, known in TRUNKS.items():
        if _facts(_built(known)) == _facts(image):
            return name
    blocks = image.blocks
    raise UserError(
        f"open_clip takes image towers without its own cls token and norms from timm by name, and "
        f"none of the names known here has width={blocks.width}, depth={blocks.depth}, "
        f"heads={blocks.heads}, mlp_dim={blocks.mlp_dim}, activation={blocks.activation!r}, "
        f"patch_size={image.patch_size}, image_size={image.image_size}, pool={image.pool!r}, "
        f"registers={image.registers}"
    )


def _built(known: Trunk) -> VisionTransformer:
    made = dict(known.spec())
    blocks = {k: v for k, v in made.pop("blocks").items() if k != "_class_"}
    made.pop("_class_")
    return VisionTransformer(blocks=Transformer(**blocks), **made)


def _facts(image: VisionTransformer) -> tuple[Any, ...]:
    blocks, has_cls = image.blocks, image.cls_token or image.pool == "cls"
    return (
        (blocks.width, blocks.depth, blocks.heads, blocks.mlp_dim, blocks.activation),
        (blocks.norm_eps, blocks.norm_bias, bool(blocks.layer_scale), blocks.use_bias),
        tables.block_biases(blocks),
        (image.image_size, image.patch_size, image.position, image.pool, image.registers),
        (has_cls, has_cls and image.cls_position, image.pre_norm, image.patch_bias),
        (image.norm_after_pool, image.rep_size, image.position_grid, blocks.norm),
    )


def table(ours: str, theirs: str, image: VisionTransformer) -> list[Entry]:
    """The tower's entries; `theirs` is the trunk's prefix, its dot included."""
    make, blocks = tables.Maker(), image.blocks
    entries = [
        *make.one(
            f"{ours}/patch/kernel",
            f"{theirs}patch_embed.proj.weight",
            patches(image.patch_size),
        ),
        *make.one(f"{ours}/position_embedding", f"{theirs}pos_embed", ONE_AXIS),
        *tables.stack(f"{ours}/blocks", f"{theirs}blocks.{{}}.", blocks, tables.TIMM),
        *make.norm(f"{ours}/norm", f"{theirs}{'fc_norm' if image.norm_after_pool else 'norm'}"),
    ]
    if image.patch_bias:
        entries += make.one(f"{ours}/patch/bias", f"{theirs}patch_embed.proj.bias")
    if image.pre_norm:
        entries += make.norm(f"{ours}/pre_norm", f"{theirs}norm_pre")
    if image.pool == "cls":
        entries += make.one(f"{ours}/cls", f"{theirs}cls_token", TWO_AXES)
    if image.registers:
        entries += make.one(f"{ours}/registers", f"{theirs}reg_token", ONE_AXIS)
    if image.pool == "map":
        pool = f"{theirs}attn_pool."
        attention = tables.Attention(
            (f"{pool}q.weight", f"{pool}kv.weight"),
            (f"{pool}q.bias", f"{pool}kv.bias"),
            f"{pool}proj",
        )
        mlp = (f"{pool}mlp.fc1", f"{pool}mlp.fc2")
        entries += make.one(f"{ours}/pooler/query", f"{pool}latent", ONE_AXIS)
        entries += tables.map_pooler(f"{ours}/pooler", make, attention, f"{pool}norm", mlp)
    return entries
