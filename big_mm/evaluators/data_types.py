"""The same pictures rotated, blurred, compressed: does a model see what was done to them?

`Choice(source=DataTypes(photos), candidates=Options(PROMPTS))` is data-type identification
(arXiv:2310.08577) for types that a program can make; the paper's styles and semantic types need
data of their own, and its numbers are over all 27.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from big_mm.data import images
from big_mm.data.records import Source
from big_mm.spec import UserError

_PATCHES = 3  # a side
_ZOOM = 0.5

Alter = Callable[[Image.Image, np.random.Generator], Image.Image]


def _noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    array = np.asarray(image, np.float64)
    return Image.fromarray((array + rng.normal(0, 40, array.shape)).clip(0, 255).astype(np.uint8))


def _salt_and_pepper(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    array, draw = np.array(image), rng.random((image.height, image.width))
    array[draw < 0.05], array[draw > 0.95] = 0, 255
    return Image.fromarray(array)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=5)
    return Image.open(file).convert("RGB")


def _shuffle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    height, width = (max(1, side // _PATCHES) for side in (image.height, image.width))
    array = np.array(image)
    corners = [(i * height, j * width) for i in range(_PATCHES) for j in range(_PATCHES)]
    patches = [array[y : y + height, x : x + width].copy() for y, x in corners]
    for (y, x), i in zip(corners, rng.permutation(len(patches)), strict=True):
        array[y : y + height, x : x + width] = patches[i]
    return Image.fromarray(array)


def _zoom(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width, height = (max(1, int(side * _ZOOM)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize(image.size, Image.Resampling.BICUBIC)


def _enhanced(kind: type, factor: float) -> Alter:
    return lambda image, rng: kind(image).enhance(factor)


def _blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.BoxBlur(max(1, min(image.size) // 24)))


_TYPES: dict[str, tuple[str, Alter]] = {
    "original": ("a photo", lambda image, rng: image),
    "left_rotated": ("a left-rotated photo", lambda image, rng: image.rotate(90, expand=True)),
    "right_rotated": ("a right-rotated photo", lambda image, rng: image.rotate(-90, expand=True)),
    "flipped": ("a vertically flipped photo", lambda image, rng: ImageOps.flip(image)),
    "zoomed": ("a cropped and zoomed photo", _zoom),
    "shuffled": ("a patched and reshuffled photo", _shuffle),
    "noisy": ("a noisy photo", _noise),
    "salt_and_pepper": ("a photo with salt-and-pepper noise", _salt_and_pepper),
    "blurred": ("a blurred photo", _blur),
    "compressed": ("a jpeg-compressed photo", _jpeg),
    "low_contrast": ("a low-contrast photo", _enhanced(ImageEnhance.Contrast, 0.25)),
    "high_contrast": ("a high-contrast photo", _enhanced(ImageEnhance.Contrast, 3.0)),
    "dark": ("a low-brightness photo", _enhanced(ImageEnhance.Brightness, 0.3)),
    "bright": ("a high-brightness photo", _enhanced(ImageEnhance.Brightness, 2.0)),
}
NAMES = tuple(_TYPES)
PROMPTS = tuple(prompt for prompt, _ in _TYPES.values())


@dataclasses.dataclass(frozen=True)
class DataTypes:
    """Each record in every type: record i in type t is number i * len(types) + t, its label t.

    Randomness depends on the number alone.

    Attributes:
      source: records with an image.
      types: of `NAMES`; the candidates are then `prompts(types)`.
    """

    source: Source
    types: tuple[str, ...] = NAMES

    def __post_init__(self) -> None:
        for name in self.types:
            if name not in _TYPES:
                raise UserError(f"no data type {name!r}; there are {', '.join(NAMES)}")

    def __len__(self) -> int:
        return len(self.source) * len(self.types)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, label = divmod(index, len(self.types))
        record, name = self.source[number], self.types[label]
        picture = Image.fromarray(images.decode(record["image"]))
        altered = _TYPES[name][1](picture, np.random.default_rng(index))
        key = f"{record['key']}/{name}"
        return {**record, "image": altered, "key": key, "label": label, "data_type": name}

    def where(self, index: int) -> str:
        return self.source.where(index // len(self.types))


def prompts(types: tuple[str, ...]) -> tuple[str, ...]:
    """What pictures of these types are called."""
    return tuple(_TYPES[name][0] for name in types)
