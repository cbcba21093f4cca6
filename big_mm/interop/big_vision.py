"""big_vision's checkpoints (.npz): two towers (SigLIP, SigLIP 2, NaFlex, LiT), and CapPa.

They hold parameters and nothing else, but Flax keeps heads apart, so that the shapes say all sizes.
What they do not say a config may: `{"img": {"image_size": 384}, "txt": {"pool_type": "first"}}`.
Without, images are a whole number of patches (So400m/14 at 384 pixels is not), and a text is read
at its last slot. BERT, which is flaxformer's, does not keep heads apart: they are 64 wide unless
`{"txt": {"num_heads": 8}}` says otherwise, and its texts have 16 tokens (`token_len`) as LiT's do.

NaFlex takes pictures of any aspect ratio; here it takes squares of `image_size` pixels, of its own
grid of positions by default, and is the same function of them.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from big_mm.interop import tables
from big_mm.interop.big_vision_table import (
    BERT_BLOCK,
    BERT_EMBEDDINGS,
    BERT_LAYERS,
    TEXT,
    Layout,
    Stack,
)
from big_mm.interop.settings import Settings
from big_mm.interop.tensors import Tensors
from big_mm.models.captioner import Captioner
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer
from big_mm.spec import UserError, spec

Config = ml_collections.ConfigDict
Shapes = Mapping[str, tuple[int, ...]]
# Where the parameters are, beside the optimizer's state; in files of today and of before.
PREFIXES = ("params/", "opt/target/")
TEXT_POOLS = {"last": "last", "first": "first", "mean": "mean", "gap": "mean"}
# A vocabulary of this size is Gemma's, which SigLIP 2 has.
GEMMA = 256_000
HEAD_WIDTH, BERT_LENGTH = 64, 16


@dataclasses.dataclass(frozen=True)
class Found:
    """A checkpoint's model.

    Attributes:
      model: its spec.
      layout: of the file.
      max_len: tokens of a text.
    """

    model: Config
    layout: Layout
    max_len: int


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
    text = ("txt/Embed_0/embedding", BERT_EMBEDDINGS.format("token"))
    if "img/embedding/kernel" in shapes and any(name in shapes for name in text):
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


def family(model: DualEncoder | Captioner) -> str:
    """Which of `big_vision_inputs.FAMILIES` feeds such a model."""
    if isinstance(model, Captioner):
        return "cappa"
    if tables.is_bert(model.text):
        return "lit"
    if model.image.position_grid:
        return "naflex"
    return "siglip2" if model.text.vocab_size == GEMMA else "siglip"


def _two_towers(shapes: Shapes, settings: Settings) -> Found:
    img, txt = settings.section("img"), settings.section("txt")
    image, layout = _image(shapes, "img/", img)
    bert = BERT_EMBEDDINGS.format("token") in shapes
    text, stack = _bert(shapes, txt) if bert else _text(shapes, txt)
    heads = [_head(shapes, tower) for tower in ("img", "txt")]
    width = text.blocks.width
    own = image.rep_size or image.blocks.width
    dims = {dim for dim in (*heads, None if heads[0] else own) if dim}
    if len(dims) != 1 or not (heads[1] or width in dims):
        raise UserError(f"the towers' embeddings are of different widths: {sorted(dims)}, {width}")
    model = spec(
        DualEncoder,
        image=image,
        text=text,
        embed_dim=dims.pop(),
        image_projection=bool(heads[0]),
        text_projection=bool(heads[1]),
        projection_bias=True,
        log_scale=math.log(10),
        logit_bias=-10.0 if "b" in shapes else None,
    )
    length = txt.get("token_len", min(BERT_LENGTH, text.max_len)) if bert else text.max_len
    if not 2 <= length <= text.max_len:
        raise UserError(f"{txt.where}.token_len={length} is not from 2 to {text.max_len}")
    img.close()
    txt.close()
    return Found(model, dataclasses.replace(layout, text=stack), length)


def _head(shapes: Shapes, tower: str) -> int:
    """The width that a tower's last linear layer leads to; 0 without one."""
    return shapes.get(f"{tower}/head/kernel", (0, 0))[1]


def _text(shapes: Shapes, txt: Settings) -> tuple[Config, Stack]:
    blocks, stack = _blocks(shapes, TEXT)
    made = spec(
        TextTransformer,
        blocks=blocks,
        vocab_size=shapes["txt/Embed_0/embedding"][0],
        max_len=_shape(shapes, "txt/pos_embedding")[1],
        causal=False,
        mask_padding=False,
        pool=TEXT_POOLS[txt.only("pool_type", *TEXT_POOLS)],
    )
    return made, stack


