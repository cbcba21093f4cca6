"""The transformer that every tower is made of: attention, MLP, block, and the scanned stack.

Compute runs in `dtype`; parameters, softmax and the statistics of norms are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from big_mm import mesh
from big_mm.models.attention import IMPLEMENTATIONS, ContextMask, Mask, attention
from big_mm.spec import UserError, choose

# Tokens that stand in for some of a layer's: for each layer, and perhaps each row its own.
Inserted = Float[Array, "layers count tower_width"] | Float[Array, "batch layers count tower_width"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=True),
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
NORMS = ("pre", "post")
# What a rematerialisation policy can keep by name: queries, keys and values; attention before and
# after its output projection; the MLP's hidden units before their activation.
QKV, CONTEXT, ATTENDED, HIDDEN = "qkv", "context", "attended", "hidden"
_keep = jax.checkpoint_policies.save_only_these_names
# What the forward pass of a layer keeps for its backward pass; the rest is computed again.
REMAT: dict[str, Callable[..., bool] | None] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": _keep(QKV, CONTEXT, ATTENDED),
    "context": _keep(CONTEXT),
    "hidden": _keep(HIDDEN),
}


def scaled_normal(scale: float = 1.0) -> nn.initializers.Initializer:
    """Normal with variance scale / fan_in."""
    return nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


class Attention(nn.Module):
    """Multi-head attention over the input itself, or over `context` when that (or its cached keys
    and values) is given; queries, keys and values come from one matmul where they can.

    Attributes:
      width: of the output; `heads` divides it.
      qkv_bias, out_bias: of the projections before and after the attention; None: as `use_bias`.
      out_scale: variance factor of the output projection at initialisation.
    """

    width: int
    heads: int
    use_bias: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    out_scale: float = 1.0
    dtype: str = "float32"
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch target in"],
        context: Float[Array, "batch source context_width"] | None = None,
        mask: Mask | None = None,
        past: dict[str, Array] | None = None,
        index: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch target width"], dict[str, Array]]:
        """Returns the output and the keys and values attended to.

        Self-attention with `past` (keys and values [batch, max_len, heads, dim]) writes its own at
        position `index` and attends to all; cross-attention with `past` and no context uses them.
        """
        heads = (self.heads, self.width // self.heads)
        project = functools.partial(
            nn.DenseGeneral,
            use_bias=self.use_bias if self.qkv_bias is None else self.qkv_bias,
            dtype=self.dtype,
            kernel_init=scaled_normal(),
        )
        if context is None and (past is None or index is not None):
            qkv = checkpoint_name(project((3, *heads), name="qkv")(x), QKV)
            query, key, value = (qkv[:, :, i] for i in range(3))
            if past is not None:
                write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
                key = write(past["key"], key, index)
                value = write(past["value"], value, index)
        else:
            query = checkpoint_name(project(heads, name="query")(x), QKV)
            if context is not None:
                kv = checkpoint_name(project((2, *heads), name="kv")(context), QKV)
                key, value = kv[:, :, 0], kv[:, :, 1]
            else:
                key, value = past["key"], past["value"]
        context = attention(query, key, value, mask, self.implementation)
        out = project(
            self.width,
            axis=(-2, -1),
            use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            kernel_init=scaled_normal(self.out_scale),
            name="out",
        )(checkpoint_name(context, CONTEXT))
        return checkpoint_name(out, ATTENDED), {"key": key, "value": value}


class Mlp(nn.Module):
    """Two dense layers with an activation between them; `width` is the output's."""

    width: int
    hidden: int
    activation: str = "gelu"
    use_bias: bool = True
    out_scale: float = 1.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "*rows in"]) -> Float[Array, "*rows width"]:
        dense = functools.partial(nn.Dense, use_bias=self.use_bias, dtype=self.dtype)
        x = dense(self.hidden, kernel_init=scaled_normal(), name="up")(x)
        x = checkpoint_name(x, HIDDEN)
        x = ACTIVATIONS[self.activation](x)
        return dense(self.width, kernel_init=scaled_normal(self.out_scale), name="down")(x)


