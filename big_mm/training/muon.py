"""Muon: orthogonalised momentum for the matrices inside the layers, AdamW for everything else."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array
from optax import contrib

from big_mm.training.optimizer import AdamW

# The kernels of `big_mm.models.layers` as matrices: axes summed over and axes produced, counted
# from the end. What stands before them (the scanned depth; query, key, value) is many matrices.
MATRICES = {
    "qkv": ((-4,), (-2, -1)),
    "kv": ((-4,), (-2, -1)),
    "query": ((-3,), (-2, -1)),
    "out": ((-3, -2), (-1,)),
    "up": ((-2,), (-1,)),
    "down": ((-2,), (-1,)),
}

Flat = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(AdamW):
    """Muon (Jordan et al., 2024), its update scaled as arXiv:2502.16982, section 2.2, proposes.

    The momentum of each attention and MLP matrix is replaced by the nearest orthogonal one, times
    `rms` * sqrt(its larger side), so that the update's root mean square is `rms`. AdamW's is 0.2 to
    0.4, hence the default shares a learning rate with AdamW; small models in short runs gain from
    more. Embeddings, output heads, norms and biases take AdamW's update.
    """

    momentum: float = 0.95
    iterations: int = 5
    rms: float = 0.2

    def direction(self) -> optax.GradientTransformation:
        orthogonal = contrib.scale_by_muon(
            ns_steps=self.iterations,
            beta=self.momentum,
            mu_dtype=jnp.dtype(self.moment_dtype),
            weight_dimension_numbers=_dimensions,
        )
        matrices = optax.chain(orthogonal, optax.stateless(self._scale))
        return optax.partition(
            {True: matrices, False: super().direction()},
            lambda params: {path: _is_matrix(path) for path in params},
        )

    def _scale(self, updates: Flat, params: Flat | None) -> Flat:
        del params
        return {
            path: self.rms * _larger_side(path, update) ** 0.5 * update
            if _is_matrix(path)
            else update
            for path, update in updates.items()
        }


def _is_matrix(path: str) -> bool:
    *_, module, name = ("", *path.split("/"))
    return name == "kernel" and module in MATRICES


def _axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    inputs, outputs = MATRICES[path.split("/")[-2]]
    return tuple(ndim + axis for axis in inputs), tuple(ndim + axis for axis in outputs)


def _dimensions(updates: Flat) -> Flat:
    return {
        path: contrib.MuonDimensionNumbers(*_axes(path, update.ndim))
        if _is_matrix(path)
        else update
        for path, update in updates.items()
    }


def _larger_side(path: str, update: Array) -> int:
    sides = (math.prod(update.shape[axis] for axis in axes) for axes in _axes(path, update.ndim))
    return max(sides)
