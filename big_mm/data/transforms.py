"""Record transforms on Grain's `Map` and `RandomMap`: record -> record, by explicit keys.

A record is a flat dict: encoded `image` bytes, `captions` (list of texts), `key`, `label`, extras.
A field left None is the contract's: `bind(contract)` returns the transform with it filled in. All
randomness comes from the generator that is handed in, so that a record's augmentation depends on
its place in the run and on nothing else. Where the last transforms have a method `columns`, which
does what `map` does for many rows at once and reads the feature `key` only, that is called.
"""

import dataclasses
import functools
import math
import zlib
from typing import Any

import grain
import numpy as np

from big_mm.data import images
from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.spec import UserError

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Decode(grain.transforms.Map):
    """Encoded bytes to uint8 RGB [height, width, 3]; see `images.decode` for formats and damage."""

    max_pixels: int | None = None
    transparency: images.Transparency | None = None
    key: str = "image"

    def bind(self, contract: Contract) -> "Decode":
        return dataclasses.replace(
            self,
            max_pixels=self.max_pixels or contract.max_pixels,
            transparency=self.transparency or contract.transparency,
        )

    def map(self, record: Record) -> Record:
        data = record.get(self.key)
        if not data:
            raise BadRecord("missing_image")
        return record | {
            self.key: images.decode(data, self.max_pixels, self.transparency or "white")
        }


@dataclasses.dataclass(frozen=True)
class Resize(grain.transforms.Map):
    """To a square of `size` pixels as evaluation does it (`images.fit`).

    What is None is the contract's; another `size` than the contract's is not cut from a larger one.
    """

    size: int | None = None
    method: images.Fit | None = None
    kernel: images.Kernel | None = None
    resize_size: int | None = None
    rounding: images.Rounding | None = None
    fill: int | None = None
    key: str = "image"

    def bind(self, contract: Contract) -> "Resize":
        given = self.size or self.resize_size
        return dataclasses.replace(
            self,
            size=self.size or contract.image_size,
            method=self.method or contract.resize,
            kernel=self.kernel or contract.kernel,
            resize_size=self.resize_size if given else contract.resize_size,
            rounding=self.rounding or contract.rounding,
            fill=contract.fill if self.fill is None else self.fill,
        )

    def map(self, record: Record) -> Record:
        fitted = images.fit(
            record[self.key],
            self.size,
            self.method,
            self.kernel,
            resize_size=self.resize_size,
            rounding=self.rounding or "torchvision",
            fill=self.fill or 0,
        )
        return record | {self.key: fitted}


@dataclasses.dataclass(frozen=True)
class CenterCrop(grain.transforms.Map):
    """The middle `size` x `size` pixels; a smaller side is enlarged first, aspect ratio kept."""

    size: int | None = None
    kernel: images.Kernel | None = None
    key: str = "image"

    def bind(self, contract: Contract) -> "CenterCrop":
        return dataclasses.replace(
            self, size=self.size or contract.image_size, kernel=self.kernel or contract.kernel
        )

    def map(self, record: Record) -> Record:
        image = record[self.key]
        if min(image.shape[:2]) < self.size:
            image = images.fit(image, self.size, "crop", self.kernel)
        return record | {self.key: images.center_crop(image, self.size, self.size)}


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(grain.transforms.RandomMap):
    """A random part of the picture to `size` x `size` (Inception's crop, arXiv 1409.4842).

    Attributes:
      size: pixels; None is the contract's, and so is `kernel`.
      scale: bounds of the part's area as a share of the picture's. Image-text pairs want nearly all
        of it, since a caption names what a tight crop cuts away.
      ratio: bounds of width / height; log-uniform.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    kernel: images.Kernel | None = None
    key: str = "image"

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(
                f"RandomResizedCrop: scale={self.scale} must rise within (0, 1], "
                f"ratio={self.ratio} must rise above 0"
            )

    def bind(self, contract: Contract) -> "RandomResizedCrop":
        return dataclasses.replace(
            self, size=self.size or contract.image_size, kernel=self.kernel or contract.kernel
        )

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        image = record[self.key]
        top, left, height, width = self.box(*image.shape[:2], rng)
        # Cropped before resizing: pixels that nobody will see are not averaged.
        part = image[top : top + height, left : left + width]
        return record | {self.key: images.resize(part, (self.size, self.size), self.kernel)}

    def box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels: up to ten draws, then the largest legal middle."""
        low, high = map(math.log, self.ratio)
        for _ in range(10):
            area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * rng.random())
            ratio = math.exp(low + (high - low) * rng.random())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.random() * (height - h + 1))
                return top, int(rng.random() * (width - w + 1)), h, w
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return (height - h) // 2, (width - w) // 2, h, w