class Block(nn.Module):
    """A layer: x + attention, x + cross-attention if it has one, x + MLP, each with its norm.

    Its attributes are those of `Transformer`, which stacks it.
    """

    width: int
    heads: int
    mlp_dim: int
    cross_attention: bool
    cross_gate: bool
    self_mlp: bool
    context_norm: bool
    activation: str
    use_bias: bool
    qkv_bias: bool | None
    out_bias: bool | None
    norm: str
    norm_eps: float
    norm_bias: bool
    layer_scale: float
    dropout: float
    deterministic: bool
    out_scale: float
    dtype: str
    implementation: str

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch target width"],
        past: dict[str, Any],
        mask: Mask | None,
        context: Float[Array, "batch memory context_width"] | None,
        context_mask: ContextMask | None,
        index: Int[Array, ""] | None,
        inserted: dict[str, Array],
    ) -> tuple[Float[Array, "batch target width"], dict[str, Any]]:
        """`past` holds keys and values of "self" and "cross", each only when cached; `inserted`,
        from `insertions`, what takes the place of some of x.
        """
        common = {
            "use_bias": self.use_bias,
            "out_scale": self.out_scale,
            "dtype": self.dtype,
        }
        attend = functools.partial(
            Attention,
            self.width,
            self.heads,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            implementation=self.implementation,
            **common,
        )
        norm = functools.partial(
            nn.LayerNorm, epsilon=self.norm_eps, use_bias=self.norm_bias, dtype=self.dtype
        )
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        mlp = functools.partial(Mlp, self.width, self.mlp_dim, activation=self.activation, **common)

        def add(name: str, x: Array, layer: Callable[[Array], Any]) -> tuple[Array, Any]:
            own, pre = norm(name=f"{name}_norm"), self.norm == "pre"
            y, kv = layer(own(x) if pre else x)
            x = x + drop(self._scaled(y, name))
            return (x if pre else own(x)), kv

        if inserted:
            x = jnp.where(inserted["slots"][:, None], inserted["tokens"].astype(x.dtype), x)
        new = {}
        attention = functools.partial(
            attend(name="attention"), mask=mask, past=past.get("self"), index=index
        )
        x, kv = add("attention", mesh.by_rows(x), attention)
        if index is not None:
            new["self"] = kv
        if self.self_mlp:
            x, _ = add("self_mlp", x, lambda x: (mlp(name="self_mlp")(x), None))
        if self.cross_attention:
            if self.context_norm and context is not None:
                context = norm(name="context_norm")(context)
            attention = functools.partial(
                attend(name="cross_attention"),
                context=context,
                mask=context_mask,
                past=past.get("cross"),
            )

            def cross(x: Array) -> tuple[Array, Any]:
                y, kv = attention(x)
                if context_mask is not None:
                    # Where nothing is seen, attention gives the mean of what must not be seen.
                    y = jnp.where(context_mask.any(axis=(1, 3))[..., None], y, 0)
                if self.cross_gate:
                    y *= jnp.tanh(self.param("gate", nn.initializers.zeros, ())).astype(y.dtype)
                return y, kv

            x, kv = add("cross_attention", x, cross)
            if index is not None and context is not None:
                new["cross"] = kv
        x, _ = add("mlp", x, lambda x: (mlp(name="mlp")(x), None))
        return x, new

    def _scaled(self, branch: Array, name: str) -> Array:
        if not self.layer_scale:
            return branch
        init = nn.initializers.constant(self.layer_scale)
        scale = self.param(f"{name}_layer_scale", init, (self.width,))
        return branch * scale.astype(branch.dtype)


def insertions(tokens: Inserted, start: int, length: int, depth: int) -> dict[str, Array]:
    """For each of `depth` layers, which of its `length` inputs are replaced, and by what: those
    from `start` on of the layers behind the first by `tokens`, as far as these go.

    Raises:
      UserError: tokens for more layers than there are behind the first.
    """
    *rows, layers, count, width = tokens.shape
    if layers >= depth:
        raise UserError(
            f"tokens to insert behind each of {layers} layers, but a stack of depth={depth} has "
            f"{depth - 1} that are not its last"
        )
    by_layer, at = slice(1, layers + 1), slice(start, start + count)
    slots = jnp.zeros((depth, length), bool).at[by_layer, at].set(True)
    values = jnp.zeros((depth, *rows, length, width), tokens.dtype)
    values = values.at[by_layer, ..., at, :].set(jnp.moveaxis(tokens, -3, 0))
    return {"slots": slots, "tokens": values}


def rematerialised(module: Any, policy: str, prevent_cse: bool = True) -> Any:
    """The module class, keeping for its backward pass what a policy of REMAT says."""
    if policy == "none":
        return module
    return nn.remat(module, prevent_cse=prevent_cse, policy=REMAT[policy])


