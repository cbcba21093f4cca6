"""TensorFlow's image kernels in NumPy: big_vision's models were trained and scored with them.

`tf.image.resize` computes in float32 and big_vision then drops the fraction, so that even a grey
area depends on the order of the sums. The order here is TensorFlow's; what is left is whether its
compiler fuses a multiplication with an addition. `tests/interop` has the bound.
"""

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int64, UInt8

Filter = Literal["bilinear", "triangle", "bicubic", "area"]
_F = np.float32

# [height, width, 3], sizes that differ between argument and result.
RGB = UInt8[np.ndarray, "_ _ 3"]


def resize(image: RGB, size: tuple[int, int], filter: Filter) -> RGB:
    """`tf.image.resize` to (height, width) and the cast to uint8, which truncates.

    Filters:
      bilinear: method="bilinear", antialias=False: the four nearest pixels.
      triangle: method="bilinear", antialias=True.
      bicubic: method="bicubic", antialias=True (Keys, a = -0.5).
      area: method="area", the mean over each output pixel's footprint.
    """
    pixels = image.astype(_F)
    if filter == "bilinear":
        resized = _bilinear(pixels, size)
    elif filter == "area":
        resized = _area(pixels, size)
    else:
        rows = _spans(image.shape[0], size[0], filter)
        columns = _spans(image.shape[1], size[1], filter)
        resized = _gather(_gather(pixels, *rows).swapaxes(0, 1), *columns).swapaxes(0, 1)
    return np.ascontiguousarray(np.clip(resized, 0, 255).astype(np.uint8))


def _bilinear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (top, bottom, y), (left, right, x) = map(_neighbours, pixels.shape[:2], size)
    x, y = x[:, None], y[:, None, None]

    def along_x(rows: np.ndarray) -> np.ndarray:
        near = rows[:, left]
        return near + (rows[:, right] - near) * x

    upper = along_x(pixels[top])
    return upper + (along_x(pixels[bottom]) - upper) * y


@functools.lru_cache(maxsize=256)
def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels nearest to each output pixel's centre, and how far it is from the first."""
    position = (np.arange(target, dtype=_F) + _F(0.5)) * (_F(source) / _F(target)) - _F(0.5)
    floor = np.floor(position)
    lower = np.maximum(floor.astype(int), 0)
    upper = np.minimum(np.ceil(position).astype(int), source - 1)
    return lower, upper, position - floor


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(_F(0), _F(1) - x)


def _keys(x: np.ndarray) -> np.ndarray:
    near = ((_F(1.5) * x - _F(2.5)) * x) * x + _F(1)
    far = ((_F(-0.5) * x + _F(2.5)) * x - _F(4)) * x + _F(2)
    return np.where(x >= 2, _F(0), np.where(x >= 1, far, near))


_FILTERS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "triangle": (1.0, _triangle),
    "bicubic": (2.0, _keys),
}


@functools.lru_cache(maxsize=256)
def _spans(
    source: int, target: int, filter: Filter
) -> tuple[Int64[np.ndarray, "target span"], Float32[np.ndarray, "target span"]]:
    """The pixels that each output pixel is a sum of, and their weights (0 beyond its span)."""
    radius, kernel = _FILTERS[filter]
    inverse = _F(1) / (_F(target) / _F(source))
    spread = np.maximum(inverse, _F(1))
    centre = (np.arange(target, dtype=_F) + _F(0.5)) * inverse
    reach = _F(radius) * spread
    start = np.clip(np.ceil(centre - reach - _F(0.5)), 0, source - 1).astype(int)
    end = np.clip(np.floor(centre + reach - _F(0.5)), 0, source - 1).astype(int) + 1
    index = start[:, None] + np.arange((end - start).max())
    away = np.abs((index.astype(_F) + _F(0.5) - centre[:, None]) * (_F(1) / spread))
    weight = np.where(index < end[:, None], kernel(away), _F(0))
    total = np.zeros(target, _F)
    for column in weight.T:
        total += column
    weight = weight * (_F(1) / total)[:, None]
    return np.minimum(index, source - 1), weight.astype(_F)


def _area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = map(_footprints, pixels.shape[:2], size)
    sums = _gather(_gather(pixels.swapaxes(0, 1), *columns).swapaxes(0, 1), *rows)
    scales = [_F(source) / _F(target) for source, target in zip(pixels.shape, size, strict=False)]
    return sums * (_F(1) / (scales[0] * scales[1]))


@functools.lru_cache(maxsize=256)
def _footprints(
    source: int, target: int
) -> tuple[Int64[np.ndarray, "target span"], Float32[np.ndarray, "target span"]]:
    """The pixels under each output pixel, and how much of each lies there."""
    scale = _F(source) / _F(target)
    begin = np.arange(target, dtype=_F) * scale
    end = np.arange(1, target + 1, dtype=_F) * scale
    start, stop = np.floor(begin).astype(int), np.ceil(end).astype(int)
    index = start[:, None] + np.arange((stop - start).max())
    begin, end = begin[:, None], end[:, None]
    covered = np.minimum(index + 1, end) - np.maximum(index, begin)
    covered = np.where((index < begin) & (index + 1 > end), scale, covered)
    weight = np.where(index < stop[:, None], covered, 0)
    return np.clip(index, 0, source - 1), weight.astype(_F)


def _gather(pixels: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted sums along the first axis, one addend after the other."""
    total = np.zeros((len(index), *pixels.shape[1:]), _F)
    for i, w in zip(index.T, weight.T, strict=True):
        total += pixels[i] * w[:, None, None]
    return total
