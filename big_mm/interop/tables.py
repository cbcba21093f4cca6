"""The parts of which every family's table is made: norms, linear layers, attention, stacks.

Each function takes a path of ours and a name of theirs and gives entries of `mapping`; what a
library calls the weights inside these parts is a `Names`.
"""

import dataclasses

from big_mm.interop.mapping import FLAT_OUT, OUT, SAME, TRANSPOSED, Codec, Entry, projections
from big_mm.models.layers import Transformer
from big_mm.models.text import TextTransformer


@dataclasses.dataclass(frozen=True)
class Attention:
    """Names of an attention: its input projections (one tensor for all of queries, keys and values,
    or several) with their biases, and its output projection.
    """

    weights: tuple[str, ...]
    biases: tuple[str, ...]
    out: str


@dataclasses.dataclass(frozen=True)
class Names:
    """A library's names in a block, relative to it.

    Attributes:
      torch: linear layers are PyTorch's (weight [out, in]); or Flax's (kernel, as ours).
      flat: Flax's attention kernels have no axis of heads.
      scales: layer scale after attention and after the MLP.
    """

    attention_norm: str
    attention: Attention
    mlp_norm: str
    mlp: tuple[str, str]
    scales: tuple[str, str] = ("", "")
    torch: bool = True
    flat: bool = False


def fused(prefix: str) -> Attention:
    """Of PyTorch's nn.MultiheadAttention over one width."""
    return Attention((f"{prefix}in_proj_weight",), (f"{prefix}in_proj_bias",), f"{prefix}out_proj")


def separate(prefix: str) -> Attention:
    """Of nn.MultiheadAttention over two widths: its biases stay fused."""
    weights = tuple(f"{prefix}{x}_proj_weight" for x in "qkv")
    return Attention(weights, (f"{prefix}in_proj_bias",), f"{prefix}out_proj")


def flax(prefix: str) -> Attention:
    """Of Flax's attention."""
    each = [f"{prefix}/{x}" for x in ("query", "key", "value")]
    kernels, biases = (tuple(f"{x}/{leaf}" for x in each) for leaf in ("kernel", "bias"))
    return Attention(kernels, biases, f"{prefix}/out")


_HUGGING_FACE = [f"self_attn.{x}_proj" for x in "qkv"]
OPEN_CLIP = Names(
    "ln_1", fused("attn."), "ln_2", ("mlp.c_fc", "mlp.c_proj"), ("ls_1.gamma", "ls_2.gamma")
)
TIMM = Names(
    "norm1",
    Attention(("attn.qkv.weight",), ("attn.qkv.bias",), "attn.proj"),
    "norm2",
    ("mlp.fc1", "mlp.fc2"),
    ("ls1.gamma", "ls2.gamma"),
)
HUGGING_FACE = Names(
    "layer_norm1",
    Attention(
        tuple(f"{x}.weight" for x in _HUGGING_FACE),
        tuple(f"{x}.bias" for x in _HUGGING_FACE),
        "self_attn.out_proj",
    ),
    "layer_norm2",
    ("mlp.fc1", "mlp.fc2"),
)
FLAX = Names(
    "LayerNorm_0",
    flax("MultiHeadDotProductAttention_0"),
    "LayerNorm_1",
    ("MlpBlock_0/Dense_0", "MlpBlock_0/Dense_1"),
    torch=False,
)