class Transformer(nn.Module):
    """A scanned stack of blocks: parameters and caches are [depth, ...].

    Attributes:
      width, depth, heads, mlp_dim: sizes; `heads` divides `width`.
      cross_attention: every block also attends to `context`, after its self-attention.
      cross_gate: the cross-attention's branch is multiplied by the tanh of a learned number, which
        begins as zero: the stack begins as one without cross-attention (arXiv:2204.14198).
      self_mlp: a second MLP, between self- and cross-attention, and
      context_norm: a norm of the context in every block, both for open_clip's CoCa decoder.
      activation: "gelu" (tanh form), "gelu_exact", "quick_gelu".
      use_bias: of attention and MLPs; `qkv_bias` and `out_bias` say otherwise for attention.
      norm: where a branch's norm is: "pre", x + branch(norm(x)); "post", norm(x + branch(x)), as
        in arXiv:1706.03762 and BERT.
      norm_bias: of the blocks' norms.
      layer_scale: initial value of a learned factor of each channel of each residual branch
        (arXiv:2103.17239); 0 for none.
      dropout: on the output of each residual branch while training.
      dtype: of the compute; parameters are float32.
      remat: what the forward pass keeps: "none" remat keeps everything, "dots" the matmuls,
        "dots_no_batch" those with weights, "attention" all of attention but its scores, "context"
        attention before its output projection, "hidden" the MLP's hidden units, "full" remat only
        the input of each block.
      unroll: blocks per iteration of the scan: more is faster to run and slower to compile.
      implementation: of attention, see `models.attention`.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    cross_attention: bool = False
    cross_gate: bool = False
    self_mlp: bool = False
    context_norm: bool = False
    activation: str = "gelu"
    use_bias: bool = True
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    norm: str = "pre"
    norm_eps: float = 1e-6
    norm_bias: bool = True
    layer_scale: float = 0.0
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    implementation: str = "xla"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width={self.width} is not a multiple of heads={self.heads}")
        choose("remat", self.remat, REMAT)
        choose("norm", self.norm, NORMS)
        choose("activation", self.activation, ACTIVATIONS)
        choose("implementation", self.implementation, IMPLEMENTATIONS)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch target width"],
        mask: Mask | None = None,
        context: Float[Array, "batch memory context_width"] | None = None,
        *,
        context_mask: ContextMask | None = None,
        inserted: Inserted | None = None,
        insert_at: int = 0,
        train: bool = False,
        index: Int[Array, ""] | None = None,
        max_len: int = 0,
    ) -> Float[Array, "batch target width"]:
        """The masks are true where a target may see a source: `mask` among x, `context_mask` of the
        context, such as a text's padding. A target that sees none of the context gets nothing from
        it.

        The tokens from `insert_at` on of layer i + 1's input are replaced by those of layer i in
        `inserted`, such as the deep prompts of arXiv:2203.12119; x is the input of layer 0.

        With `index`, the position of x[:, 0], past keys and values come from the "cache"
        collection ([depth, batch, max_len, heads, dim]) and the new ones go there. `context` is
        then needed in the first call only.
        """
        past = {}
        if index is not None:
            kv = (self.depth, x.shape[0], max_len, self.heads, self.width // self.heads)
            zeros = {name: jnp.zeros(kv, self.dtype) for name in ("key", "value")}
            past["self"] = self.get_variable("cache", "self", zeros)
            if self.cross_attention and context is None:
                past["cross"] = self.get_variable("cache", "cross")
        replaced: dict[str, Array] = {}
        if inserted is not None and inserted.shape[-3]:
            replaced = insertions(inserted, insert_at, x.shape[1], self.depth)
        x, new = self._stack(train)(x, past, mask, context, context_mask, index, replaced)
        for name, kv in new.items():
            self.put_variable("cache", name, kv)
        return x

    def _stack(self, train: bool) -> nn.Module:
        # Inside a loop nothing can be merged across the barrier, which would only cost time.
        block = rematerialised(Block, self.remat, prevent_cse=self.unroll > 1)
        scanned = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=self.depth,
            unroll=self.unroll,
        )
        return scanned(
            width=self.width,
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            cross_attention=self.cross_attention,
            cross_gate=self.cross_gate,
            self_mlp=self.self_mlp,
            context_norm=self.context_norm,
            activation=self.activation,
            use_bias=self.use_bias,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            norm=self.norm,
            norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            layer_scale=self.layer_scale,
            dropout=self.dropout,
            deterministic=not train,
            out_scale=0.5 / self.depth,
            dtype=self.dtype,
            implementation=self.implementation,
            name="layers",
        )
