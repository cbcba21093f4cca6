"""What big_vision calls the weights of our models: two towers (SigLIP, LiT, NaFlex), and CapPa."""

import dataclasses

from big_mm.interop import tables
from big_mm.interop.mapping import ONE_AXIS, TWO_AXES, Codec, Entry, patches
from big_mm.models.captioner import Captioner
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer
from big_mm.models.vision import VisionTransformer

# Flax named modules by their place in the block before 2021.
OLD_BLOCK = tables.Names(
    "LayerNorm_0",
    tables.flax("MultiHeadDotProductAttention_1"),
    "LayerNorm_2",
    ("MlpBlock_3/Dense_0", "MlpBlock_3/Dense_1"),
    torch=False,
)
_ATTENTION = "attention_block/attention_layer"
# flaxformer's, whose kernels have no axis of heads.
BERT_BLOCK = tables.Names(
    "attention_block/layer_norm",
    dataclasses.replace(tables.flax(_ATTENTION), out="attention_block/dense_layer"),
    "mlp_block/layer_norm",
    ("mlp_block/mlp/dense_layer", "mlp_block/dense_layer"),
    torch=False,
    flat=True,
)
BERT, TEXT = "txt/BertEncoder_0/", "txt/Encoder_0/"
BERT_LAYERS = f"{BERT}encoder_block/layer_sequence/layers_{{}}/"
BERT_EMBEDDINGS = f"{BERT}embedder/embedders_{{}}_ids/embedding"


@dataclasses.dataclass(frozen=True)
class Stack:
    """How a file lays out an encoder.

    Attributes:
      stacked: each of its arrays holds all layers; or layers are numbered.
      old: modules are named by their place, as before 2021.
    """

    stacked: bool = False
    old: bool = False

    @property
    def names(self) -> tables.Names:
        """Of a block's parts."""
        return OLD_BLOCK if self.old else tables.FLAX


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a model leaves open about its file; the defaults are what is written.

    Attributes:
      positions: where the image tower's are.
    """

    image: Stack = Stack()
    text: Stack = Stack()
    positions: str = "pos_embedding"


def table(model: DualEncoder | Captioner, layout: Layout) -> list[Entry]:
    """The table of a model."""
    return (_cappa if isinstance(model, Captioner) else _two_towers)(model, layout)


def _two_towers(model: DualEncoder, layout: Layout) -> list[Entry]:
    make = tables.Maker(torch=False)
    entries = _image("img/", model.image, layout)
    entries += _bert(model.text) if tables.is_bert(model.text) else _text(model.text, layout.text)
    entries += make.one("temperature/log_scale", "t", ONE_AXIS)
    entries += make.dense("image_head", "img/head") if model.image_projection else []
    entries += make.dense("text_head", "txt/head") if model.text_projection else []
    return entries + (make.one("logit_bias", "b", ONE_AXIS) if model.logit_bias is not None else [])


def _text(text: TextTransformer, layout: Stack) -> list[Entry]:
    make = tables.Maker(torch=False)
    return [
        *make.one("text/embedding", "txt/Embed_0/embedding"),
        *make.one("text/position_embedding", "txt/pos_embedding", ONE_AXIS),
        *_stack("text/blocks", TEXT, text.blocks, layout),
        *make.norm("text/norm", f"{TEXT}encoder_norm"),
    ]


def _bert(text: TextTransformer) -> list[Entry]:
    make, embeddings = tables.Maker(torch=False), BERT_EMBEDDINGS.format
    return [
        *make.one("text/embedding", embeddings("token")),
        *make.one("text/position_embedding", embeddings("position")),
        *make.one("text/type_embedding", embeddings("segment")),
        *make.norm("text/norm", f"{BERT}layer_norm"),
        *tables.stack("text/blocks", BERT_LAYERS, text.blocks, BERT_BLOCK),
    ]


def _image(theirs: str, image: VisionTransformer, layout: Layout) -> list[Entry]:
    make, kernel = tables.Maker(torch=False), f"{theirs}embedding/kernel"
    positions = f"{theirs}{layout.positions}"
    if grid := image.position_grid:
        linear, square = kernel, _grid(grid)
        entries = make.one("image/patch/kernel", linear)
        entries += make.one("image/position_embedding", positions, square)
    else:
        convolution = patches(image.patch_size, torch=False)
        entries = make.one("image/patch/kernel", kernel, convolution)
        entries += make.one("image/position_embedding", positions, ONE_AXIS)
    entries += [
        *make.one("image/patch/bias", f"{theirs}embedding/bias"),
        *_stack("image/blocks", f"{theirs}Transformer/", image.blocks, layout.image),
        *make.norm("image/norm", f"{theirs}Transformer/encoder_norm"),
    ]
    if image.cls_token or image.pool == "cls":
        entries += make.one("image/cls", f"{theirs}cls", TWO_AXES)
    if image.rep_size:
        entries += make.dense("image/pre_logits", f"{theirs}pre_logits")
    if image.pool == "map":
        head = f"{theirs}MAPHead_0/"
        mlp = (f"{head}MlpBlock_0/Dense_0", f"{head}MlpBlock_0/Dense_1")
        attention = tables.flax(f"{head}MultiHeadDotProductAttention_0")
        entries += make.one("image/pooler/query", f"{head}probe", ONE_AXIS)
        entries += tables.map_pooler("image/pooler", make, attention, f"{head}LayerNorm_0", mlp)
    return entries


def _grid(side: int) -> Codec:
    """Our positions [side * side, width] and NaFlex's [side, side, width]."""
    return Codec(
        lambda ours: [ours[0].reshape(side, side, -1)],
        lambda theirs, shapes: [theirs[0].reshape(shapes[0])],
    )


def _stack(ours: str, encoder: str, blocks: Transformer, layout: Stack) -> list[Entry]:
    theirs = f"{encoder}encoderblock/" if layout.stacked else f"{encoder}encoderblock_{{}}/"
    return tables.stack(ours, theirs, blocks, layout.names)


def _cappa(model: Captioner, layout: Layout) -> list[Entry]:
    make, stacked = tables.Maker(torch=False), layout.text.stacked
    # The scanned decoder has its layers on the second axis.
    axis, prefix = (1, "EncDecBlock/") if stacked else (0, "EncDecBlock{}/")
    return [
        *_image("encoder/", model.image, layout),
        *make.one("text/embedding", "decoder/EmbedTargets/embedding"),
        *make.one("text/position_embedding", "pos_embedding_decoder", ONE_AXIS),
        *_decoder("text/blocks/layers", f"decoder/{prefix}", model.text.blocks, axis),
        *make.norm("text/norm", "decoder/LayerNorm"),
        *make.dense("caption_head", "decoder/LogitsDense"),
    ]


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
