"""Encoded pictures to uint8 RGB arrays, and resizing with kernels that match a named peer.

JPEG goes through libjpeg-turbo, everything else through Pillow. Whatever is wrong with the bytes
ends in one exception, `BadRecord`, never in a crash, a grey fill or an exhausted memory.
"""

import io
import math
import struct
from typing import Literal, get_args

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from big_mm.data import resampling
from big_mm.data.damage import BadRecord

# Threads and worker processes decode in parallel already; OpenCV's own pool would fight with them.
cv2.setNumThreads(1)

# 100 MB as RGB: above the pictures of today's cameras, below a decompression bomb.
MAX_PIXELS = 2**25
# What the web serves. Formats that Pillow hands to other programs (EPS) or to large old C libraries
# (TIFF) stay out.
_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "JPEG")
# Warnings of libjpeg after which every pixel is still there; all others mean missing pixels.
_HARMLESS = ("extraneous bytes before marker 0xd9", "Invalid SOS parameters")
_ORIENTATION_TAG = 0x0112

Kernel = Literal[
    "area", "supersample", "bilinear", "triangle", "bicubic",
    "tf_bilinear", "tf_triangle", "tf_bicubic", "tf_area",
]  # fmt: skip
KERNELS = get_args(Kernel)
Fit = Literal["squash", "crop", "pad"]
FITS = get_args(Fit)
Rounding = Literal["torchvision", "hugging_face", "big_vision"]
ROUNDINGS = get_args(Rounding)
Transparency = Literal["white", "drop"]
TRANSPARENCIES = get_args(Transparency)

_PILLOW = {"triangle": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TENSORFLOW = {kernel: kernel[3:] for kernel in KERNELS if kernel.startswith("tf_")}

# [height, width, 3], sizes that differ between argument and result.
RGB = UInt8[np.ndarray, "_ _ 3"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS, transparency: Transparency = "white") -> RGB:
    """Decodes a JPEG, PNG, WebP, GIF (first frame) or BMP file into upright RGB.

    Grey, palette and CMYK pictures become RGB, 16-bit channels keep their high byte, and the EXIF
    orientation is applied. Transparent pixels are composited on white (as people see them, and
    Hugging Face from release 5), or with "drop" keep their hidden colour (Pillow's
    `convert("RGB")`, TensorFlow).

    Raises:
      BadRecord: kind "over_large" if the header declares more than `max_pixels` pixels (checked
        before any are decoded), kind "undecodable_image" if the bytes are damaged, cut short, or
        no picture of these formats.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, max_pixels)
    return _decode_pillow(data, max_pixels, transparency)


def to_rgb(image: Image.Image, transparency: Transparency = "white") -> RGB:
    """An opened Pillow image as upright RGB, by the rules of `decode`."""
    orientation = _pillow_orientation(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        array = np.repeat(grey[..., None], 3, axis=-1)
    elif image.has_transparency_data and transparency == "white":
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        array = np.asarray(white.convert("RGB"))
    else:
        array = np.asarray(image.convert("RGB"))
    return _upright(array, orientation)


def resize(image: RGB, size: tuple[int, int], kernel: Kernel) -> RGB:
    """Resizes to `size` = (height, width) in pixels; aspect ratio is the caller's affair.

    Kernels:
      area: the mean over each output pixel's footprint (antialiased); `cv2.INTER_AREA` along an
        axis that shrinks, "bilinear" along one that grows.
      supersample: bilinear to 2, 4, 8, ... times the size, whichever is nearest to the picture's,
        then 2 x 2 means. Antialiased: on photos 52 dB from "area" at a third of its time.
      bilinear: four nearest pixels, half-pixel centres, not antialiased: `cv2.INTER_LINEAR`,
        `jax.image.resize(..., "linear", antialias=False)`, `tf.image.resize`. The fastest.
      triangle: Pillow's antialiased `BILINEAR` bit for bit.
      bicubic: Pillow's antialiased `BICUBIC` bit for bit: what CLIP and open_clip use.
      tf_bilinear, tf_triangle, tf_bicubic, tf_area: `tf.image.resize` as big_vision calls it, see
        `resampling`; tf_bilinear is its default.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    if kernel in _PILLOW:
        return np.asarray(Image.fromarray(image).resize((size[1], size[0]), _PILLOW[kernel]))
    if kernel in _TENSORFLOW:
        return resampling.resize(image, size, _TENSORFLOW[kernel])
    if kernel == "area":
        return _area(image, size)
    if kernel == "supersample":
        return _supersample(image, size)
    if kernel != "bilinear":
        raise ValueError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    return _cv2(image, size, cv2.INTER_LINEAR)


def _area(image: RGB, size: tuple[int, int]) -> RGB:
    # INTER_AREA averages only if both axes shrink: shrink first, then grow what must grow.
    shrunk = (min(image.shape[0], size[0]), min(image.shape[1], size[1]))
    return _cv2(_cv2(image, shrunk, cv2.INTER_AREA), size, cv2.INTER_LINEAR)


def _supersample(image: RGB, size: tuple[int, int]) -> RGB:
    ratio = max(image.shape[0] / size[0], image.shape[1] / size[1])
    halvings = max(1, round(math.log2(ratio))) if ratio > 1 else 0
    image = _cv2(image, (size[0] << halvings, size[1] << halvings), cv2.INTER_LINEAR)
    for n in reversed(range(halvings)):  # each exactly by two, which OpenCV vectorizes
        image = _cv2(image, (size[0] << n, size[1] << n), cv2.INTER_AREA)
    return image


def _cv2(image: RGB, size: tuple[int, int], interpolation: int) -> RGB:
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=interpolation)


