"""Paints a scene: anti-aliased shapes from outlines, with exact masks and boxes.

Coverage comes from filling outlines at four times the resolution and averaging, so edges are soft
and the result does not depend on threads or vector width of a drawing library's line smoother.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from big_mm.data.scenes.world import Background, Object, Scene

_SUPERSAMPLING = 4
_SUBPIXEL_BITS = 4
# Stripes and dots scale with the object but never get finer than an image of 48 pixels can show.
_MIN_PERIOD = 3.8
_DARKENING = 0.72
_RIM = 0.07


@dataclasses.dataclass(frozen=True)
class Rendering:
    """Pixels, and for each pixel the visible object: 1 + its index in the scene, 0 = background."""

    image: UInt8[np.ndarray, "size size 3"]
    labels: UInt8[np.ndarray, "size size"]

    def boxes(self, num_objects: int) -> Float[np.ndarray, "objects 4"]:
        """Boxes of what is visible: x0, y0, x1, y1 as shares of the side; zeros if nothing."""
        boxes = np.zeros((num_objects, 4), np.float32)
        for i in range(num_objects):
            mask = self.labels == i + 1
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            if columns.size:
                boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes / np.float32(self.labels.shape[0])


def render(scene: Scene, size: int) -> Rendering:
    """Paints the scene as `size` x `size` pixels; a pure function of its arguments."""
    # Channels come first until the end: sums over contiguous planes are several times faster.
    image = _background(scene.background, size)
    labels = np.zeros((size, size), np.uint8)
    for index, item in enumerate(scene.objects):
        _paint(image, labels, item, index + 1)
    if scene.noise:
        # Grain of the brightness only: independent noise per channel costs three times the draws.
        rng = np.random.Generator(np.random.Philox(scene.noise_seed))
        image += np.float32(scene.noise) * rng.standard_normal((size, size), np.float32)
    image += np.float32(0.5)
    np.clip(image, 0, 255, out=image)
    return Rendering(np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0)), labels)


def _paint(image: np.ndarray, labels: np.ndarray, item: Object, label: int) -> None:
    size = labels.shape[0]
    x, y, radius = item.x * size, item.y * size, item.radius * size
    reach = 1.25 * radius + 1
    x0, x1 = max(math.floor(x - reach), 0), min(math.ceil(x + reach), size)
    y0, y1 = max(math.floor(y - reach), 0), min(math.ceil(y + reach), size)
    shape = (y1 - y0, x1 - x0)
    fine = _fill(item, x - x0, y - y0, radius, shape)
    coverage = _average(fine, shape)
    paint = np.asarray(item.rgb, np.float32)[:, None, None]
    if item.texture != "solid":
        # The texture leaves a rim, without which outlines drown in a background of its shade.
        rim = 1 + 2 * round(_RIM * radius * _SUPERSAMPLING)
        inside = _average(cv2.erode(fine, np.ones((rim, rim), np.uint8)), shape)
        pattern = inside * _texture(item, x - x0, y - y0, radius, shape)
        # Towards a dark shade of the same hue: mixing with white would turn red into pink.
        paint = paint * (1 - np.float32(_DARKENING) * pattern)
    patch = image[:, y0:y1, x0:x1]
    patch += coverage * (paint - patch)
    labels[y0:y1, x0:x1][coverage >= 0.5] = label


def _fill(item: Object, x: float, y: float, radius: float, shape: tuple[int, int]) -> np.ndarray:
    """The object on the fine grid of a patch: uint8, 255 inside."""
    cosine, sine = math.cos(item.angle) * radius, math.sin(item.angle) * radius
    turn = np.array([[cosine, sine], [-sine, cosine]])
    scale = _SUPERSAMPLING * 2**_SUBPIXEL_BITS
    # A fine pixel's centre has integer coordinates for OpenCV, hence the half pixel.
    shift = np.array([x, y]) * scale - 2 ** (_SUBPIXEL_BITS - 1)
    contours = [
        np.rint(contour @ turn * scale + shift).astype(np.int32) for contour in _outline(item.shape)
    ]
    fine = np.zeros((shape[0] * _SUPERSAMPLING, shape[1] * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, contours, 255, shift=_SUBPIXEL_BITS)
    return fine


def _average(fine: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The share of each pixel that the fine grid covers, float32 in 0..1."""
    coarse = cv2.resize(fine, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) * np.float32(1 / 255)


