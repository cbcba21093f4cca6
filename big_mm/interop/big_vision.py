"""big_vision's checkpoints (.npz): two towers (SigLIP, SigLIP 2, LiT but for BERT), and CapPa.

They hold parameters and nothing else, but Flax keeps heads apart, so that the shapes say all sizes.
What they do not say a config may: `{"img": {"image_size": 384}, "txt": {"pool_type": "first"}}`.
Without, images are a whole number of patches (So400m/14 at 384 pixels is not), and a text is read
at its last slot.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from big_mm.interop import tables
from big_mm.interop.mapping import ONE_AXIS, TWO_AXES, Entry, patches
from big_mm.interop.settings import Settings
from big_mm.interop.tensors import Tensors
from big_mm.models.captioner import Captioner
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

Config = ml_collections.ConfigDict
# Where the parameters are, beside the optimizer's state; in files of today and of before.
PREFIXES = ("params/", "opt/target/")
_TEXT_POOLS = {"last": "last", "first": "first", "mean": "mean", "gap": "mean"}
# Flax named modules by their place in the block before 2021.
_OLD_BLOCK = tables.Names(
    "LayerNorm_0",
    tables.flax("MultiHeadDotProductAttention_1"),
    "LayerNorm_2",
    ("MlpBlock_3/Dense_0", "MlpBlock_3/Dense_1"),
    torch=False,
)
# A vocabulary of this size is Gemma's, which SigLIP 2 has.
GEMMA = 256_000


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint's model.

    Attributes:
      model: its spec.
      table: of the built model.
      family: one of `inputs.FAMILIES`.
    """

    model: Config
    table: Callable[[Any], list[Entry]]
    family: str


def parameters(tensors: Tensors) -> Tensors:
    """The parameters alone, by their own names."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            named = {
                name.removeprefix(prefix): entry
                for name, entry in tensors.entries.items()
                if name.startswith(prefix)
            }
            return Tensors(tensors.source, named)
    return tensors


def find(tensors: Tensors, config: Mapping[str, Any]) -> Found:
    """The model that parameters with these names and shapes are of.

    Raises:
      UserError: none that is known.
    """
    shapes = {name: tensors.shape(name) for name in tensors}
    settings = Settings(config, "config")
    if any(name.startswith("txt/BertEncoder_0/") for name in shapes):
        raise UserError(
            f"{tensors.source}: its text tower is BERT (flaxformer's), which is not supported; "
            "supported are big_vision's own text transformers"
        )
    if "img/embedding/kernel" in shapes and "txt/Embed_0/embedding" in shapes:
        found = _two_towers(shapes, settings)
    elif "decoder/EmbedTargets/embedding" in shapes:
        found = _cappa(shapes)
    else:
        raise UserError(
            f"{tensors.source} is no big_vision checkpoint of two towers (img/, txt/) or of CapPa "
            f"(encoder/, decoder/); its names begin with "
            f"{', '.join(sorted({name.split('/')[0] for name in shapes})[:8])}"
        )
    settings.close()
    return found


def _two_towers(shapes: Mapping[str, tuple], settings: Settings) -> Found:
    img, txt = settings.section("img"), settings.section("txt")
    image = _image(shapes, "img/", img)
    vocab_size, width = shapes["txt/Embed_0/embedding"]
    heads = [_head(shapes, tower) for tower in ("img", "txt")]
    dims = {dim for dim in (*heads, None if heads[0] else image.blocks.width) if dim}
    if len(dims) != 1 or not (heads[1] or width in dims):
        raise UserError(f"the towers' embeddings are of different widths: {sorted(dims)}, {width}")
    model = spec(
        DualEncoder,
        image=image,
        text=spec(
            TextTransformer,
            blocks=_blocks(shapes, "txt/Encoder_0/"),
            vocab_size=vocab_size,
            max_len=shapes["txt/pos_embedding"][1],
            causal=False,
            mask_padding=False,
            pool=_TEXT_POOLS[txt.only("pool_type", *_TEXT_POOLS)],
        ),
        embed_dim=dims.pop(),
        image_projection=bool(heads[0]),
        text_projection=bool(heads[1]),
        projection_bias=True,
        log_scale=math.log(10),
        logit_bias=-10.0 if "b" in shapes else None,
    )
    img.close()
    txt.close()

    def table(built: DualEncoder) -> list[Entry]:
        make = tables.Maker(torch=False)
        entries = [
            *_image_table(shapes, "image", "img/", built.image),
            *make.one("text/embedding", "txt/Embed_0/embedding"),
            *make.one("text/position_embedding", "txt/pos_embedding", ONE_AXIS),
            *_stack(shapes, "text/blocks", "txt/Encoder_0/", built.text.blocks),
            *make.norm("text/norm", "txt/Encoder_0/encoder_norm"),
            *make.one("temperature/log_scale", "t", ONE_AXIS),
        ]
        for name, theirs, there in zip(("image", "text"), ("img", "txt"), heads, strict=True):
            entries += make.dense(f"{name}_head", f"{theirs}/head") if there else []
        return entries + (make.one("logit_bias", "b", ONE_AXIS) if "b" in shapes else [])

    return Found(model, table, "siglip2" if vocab_size == GEMMA else "siglip")


def _head(shapes: Mapping[str, tuple], tower: str) -> int:
    """The width that a tower's last linear layer leads to; 0 without one."""
    return shapes.get(f"{tower}/head/kernel", (0, 0))[1]


