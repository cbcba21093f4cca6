"""Vision transformer (arXiv:2010.11929): from uint8 images to tokens and a pooled vector."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Num

from big_mm import mesh
from big_mm.models.layers import Inserted, Transformer, rematerialised, scaled_normal
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


def mask_lowest(
    scores: Float[Array, "batch patches"], share: float
) -> Bool[Array, "batch patches"]:
    """True for this share of each image's patches (rounded, at least one), those that score lowest.

    The same number in every image, of equal patches the first; random scores mask random patches.
    """
    count = max(1, round(share * scores.shape[1]))
    ranks = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
    return ranks < count


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
      any_size: other square images are seen too (local crops, another resolution), by positions
        resized to their grid; "sincos2d" computes those of their grid.
      position: "learned" or fixed "sincos2d".
      position_grid: side of the grid of learned positions, which is resized to the image's as
        NaFlex does it (arXiv:2502.14786); 0 has them as they are.
      mean, std: what pixels in 0..1 are normalised with, by channel.
      pool: "none"; "gap", the mean of the patches; "cls", a learned token in front of them; "map",
        attentional pooling by one query.
      cls_token: the token without the pooling (pool="cls" implies it).
      cls_tokens: how many there are then, for several embeddings of an image (arXiv:2410.16512);
        pool="cls" takes the first.
      cls_position: whether the token has a position of its own.
      registers: learned tokens between it and the patches, without positions, which only the layers
        see (arXiv:2309.16588).
      norm_after_pool: pools what the layers give and normalises that, not the other way round.
      pre_norm: a norm before the first block, as CLIP has.
      patch_bias: CLIP's patch embedding has none.
      mask_token: a learned embedding that stands in for masked patches (arXiv:2106.08254).
      rep_size: width of a linear layer with tanh behind the pooling (arXiv:2010.11929, section
        3.1); 0 for none.
    """

    blocks: Transformer
    image_size: int = 224
    patch_size: int = 16
    ragged: bool = False
    any_size: bool = False
    position: str = "learned"
    position_grid: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pool: str = "none"
    cls_token: bool = False
    cls_tokens: int = 1
    cls_position: bool = True
    registers: int = 0
    norm_after_pool: bool = False
    pre_norm: bool = False
    patch_bias: bool = True
    mask_token: bool = False
    rep_size: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size and not self.ragged:
            raise UserError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            )
        choose("position", self.position, POSITIONS)
        choose("pool", self.pool, POOLS)
        if self.cls_tokens < 1:
            raise UserError(f"cls_tokens={self.cls_tokens} must be at least 1: cls_token=False")
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
        self,
        image: Num[Array, "batch height width 3"],
        patch_mask: Bool[Array, "batch patches"] | None = None,
        *,
        prompts: Inserted | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """`tokens` [batch, patches (+ cls in front), width], normed; `cls` and `patches`, the two
        apart; `pooled` [batch, output_width] unless pool is "none".

        Args:
          image: values in 0..255 of any number type.
          patch_mask: true for patches whose content is hidden by the mask token.
          prompts: further tokens behind the patches, which only the layers see: the first layer's
            in its input, those of layer i in their place in its input (arXiv:2210.03117).

        Raises:
          UserError: images of another size without `any_size`, a mask without `mask_token`.
        """
        blocks, grid = self.blocks, self._grid(image)
        if patch_mask is not None and not self.mask_token:
            raise UserError("a patch_mask needs a tower with mask_token=True")
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
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.normal(0.02), (blocks.width,))
            if patch_mask is not None:
                x = jnp.where(patch_mask[..., None], token.astype(x.dtype), x)
        cls = self.cls_tokens if self.cls_token or self.pool == "cls" else 0
        x = self._with_prefix(x, self._positions(grid, cls).astype(x.dtype), cls)
        own = x.shape[1]
        if prompts is not None:
            first = jnp.broadcast_to(prompts[..., 0, :, :], (len(x), *prompts.shape[-2:]))
            x = jnp.concatenate([x, first.astype(x.dtype)], axis=1)
        if self.pre_norm:
            x = self._norm("pre_norm")(x)
        if prompts is not None:
            x = blocks(x, inserted=prompts[..., 1:, :, :], insert_at=own, train=train)[:, :own]
        else:
            x = blocks(x, train=train)
        if self.registers:
            x = jnp.concatenate([x[:, :cls], x[:, cls + self.registers :]], axis=1)
        norm = self._norm("norm")
        tokens = norm(x)
        out = {"tokens": tokens, "cls": tokens[:, :cls], "patches": tokens[:, cls:]}
        if self.pool != "none":
            after = self.norm_after_pool
            pooled = norm(self._pooled(x, cls)) if after else self._pooled(tokens, cls)
            if self.rep_size:
                dense = nn.Dense(self.rep_size, dtype=blocks.dtype, name="pre_logits")
                pooled = nn.tanh(dense(pooled))
            out["pooled"] = pooled
        return out

    def _grid(self, image: Array) -> int:
        """Patches along a side of the image."""
        height, width = image.shape[1:3]
        fits = self.any_size and height == width and (self.ragged or not height % self.patch_size)
        if (height, width) != (self.image_size, self.image_size) and not fits:
            raise UserError(
                f"images of {height}x{width} pixels for a model of image_size={self.image_size}"
                f", any_size={self.any_size}, patch_size={self.patch_size}"
            )
        return height // self.patch_size

    def _with_prefix(self, x: Array, positions: Array, cls_tokens: int) -> Array:
        """The patches with their positions, behind the cls tokens and the registers."""
        width, init = self.blocks.width, nn.initializers.normal(0.02)
        own = len(positions) - x.shape[1]
        parts = [x + positions[own:]]
        if self.registers:
            parts.insert(0, self.param("registers", init, (self.registers, width)).astype(x.dtype))
        if cls_tokens:
            shape = (width,) if cls_tokens == 1 else (cls_tokens, width)
            cls = self.param("cls", init, shape).astype(x.dtype).reshape(cls_tokens, width)
            parts.insert(0, cls + positions[:own] if own else cls)
        shapes = [(x.shape[0], *part.shape[-2:]) for part in parts]
        return jnp.concatenate(list(map(jnp.broadcast_to, parts, shapes)), axis=1)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=self.blocks.norm_eps, dtype=self.blocks.dtype, name=name)

    def _positions(self, grid: int, cls_tokens: int) -> Float[Array, "tokens width"]:
        if self.position == "sincos2d":
            # The learned tokens need no fixed position.
            return jnp.asarray(sincos2d(grid, grid, self.blocks.width))
        own = cls_tokens * self.cls_position
        stored = self.position_grid or self.image_size // self.patch_size
        shape = (own + stored * stored, self.blocks.width)
        table = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        if stored == grid:
            return table
        return jnp.concatenate([table[:own], resize_grid(table[own:], grid * grid)])

    def _pooled(
        self, x: Float[Array, "batch tokens width"], cls_tokens: int
    ) -> Float[Array, "batch width"]:
        if self.pool == "cls":
            return x[:, 0]
        if self.pool == "gap":
            return x[:, cls_tokens:].mean(axis=1)
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
