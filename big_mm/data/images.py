"""Encoded pictures to uint8 RGB arrays, and resizing with kernels that match a named peer.

JPEG goes through libjpeg-turbo, everything else through Pillow. Whatever is wrong with the bytes
ends in one exception, `BadRecord`, never in a crash, a grey fill or an exhausted memory.
"""

import io
import math
import struct
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

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

Kernel = Literal["area", "supersample", "bilinear", "bicubic"]
KERNELS = ("area", "supersample", "bilinear", "bicubic")
Fit = Literal["squash", "crop"]
FITS = ("squash", "crop")

# [height, width, 3], sizes that differ between argument and result.
RGB = UInt8[np.ndarray, "_ _ 3"]


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> RGB:
    """Decodes a JPEG, PNG, WebP, GIF (first frame) or BMP file into upright RGB.

    Grey, palette and CMYK pictures become RGB, 16-bit channels keep their high byte, transparent
    pixels are composited on white, and the EXIF orientation is applied.

    Raises:
      BadRecord: kind "over_large" if the header declares more than `max_pixels` pixels (checked
        before any are decoded), kind "undecodable_image" if the bytes are damaged, cut short, or
        no picture of these formats.
    """
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, max_pixels)
    return _decode_pillow(data, max_pixels)


def to_rgb(image: Image.Image) -> RGB:
    """An opened Pillow image as upright RGB, by the rules of `decode`."""
    orientation = _pillow_orientation(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        array = np.repeat(grey[..., None], 3, axis=-1)
    elif image.has_transparency_data:
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
      bicubic: Pillow's antialiased `BICUBIC` bit for bit: what CLIP and open_clip use.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size):
        return image
    if kernel == "bicubic":
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        return np.asarray(resized)
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


def fit(image: RGB, size: int, method: Fit, kernel: Kernel) -> RGB:
    """Brings a picture of any shape to `size` x `size` pixels.

    Methods:
      squash: the whole picture, its aspect ratio given up.
      crop: the shorter side to `size`, then the middle of the longer one (torchvision's and
        open_clip's `Resize` and `CenterCrop`, rounding included).
    """
    if method == "squash":
        return resize(image, (size, size), kernel)
    if method != "crop":
        raise ValueError(f"method {method!r} is not one of {', '.join(FITS)}")
    height, width = image.shape[:2]
    short = min(height, width)
    scaled = resize(image, (size * height // short, size * width // short), kernel)
    return center_crop(scaled, size, size)


def center_crop(image: RGB, height: int, width: int) -> RGB:
    """The middle of a picture that is at least that large; odd margins round half to even."""
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
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


def _decode_pillow(data: bytes, max_pixels: int) -> RGB:
    try:
        # Pillow warns above a size of its own; ours is checked on the next line.
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(*image.size, max_pixels)
        image.load()
        return to_rgb(image)
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