def _cappa(shapes: Mapping[str, tuple]) -> Found:
    image = _image(shapes, "encoder/", None)
    stacked = "decoder/EncDecBlock/LayerNorm1/scale" in shapes
    block = "decoder/EncDecBlock/" if stacked else "decoder/EncDecBlock0/"
    query = shapes[f"{block}SelfAttn/query/kernel"]
    # The scanned decoder has its layers on the second axis.
    width, heads = (query[0], query[2]) if stacked else query[:2]
    depth = query[1] if stacked else _count(shapes, r"decoder/EncDecBlock(\d+)/")
    rows, written = shapes["decoder/EmbedTargets/embedding"][0], shapes["decoder/LogitsDense/bias"]
    bias = f"{block}LayerNorm1/bias" in shapes
    model = spec(
        Captioner,
        image=image,
        text=spec(
            TextTransformer,
            blocks=spec(
                Transformer,
                width=width,
                depth=depth,
                heads=heads,
                mlp_dim=shapes[f"{block}MLP/Dense_0/kernel"][-1],
                cross_attention=True,
                use_bias=bias,
                qkv_bias=False,
                out_bias=False,
                norm_bias=bias,
            ),
            vocab_size=rows,
            max_len=shapes["pos_embedding_decoder"][1],
            pool="none",
        ),
        head_bias=True,
        mask_token=rows > written[0],
    )

    def table(built: Captioner) -> list[Entry]:
        make = tables.Maker(torch=False)
        axis, prefix = (1, "EncDecBlock/") if stacked else (0, "EncDecBlock{}/")
        return [
            *_image_table(shapes, "image", "encoder/", built.image),
            *make.one("text/embedding", "decoder/EmbedTargets/embedding"),
            *make.one("text/position_embedding", "pos_embedding_decoder", ONE_AXIS),
            *_decoder("text/blocks/layers", f"decoder/{prefix}", built.text.blocks, axis),
            *make.norm("text/norm", "decoder/LayerNorm"),
            *make.dense("caption_head", "decoder/LogitsDense"),
        ]

    return Found(model, table, "cappa")


def _decoder(ours: str, theirs: str, blocks: Transformer, axis: int) -> list[Entry]:
    make = tables.Maker(torch=False, depth=blocks.depth, axis=axis)
    bias, none = blocks.norm_bias, {"qkv_bias": False, "out_bias": False}
    return [
        *make.norm(f"{ours}/attention_norm", f"{theirs}LayerNorm1", bias),
        *make.attention(f"{ours}/attention", tables.flax(f"{theirs}SelfAttn"), **none),
        *make.norm(f"{ours}/cross_attention_norm", f"{theirs}LayerNorm2", bias),
        *make.attention(
            f"{ours}/cross_attention", tables.flax(f"{theirs}CrossAttn"), cross=True, **none
        ),
        *make.norm(f"{ours}/mlp_norm", f"{theirs}LayerNorm3", bias),
        *make.mlp(f"{ours}/mlp", (f"{theirs}MLP/Dense_0", f"{theirs}MLP/Dense_1"), bias),
    ]