def _texture(item: Object, x: float, y: float, radius: float, shape: tuple[int, int]):
    """How dark each pixel of a patch is, float32 in 0..1: stripes, or dots on a square grid."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None] + np.float32(0.5 - y)
    columns = np.arange(shape[1], dtype=np.float32) + np.float32(0.5 - x)
    cosine, sine = (
        np.float32(math.cos(item.texture_angle)),
        np.float32(math.sin(item.texture_angle)),
    )
    period = max((0.55 if item.texture == "striped" else 0.62) * radius, _MIN_PERIOD)
    across = (cosine * columns + sine * rows) / np.float32(period) + np.float32(item.texture_phase)
    across -= np.floor(across) + np.float32(0.5)
    if item.texture == "striped":
        edge, distance = 0.21, np.abs(across)
    else:
        along = (cosine * rows - sine * columns) / np.float32(period) + np.float32(0.5)
        along -= np.floor(along) + np.float32(0.5)
        edge, distance = 0.31, np.sqrt(across * across + along * along)
    return np.clip((np.float32(edge) - distance) * np.float32(period) + np.float32(0.5), 0, 1)


def _background(background: Background, size: int) -> np.ndarray:
    """The backdrop, float32 [3, size, size]."""
    first, second = np.array([background.rgb, background.rgb_2], np.float32)[..., None, None]
    if background.pattern == "plain":
        return np.broadcast_to(first, (3, size, size)).copy()
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    cosine, sine = np.float32(math.cos(background.angle)), np.float32(math.sin(background.angle))
    across = cosine * ramp + sine * ramp[:, None]
    if background.pattern == "gradient":
        mix = 0.5 + across / (2 * math.sqrt(2))
    elif background.pattern == "cloudy":
        along = cosine * ramp[:, None] - sine * ramp
        mix = 0.5 + 0.25 * (np.sin(4 * across + 1) + np.sin(3 * along + 2 * across))
    else:
        line = 0.5 + 0.5 * np.cos(ramp * np.float32(6 * math.pi))
        mix = np.maximum(line, line[:, None]) ** 8
    return first + mix * (second - first)


@functools.cache
def _outline(shape: str) -> tuple[np.ndarray, ...]:
    """Closed contours [points, 2] (x, y downwards) of a shape of radius 1; the even-odd rule fills.

    Extents are balanced by eye so that shapes of one size cover comparable areas.
    """
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], -1)
    if shape == "circle":
        return (0.92 * circle,)
    if shape == "square":
        return (0.80 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),)
    if shape == "triangle":
        return (np.array([[0, -1.02], [0.96, 0.63], [-0.96, 0.63]]),)
    if shape == "star":
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        length = np.where(np.arange(10) % 2, 0.48, 1.15)
        return (length[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1),)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return (np.stack([x / 16.4, -(y + 2.5) / 15.4], -1),)
    if shape == "cross":
        a, b = 0.33, 1.0
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return (np.array(corners + [(-x, -y) for x, y in corners]),)
    if shape == "ring":
        return circle, 0.56 * circle
    if shape == "moon":
        # The disc minus a disc of radius 0.84 around (0.52, 0); they meet at `tip`.
        tip = math.acos((1 + 0.52**2 - 0.84**2) / (2 * 0.52))
        inner_tip = math.atan2(math.sin(tip), math.cos(tip) - 0.52)
        outer = np.linspace(tip, 2 * np.pi - tip, 48)
        inner = np.linspace(2 * np.pi - inner_tip, inner_tip, 32)
        arc = np.stack([0.52 + 0.84 * np.cos(inner), 0.84 * np.sin(inner)], -1)
        return (np.concatenate([np.stack([np.cos(outer), np.sin(outer)], -1), arc]) + [0.2, 0],)
    raise KeyError(shape)
