"""Vision transformer (arXiv:2010.11929): from uint8 images to tokens and a pooled vector."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from big_mm import mesh
from big_mm.models.layers import Transformer, rematerialised, scaled_normal
from big_mm.models.pooling import AttentionalPooler
from big_mm.spec import UserError, choose

POSITIONS = ("learned", "sincos2d")
POOLS = ("none", "gap", "cls", "map")


def patchify(
    image: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches pixels"]:
    """Non-overlapping patches in rows, each flattened as (row, column, channel)."""
    batch, height, width, channels = image.shape
    rows, columns = height // size, width // size
    image = image.reshape(batch, rows, size, columns, size, channels)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def sincos2d(rows: int, columns: int, width: int) -> Float[np.ndarray, "patches width"]:
    """Fixed positions: sines and cosines of x and y at width / 4 frequencies (MoCo v3's form)."""
    if width % 4:
        raise UserError(f"position='sincos2d' needs a width that 4 divides, not {width}")
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def resize_grid(
    positions: Float[Array, "old width"], length: int
) -> Float[Array, "{length} width"]:
    """Bilinear resizing of a square grid of embeddings, antialiased when it shrinks."""
    old, new = math.isqrt(positions.shape[0]), math.isqrt(length)
    grid = positions.reshape(old, old, -1)
    return jax.image.resize(grid, (new, new, grid.shape[-1]), "bilinear").reshape(length, -1)


class VisionTransformer(nn.Module):
    """Patches, positions, transformer, final norm, pooling.

    Attributes:
      blocks: the layers; their width is the tower's, their `dtype` its compute type.
      image_size: side of the square image, in pixels; a multiple of `patch_size` unless `ragged`.
      ragged: rows and columns after the last whole patch are not seen (SigLIP has 384 and 14).
      position: "learned" or fixed "sincos2d".
      position_grid: side of the grid of learned positions, which is resized to the image's as
        NaFlex does it (arXiv:2502.14786); 0 has them as they are.
      mean, std: what pixels in 0..1 are normalised with, by channel.
      pool: "none"; "gap", the mean of the patches; "cls", a learned token in front of them; "map",
        attentional pooling by one query.
      cls_token: the token without the pooling (pool="cls" implies it).
      cls_position: whether the token has a position of its own.
      registers: learned tokens between it and the patches, without positions, which only the layers
        see (arXiv:2309.16588).
      norm_after_pool: pools what the layers give and normalises that, not the other way round.
      pre_norm: a norm before the first block, as CLIP has.
      patch_bias: CLIP's patch embedding has none.
      rep_size: width of a linear layer with tanh behind the pooling (arXiv:2010.11929, section
        3.1); 0 for none.
    """

    blocks: Transformer
    image_size: int = 224
    patch_size: int = 16
    ragged: bool = False
    position: str = "learned"
    position_grid: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pool: str = "none"
    cls_token: bool = False
    cls_position: bool = True
    registers: int = 0
    norm_after_pool: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    rep_size: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size and not self.ragged:
            raise UserError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )
        choose("position", self.position, POSITIONS)
        choose("pool", self.pool, POOLS)
        if self.position_grid and self.position != "learned":
            raise UserError(f"position_grid={self.position_grid} needs position='learned'")
        if self.rep_size and self.pool == "none":
            raise UserError(f"image: rep_size={self.rep_size} needs a pool, which is 'none'")
        super().__post_init__()

    @property
    def output_width(self) -> int:
        """Of `pooled`."""
        return self.rep_size or self.blocks.width

    @nn.compact
    def __call__(
        self, image: Num[Array, "batch height width 3"], *, train: bool = False
    ) -> dict[str, Array]:
        """`tokens` [batch, patches (+ cls in front), width], normed; `patches`, those without cls;
        `pooled` [batch, output_width] unless pool is "none".

        Args:
          image: values in 0..255 of any number type.
        """
        blocks, grid = self.blocks, self.image_size // self.patch_size
        if image.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(
                f"images of {image.shape[1]}x{image.shape[2]} pixels for a model of image_size="
                f"{self.image_size}"
            )
        seen = grid * self.patch_size
        image = image[:, :seen, :seen]
        image = (image.astype(jnp.float32) / 255.0 - jnp.array(self.mean)) / jnp.array(self.std)
        x = nn.Dense(
            blocks.width,
            use_bias=self.patch_bias,
            dtype=blocks.dtype,
            kernel_init=scaled_normal(),
            name="patch",
        )(patchify(image.astype(blocks.dtype), self.patch_size))
        x = mesh.by_rows(x)
        has_cls = self.cls_token or self.pool == "cls"
        x = self._with_prefix(x, self._positions(grid, has_cls).astype(x.dtype), has_cls)
        if self.pre_norm:
            x = self._norm("pre_norm")(x)
        x = blocks(x, train=train)
        if self.registers:
            x = jnp.concatenate([x[:, : int(has_cls)], x[:, has_cls + self.registers :]], axis=1)
        norm = self._norm("norm")
        tokens = norm(x)
        out = {"tokens": tokens, "patches": tokens[:, int(has_cls) :]}
        if self.pool != "none":
            after = self.norm_after_pool
            pooled = norm(self._pooled(x, has_cls)) if after else self._pooled(tokens, has_cls)
            if self.rep_size:
                dense = nn.Dense(self.rep_size, dtype=blocks.dtype, name="pre_logits")
                pooled = nn.tanh(dense(pooled))
            out["pooled"] = pooled
        return out

    def _with_prefix(self, x: Array, positions: Array, has_cls: bool) -> Array:
        """The patches with their positions, behind the cls token and the registers."""
        width, init = self.blocks.width, nn.initializers.normal(0.02)
        own = len(positions) - x.shape[1]
        parts = [x + positions[own:]]
        if self.registers:
            parts.insert(0, self.param("registers", init, (self.registers, width)).astype(x.dtype))
        if has_cls:
            cls = self.param("cls", init, (width,)).astype(x.dtype)[None]
            parts.insert(0, cls + positions[:own] if own else cls)
        shapes = [(x.shape[0], *part.shape[-2:]) for part in parts]
        return jnp.concatenate(list(map(jnp.broadcast_to, parts, shapes)), axis=1)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.blocks.norm_eps, dtype=self.blocks.dtype, name=name)

    def _positions(self, grid: int, has_cls: bool) -> Float[Array, "tokens width"]:
        if self.position == "sincos2d":
            # The learned token needs no fixed position.
            return jnp.asarray(sincos2d(grid, grid, self.blocks.width))
        own, stored = int(has_cls and self.cls_position), self.position_grid or grid
        shape = (own + stored * stored, self.blocks.width)
        table = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        if stored == grid:
            return table
        return jnp.concatenate([table[:own], resize_grid(table[own:], grid * grid)])

    def _pooled(
        self, x: Float[Array, "batch tokens width"], has_cls: bool
    ) -> Float[Array, "batch width"]:
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "gap":
            return x[:, int(has_cls) :].mean(axis=1)
        blocks = self.blocks
        return rematerialised(AttentionalPooler, blocks.remat)(
            queries=1,
            width=blocks.width,
            heads=blocks.heads,
            mlp_dim=blocks.mlp_dim,
            activation=blocks.activation,
            use_bias=blocks.use_bias,
            norm_eps=blocks.norm_eps,
            dtype=blocks.dtype,
            implementation=blocks.implementation,
            name="pooler",
        )(x)[:, 0]