def _bert(shapes: Shapes, txt: Settings) -> tuple[Config, Stack]:
    sizes = {x: _shape(shapes, BERT_EMBEDDINGS.format(x)) for x in ("token", "position", "segment")}
    vocab_size, width = sizes["token"]
    heads = txt.get("num_heads", width // HEAD_WIDTH)
    if not heads or width % heads:
        raise UserError(
            f"BERT of width {width}: give its number of heads as {txt.where}.num_heads in --config"
            f" (found {heads})"
        )
    made = spec(
        TextTransformer,
        blocks=spec(
            Transformer,
            width=width,
            depth=_count(shapes, re.escape(BERT_LAYERS).replace(r"\{\}", r"(\d+)")),
            heads=heads,
            mlp_dim=_shape(shapes, f"{BERT_LAYERS.format(0)}{BERT_BLOCK.mlp[0]}/kernel")[1],
            norm="post",
            norm_eps=1e-12,
        ),
        vocab_size=vocab_size,
        max_len=sizes["position"][0],
        causal=False,
        pool="first",
        token_types=sizes["segment"][0],
    )
    return made, Stack()


def _cappa(shapes: Shapes) -> Found:
    image, layout = _image(shapes, "encoder/", None)
    stacked = "decoder/EncDecBlock/LayerNorm1/scale" in shapes
    block = "decoder/EncDecBlock/" if stacked else "decoder/EncDecBlock0/"
    query = _shape(shapes, f"{block}SelfAttn/query/kernel")
    # The scanned decoder has its layers on the second axis.
    width, heads = (query[0], query[2]) if stacked else query[:2]
    depth = query[1] if stacked else _count(shapes, r"decoder/EncDecBlock(\d+)/")
    rows = shapes["decoder/EmbedTargets/embedding"][0]
    written = _shape(shapes, "decoder/LogitsDense/bias")[0]
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
                mlp_dim=_shape(shapes, f"{block}MLP/Dense_0/kernel")[-1],
                cross_attention=True,
                use_bias=bias,
                qkv_bias=False,
                out_bias=False,
                norm_bias=bias,
            ),
            vocab_size=rows,
            max_len=_shape(shapes, "pos_embedding_decoder")[1],
            pool="none",
        ),
        head_bias=True,
        mask_token=rows > written,
    )
    layout = dataclasses.replace(layout, text=Stack(stacked))
    return Found(model, layout, model.text.max_len)


def _image(shapes: Shapes, prefix: str, settings: Settings | None) -> tuple[Config, Layout]:
    """The image tower; one without settings does not pool."""
    blocks, stack = _blocks(shapes, f"{prefix}Transformer/")
    positions = _positions(shapes, prefix)
    kernel, table = shapes[f"{prefix}embedding/kernel"], shapes[prefix + positions]
    # NaFlex's patches are rows of pixels, its positions a square.
    flexible, has_cls = len(kernel) == 2, f"{prefix}cls" in shapes
    patch, count = kernel[0], math.prod(table[:-1])
    if flexible:
        patch = math.isqrt(kernel[0] // 3)
    side = math.isqrt(count)
    if side * side not in (count, count - has_cls) or (flexible and table[0] != side):
        raise UserError(f"{prefix}{positions}: {count} positions are no square grid")
    pool, image_size = "none", patch * side
    if settings is not None:
        image_size = settings.get("image_size", image_size)
        if not flexible and image_size // patch != side:
            raise UserError(f"img.image_size={image_size} is not {side} patches of {patch} pixels")
        pooled = "tok" if has_cls else "gap"
        pooled = "map" if f"{prefix}MAPHead_0/probe" in shapes else pooled
        pool = {"tok": "cls", "gap": "gap", "map": "map"}[settings.only("pool_type", pooled)]
    made = spec(
        VisionTransformer,
        blocks=blocks,
        image_size=image_size,
        patch_size=patch,
        ragged=image_size % patch > 0 and not flexible,
        position_grid=side if flexible else 0,
        pool=pool,
        cls_token=has_cls,
        cls_position=has_cls and side * side != count,
        rep_size=shapes.get(f"{prefix}pre_logits/kernel", (0, 0))[1],
    )
    return made, Layout(image=stack, positions=positions)


def _positions(shapes: Shapes, prefix: str) -> str:
    """Where the positions are; in older files they are the encoder's."""
    names = ("pos_embedding", "Transformer/pos_embedding")
    names += ("Transformer/posembed_input/pos_embedding",)
    found = [name for name in names if prefix + name in shapes]
    if not found:
        raise UserError(f"there is no {prefix}pos_embedding: fixed positions are not supported")
    return found[0]


def _blocks(shapes: Shapes, encoder: str) -> tuple[Config, Stack]:
    """An encoder's blocks, and how they are laid out."""
    stacked = f"{encoder}encoderblock/LayerNorm_0/scale" in shapes
    first = f"{encoder}encoderblock/" if stacked else f"{encoder}encoderblock_0/"
    stack = Stack(stacked, old=f"{first}MlpBlock_3/Dense_0/kernel" in shapes)
    query = _shape(shapes, first + stack.names.attention.weights[0])
    hidden = _shape(shapes, f"{first}{stack.names.mlp[0]}/kernel")[-1]
    depth = query[0] if stacked else _count(shapes, re.escape(encoder) + r"encoderblock_(\d+)/")
    made = spec(Transformer, width=query[-3], depth=depth, heads=query[-2], mlp_dim=hidden)
    return made, stack


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"{name} is missing: not a transformer of big_vision")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number of a layer."""
    found = (re.match(pattern, name) for name in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