BERT = Names(
    "attention.output.LayerNorm",
    Attention(
        tuple(f"attention.self.{x}.weight" for x in ("query", "key", "value")),
        tuple(f"attention.self.{x}.bias" for x in ("query", "key", "value")),
        "attention.output.dense",
    ),
    "output.LayerNorm",
    ("intermediate.dense", "output.dense"),
)


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes entries in one library's way.

    Attributes:
      torch, flat: as of `Names`.
      depth, axis: of the stack that the entries are of, as of `Entry`.
    """

    torch: bool = True
    depth: int = 0
    axis: int = 0
    flat: bool = False

    def one(self, ours: str, theirs: str, codec: Codec = SAME) -> list[Entry]:
        """One parameter."""
        return [Entry((ours,), (theirs,), codec, self.depth, self.axis)]

    def norm(self, ours: str, theirs: str, bias: bool = True) -> list[Entry]:
        """A layer norm."""
        scale = f"{theirs}.weight" if self.torch else f"{theirs}/scale"
        return self.one(f"{ours}/scale", scale) + self._bias(ours, theirs, bias)

    def dense(self, ours: str, theirs: str, bias: bool = True) -> list[Entry]:
        """A linear layer."""
        return self._kernel(ours, theirs, TRANSPOSED, SAME) + self._bias(ours, theirs, bias)

    def mlp(self, ours: str, theirs: tuple[str, str], bias: bool = True) -> list[Entry]:
        """Two of them."""
        up, down = theirs
        return self.dense(f"{ours}/up", up, bias) + self.dense(f"{ours}/down", down, bias)

    def attention(
        self,
        ours: str,
        theirs: Attention,
        prefix: str = "",
        *,
        cross: bool = False,
        qkv_bias: bool = True,
        out_bias: bool = True,
    ) -> list[Entry]:
        """An attention over its input or, with `cross`, over a context."""
        inputs = [f"{ours}/{name}" for name in (("query", "kv") if cross else ("qkv",))]
        entries = []
        for leaf, names, rank in (("kernel", theirs.weights, 3), ("bias", theirs.biases, 2)):
            if leaf == "kernel" or qkv_bias:
                # One tensor of three, one of queries and one of the rest, or three.
                groups = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}[len(names)]
                codec = projections(rank, groups, self.torch, self.flat)
                paths = tuple(f"{name}/{leaf}" for name in inputs)
                full = tuple(prefix + name for name in names)
                entries.append(Entry(paths, full, codec, self.depth, self.axis))
        out = prefix + theirs.out
        return [
            *entries,
            *self._kernel(f"{ours}/out", out, OUT, FLAT_OUT if self.flat else SAME),
            *self._bias(f"{ours}/out", out, out_bias),
        ]

    def _kernel(self, ours: str, theirs: str, torch: Codec, flax: Codec) -> list[Entry]:
        if self.torch:
            return self.one(f"{ours}/kernel", f"{theirs}.weight", torch)
        return self.one(f"{ours}/kernel", f"{theirs}/kernel", flax)

    def _bias(self, ours: str, theirs: str, bias: bool) -> list[Entry]:
        leaf = f"{theirs}.bias" if self.torch else f"{theirs}/bias"
        return self.one(f"{ours}/bias", leaf) if bias else []


def block_biases(blocks: Transformer) -> tuple[bool, bool]:
    """Whether the attention of these blocks has biases before and after it."""
    qkv, out = blocks.qkv_bias, blocks.out_bias
    return blocks.use_bias if qkv is None else qkv, blocks.use_bias if out is None else out


def stack(
    ours: str, theirs: str, blocks: Transformer, names: Names, *, mlp: str = "mlp", axis: int = 0
) -> list[Entry]:
    """A stack of blocks.

    Args:
      theirs: prefix of a block's names, its end included, with `{}` for the layer's number; without
        `{}` the layers lie on `axis` of their arrays.
      mlp: what our MLP is called.
    """
    make, layers = Maker(names.torch, blocks.depth, axis, names.flat), f"{ours}/layers"
    qkv_bias, out_bias = block_biases(blocks)
    up, down = names.mlp
    entries = [
        *make.norm(f"{layers}/attention_norm", theirs + names.attention_norm, blocks.norm_bias),
        *make.attention(
            f"{layers}/attention", names.attention, theirs, qkv_bias=qkv_bias, out_bias=out_bias
        ),
        *make.norm(f"{layers}/{mlp}_norm", theirs + names.mlp_norm, blocks.norm_bias),
        *make.mlp(f"{layers}/{mlp}", (theirs + up, theirs + down), blocks.use_bias),
    ]
    if blocks.layer_scale:
        for name, scale in zip(("attention", mlp), names.scales, strict=True):
            entries += make.one(f"{layers}/{name}_layer_scale", theirs + scale)
    return entries


def is_bert(text: TextTransformer) -> bool:
    """Whether a text tower is BERT or RoBERTa, which other programs keep apart from their own."""
    return text.blocks.norm == "post"


def bert(theirs: str, text: TextTransformer) -> list[Entry]:
    """Hugging Face's BERT or RoBERTa as text tower."""
    make, embeddings = Maker(), f"{theirs}embeddings."
    entries = [
        *make.one("text/embedding", f"{embeddings}word_embeddings.weight"),
        *make.one("text/position_embedding", f"{embeddings}position_embeddings.weight"),
        *make.one("text/type_embedding", f"{embeddings}token_type_embeddings.weight"),
        *make.norm("text/norm", f"{embeddings}LayerNorm"),
        *stack("text/blocks", f"{theirs}encoder.layer.{{}}.", text.blocks, BERT),
    ]
    pooler = make.dense("text/pre_logits", f"{theirs}pooler.dense") if text.rep_size else []
    return entries + pooler


def map_pooler(
    ours: str, make: Maker, attention: Attention, norm: str, mlp: tuple[str, str]
) -> list[Entry]:
    """SigLIP's pooling head, its query aside."""
    return [
        *make.attention(f"{ours}/attention", attention, cross=True),
        *make.norm(f"{ours}/norm", norm),
        *make.mlp(f"{ours}/Mlp_0", mlp),
    ]