@dataclasses.dataclass(frozen=True)
class Views(grain.transforms.RandomMap):
    """Further crops of the picture, beside it: `out` [count, size, size, 3] (arXiv:2006.09882).

    Attributes:
      crop: how each is made; its `size` need not be the contract's.
    """

    crop: RandomResizedCrop
    count: int
    out: str = "views"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"Views: count={self.count} must be at least 1")
        if self.out == self.crop.key:
            raise UserError(f"Views: out={self.out!r} would replace the picture they are cut from")

    def bind(self, contract: Contract) -> "Views":
        return dataclasses.replace(self, crop=self.crop.bind(contract))

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        crop = self.crop
        views = [crop.random_map(record, rng)[crop.key] for _ in range(self.count)]
        return record | {self.out: np.stack(views)}


@dataclasses.dataclass(frozen=True)
class Flip(grain.transforms.RandomMap):
    """Mirrors left and right. Off by default: captions name sides and quote writing."""

    probability: float = 0.0
    key: str = "image"

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        return record | {self.key: np.ascontiguousarray(record[self.key][:, ::-1])}


@dataclasses.dataclass(frozen=True)
class ChooseCaption(grain.transforms.RandomMap):
    """One of the record's captions at random, blank ones never.

    Attributes:
      weights: of the first, second, ... caption; those beyond the weights are never chosen, those
        a record lacks lend their share to the others. None: all alike.
    """

    weights: tuple[float, ...] | None = None
    key: str = "captions"
    out: str = "caption"

    def __post_init__(self) -> None:
        if self.weights is not None and (min(self.weights, default=0) < 0 or not any(self.weights)):
            raise UserError(f"ChooseCaption: weights={self.weights} must be >= 0, and one above 0")

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        captions = record.get(self.key, ())
        weights = self.weights or (1.0,) * len(captions)
        total = 0.0
        choices = []
        for caption, weight in zip(captions, weights, strict=False):
            if weight and caption.strip():
                total += weight
                choices.append((total, caption))
        if not choices:
            raise BadRecord("empty_caption")
        threshold = rng.random() * total
        chosen = next((c for bound, c in choices if threshold < bound), choices[-1][1])
        return record | {self.out: chosen}


@dataclasses.dataclass(frozen=True)
class Tokenize(grain.transforms.Map):
    """`tokens` and `token_mask` of a text by the contract's rules, and `text_id`, equal for equal
    tokens (their CRC-32), by which a loss knows the same caption of another image.

    With a `suffix` these are `tokens<suffix>` and so on: the second text of a record.
    """

    contract: Contract | None = None
    key: str = "caption"
    suffix: str = ""

    def bind(self, contract: Contract) -> "Tokenize":
        return dataclasses.replace(self, contract=self.contract or contract)

    def map(self, record: Record) -> Record:
        columns = self.columns({self.key: [record[self.key]]})
        return record | {name: column[0] for name, column in columns.items()}

    def columns(self, columns: dict[str, list[Any]]) -> dict[str, np.ndarray]:
        """`map` of many rows at once, which is faster: their new features, stacked."""
        tokens, token_mask = self.contract.text(columns[self.key])
        text_id = [zlib.crc32(row.tobytes()) - 2**31 for row in tokens]
        return {
            f"tokens{self.suffix}": tokens,
            f"token_mask{self.suffix}": token_mask,
            f"text_id{self.suffix}": np.asarray(text_id, np.int32),
        }


@dataclasses.dataclass(frozen=True)
class ClassTexts(grain.transforms.Map):
    """`class_tokens` and `class_token_mask` [classes, length]: each class's name in a template, the
    same for every record, for losses that choose among all classes.

    Attributes:
      classnames: in the order of the class numbers.
      template: with one {}.
    """

    classnames: tuple[str, ...]
    template: str = "{}"
    contract: Contract | None = None

    def __post_init__(self) -> None:
        if len(self.classnames) < 2 or self.template.count("{}") != 1:
            raise UserError(
                f"ClassTexts: {len(self.classnames)} classnames must be at least 2, and "
                f"template={self.template!r} must hold {{}} exactly once"
            )

    def bind(self, contract: Contract) -> "ClassTexts":
        return dataclasses.replace(self, contract=self.contract or contract)

    def map(self, record: Record) -> Record:
        label = record.get("label", -1)
        if not 0 <= label < len(self.classnames):
            raise UserError(
                f"ClassTexts: record {record.get('key')!r} has label {label}, and there are "
                f"{len(self.classnames)} classnames"
            )
        tokens, token_mask = self._texts
        return record | {"class_tokens": tokens, "class_token_mask": token_mask}

    @functools.cached_property
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        return self.contract.text([self.template.replace("{}", name) for name in self.classnames])


Transform = grain.transforms.Map | grain.transforms.RandomMap
# Decode, what evaluation does with the picture, and any of the captions.
DEFAULT = (Decode(), Resize(), ChooseCaption(), Tokenize())