def _image(shapes: Mapping[str, tuple], prefix: str, settings: Settings | None) -> Config:
    """The image tower; one without settings does not pool."""
    if f"{prefix}pre_logits/kernel" in shapes:
        raise UserError(f"{prefix}pre_logits (rep_size) is not supported")
    patch = shapes[f"{prefix}embedding/kernel"][0]
    count, has_cls = shapes[_positions(shapes, prefix)][1], f"{prefix}cls" in shapes
    side = math.isqrt(count)
    if side * side not in (count, count - has_cls):
        raise UserError(f"{_positions(shapes, prefix)}: {count} positions are no square grid")
    pool, image_size = "none", patch * side
    if settings is not None:
        image_size = settings.get("image_size", image_size)
        if image_size // patch != side:
            raise UserError(f"img.image_size={image_size} is not {side} patches of {patch} pixels")
        pooled = "tok" if has_cls else "gap"
        pooled = "map" if f"{prefix}MAPHead_0/probe" in shapes else pooled
        pool = {"tok": "cls", "gap": "gap", "map": "map"}[settings.only("pool_type", pooled)]
    return spec(
        VisionTransformer,
        blocks=_blocks(shapes, f"{prefix}Transformer/"),
        image_size=image_size,
        patch_size=patch,
        ragged=image_size % patch > 0,
        pool=pool,
        cls_token=has_cls,
        cls_position=has_cls and side * side != count,
    )


def _image_table(
    shapes: Mapping[str, tuple], ours: str, theirs: str, image: VisionTransformer
) -> list[Entry]:
    make = tables.Maker(torch=False)
    kernel = f"{theirs}embedding/kernel"
    entries = [
        *make.one(f"{ours}/patch/kernel", kernel, patches(image.patch_size, torch=False)),
        *make.one(f"{ours}/patch/bias", f"{theirs}embedding/bias"),
        *make.one(f"{ours}/position_embedding", _positions(shapes, theirs), ONE_AXIS),
        *_stack(shapes, f"{ours}/blocks", f"{theirs}Transformer/", image.blocks),
        *make.norm(f"{ours}/norm", f"{theirs}Transformer/encoder_norm"),
    ]
    if image.cls_token:
        entries += make.one(f"{ours}/cls", f"{theirs}cls", TWO_AXES)
    if image.pool == "map":
        head = f"{theirs}MAPHead_0/"
        mlp = (f"{head}MlpBlock_0/Dense_0", f"{head}MlpBlock_0/Dense_1")
        attention = tables.flax(f"{head}MultiHeadDotProductAttention_0")
        entries += make.one(f"{ours}/pooler/query", f"{head}probe", ONE_AXIS)
        entries += tables.map_pooler(f"{ours}/pooler", make, attention, f"{head}LayerNorm_0", mlp)
    return entries


def _positions(shapes: Mapping[str, tuple], prefix: str) -> str:
    """Where the positions are; in older files they are the encoder's."""
    names = ("pos_embedding", "Transformer/pos_embedding")
    names += ("Transformer/posembed_input/pos_embedding",)
    found = [prefix + name for name in names if prefix + name in shapes]
    if not found:
        raise UserError(f"there is no {prefix}pos_embedding: fixed positions are not supported")
    return found[0]


def _block(shapes: Mapping[str, tuple], encoder: str) -> tuple[str, bool, tables.Names]:
    """A block's prefix, whether all layers are in it, and what its parts are called."""
    stacked = f"{encoder}encoderblock/LayerNorm_0/scale" in shapes
    first = f"{encoder}encoderblock/" if stacked else f"{encoder}encoderblock_0/"
    old = f"{first}MlpBlock_3/Dense_0/kernel" in shapes
    return first, stacked, _OLD_BLOCK if old else tables.FLAX


def _blocks(shapes: Mapping[str, tuple], encoder: str) -> Config:
    first, stacked, names = _block(shapes, encoder)
    try:
        query = shapes[first + names.attention.weights[0]]
        hidden = shapes[f"{first}{names.mlp[0]}/kernel"][-1]
    except KeyError as error:
        raise UserError(f"{error.args[0]} is missing: not a transformer of big_vision") from error
    depth = query[0] if stacked else _count(shapes, re.escape(encoder) + r"encoderblock_(\d+)/")
    width, heads = query[-3], query[-2]
    return spec(Transformer, width=width, depth=depth, heads=heads, mlp_dim=hidden)


def _stack(
    shapes: Mapping[str, tuple], ours: str, encoder: str, blocks: Transformer
) -> list[Entry]:
    first, stacked, names = _block(shapes, encoder)
    theirs = first if stacked else f"{encoder}encoderblock_{{}}/"
    return tables.stack(ours, theirs, blocks, names)


def _count(shapes: Mapping[str, tuple], pattern: str) -> int:
    """One more than the highest number of a layer."""
    found = (re.match(pattern, name) for name in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