def fit(
    image: RGB,
    size: int,
    method: Fit,
    kernel: Kernel,
    *,
    resize_size: int | None = None,
    rounding: Rounding = "torchvision",
    fill: int = 0,
) -> RGB:
    """Brings a picture of any shape to `size` x `size` pixels.

    Methods:
      squash: the whole picture, its aspect ratio given up.
      crop: the shorter side to `size`, then the middle of the longer one.
      pad: the longer side to `size`, then grey `fill` on both sides of the shorter one (open_clip's
        resize_mode="longest").

    Args:
      resize_size: squash and crop resize to this, of which the middle `size` x `size` are left.
      rounding: "torchvision" (and open_clip) rounds sizes down and odd margins half to even,
        "hugging_face" both down, "big_vision" sizes to the nearest and margins down.
    """
    if method not in FITS:
        raise ValueError(f"method {method!r} is not one of {', '.join(FITS)}")
    inner = resize_size or size
    if method == "pad":
        return _pad(_to_longer_side(image, size, kernel), size, fill)
    target = (inner, inner) if method == "squash" else _shape(image, inner, rounding)
    return center_crop(resize(image, target, kernel), size, size, rounding)


def _shape(image: RGB, short: int, rounding: Rounding) -> tuple[int, int]:
    """(height, width) of the picture with its shorter side brought to `short`."""
    height, width = image.shape[:2]
    least = min(height, width)
    if rounding != "big_vision":
        return short * height // least, short * width // least
    factor = np.float32(short) / np.float32(least)
    return int(np.round(np.float32(height) * factor)), int(np.round(np.float32(width) * factor))


def _to_longer_side(image: RGB, size: int, kernel: Kernel) -> RGB:
    ratio = max(image.shape[:2]) / size
    height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
    return resize(image, (height, width), kernel)


def _pad(image: RGB, size: int, fill: int) -> RGB:
    """The odd pixel goes below and to the right."""
    margins = [(m // 2, m - m // 2) for m in (size - side for side in image.shape[:2])]
    return np.pad(image, [*margins, (0, 0)], constant_values=fill)


def center_crop(image: RGB, height: int, width: int, rounding: Rounding = "torchvision") -> RGB:
    """The middle of a picture that is at least that large; odd margins as `fit` says."""
    down = rounding != "torchvision"
    margins = image.shape[0] - height, image.shape[1] - width
    top, left = (m // 2 if down else round(m / 2) for m in margins)
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _decode_jpeg(data: bytes, max_pixels: int) -> RGB:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):
        # Damaged, or a layout that libjpeg-turbo's simple interface has no name for: Pillow judges.
        return _decode_pillow(data, max_pixels)
    _check_size(width, height, max_pixels)
    if colorspace in ("CMYK", "YCCK"):  # Adobe stores these inverted, which Pillow knows
        return _decode_pillow(data, max_pixels)
    try:
        array = simplejpeg.decode_jpeg(data)
    except (ValueError, KeyError) as error:
        if not any(text in str(error) for text in _HARMLESS):
            raise BadRecord("undecodable_image", detail=f"JPEG: {error}") from error
        array = _decode_jpeg_leniently(data)
    return _upright(array, _jpeg_orientation(data))


def _decode_jpeg_leniently(data: bytes) -> RGB:
    try:
        return simplejpeg.decode_jpeg(data, strict=False)
    except (ValueError, KeyError) as error:
        raise BadRecord("undecodable_image", detail=f"JPEG: {error}") from error


def _decode_pillow(data: bytes, max_pixels: int, transparency: Transparency = "white") -> RGB:
    try:
        # Pillow warns above a size of its own; ours is checked on the next line.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(*image.size, max_pixels)
        image.load()
        return to_rgb(image, transparency)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord("over_large", detail=str(error)) from error
    except BadRecord:
        raise
    except UnidentifiedImageError as error:  # Its message is the address of a buffer.
        formats = ", ".join(_FORMATS)
        raise BadRecord("undecodable_image", detail=f"none of {formats}") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise BadRecord("undecodable_image", detail=f"{type(error).__name__}: {error}") from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise BadRecord("over_large", detail=f"{width} x {height} pixels, limit {max_pixels}")
    if width * height == 0:
        raise BadRecord("undecodable_image", detail=f"{width} x {height} pixels")


def _upright(image: RGB, orientation: int) -> RGB:
    """Undoes EXIF orientation 1..8 (EXIF 2.32, 4.6.4 A): transposed if above 4, then mirrored."""
    if orientation == 1:
        return image
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _pillow_orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata of a sound picture: as if there were none
        return 1
    return value if value in range(1, 9) else 1


def _jpeg_orientation(data: bytes) -> int:
    """The orientation tag of a JPEG's Exif segment, without parsing anything else; 1 if none."""
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return _tiff_orientation(data[position + 10 : position + 2 + length])
        if not 0xE0 <= marker <= 0xEF:  # EXIF 4.5.4: Exif comes first, before other than APPn
            break
        position += 2 + length
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF block; 1 if absent or damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for i in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
