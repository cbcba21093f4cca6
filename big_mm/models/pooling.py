"""Attentional pooling: learned queries that read a sequence of tokens."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from big_mm import mesh
from big_mm.models.layers import Attention, Mlp
from big_mm.spec import UserError, choose

NORMS = ("query", "context", "output")


class AttentionalPooler(nn.Module):
    """One multi-head attention whose queries are learned (arXiv:2205.01917, section 3.2).

    With `mlp_dim` the output is x + MLP(norm(x)), as in the pooling head of arXiv:2106.04560, which
    with one query is SigLIP's.

    Attributes:
      queries: number of output tokens.
      width: of queries and output.
      norms: which of "query", "context" and "output" are normalised; open_clip's CoCa normalises
        its queries too. With `mlp_dim` the output is not.
    """

    queries: int
    width: int
    heads: int
    mlp_dim: int = 0
    activation: str = "gelu"
    use_bias: bool = True
    norm_eps: float = 1e-6
    norms: tuple[str, ...] = ("output",)
    dtype: str = "float32"
    implementation: str = "xla"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"pooler: width={self.width} is not a multiple of heads={self.heads}")
        for norm in self.norms:
            choose("norms", norm, NORMS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens in"]) -> Float[Array, "batch queries width"]:
        init = nn.initializers.normal(self.width**-0.5)
        query = self.param("query", init, (self.queries, self.width)).astype(self.dtype)
        if "query" in self.norms:
            query = self._norm("query_norm")(query)
        if "context" in self.norms:
            x = self._norm("context_norm")(x)
        query = mesh.by_rows(jnp.broadcast_to(query, (x.shape[0], *query.shape)))
        out, _ = Attention(
            self.width,
            self.heads,
            use_bias=self.use_bias,
            dtype=self.dtype,
            implementation=self.implementation,
            name="attention",
        )(query, context=mesh.by_rows(x))
        if self.mlp_dim:
            mlp = Mlp(self.width, self.mlp_dim, self.activation, self.use_bias, 1.0, self.dtype)
            return out + mlp(self._norm("norm")(out))
        return self._norm("norm")(out) if "output" in self.norms else out

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)
