"""Class masks from records: which class each pixel of a picture is of."""

import dataclasses
import functools
import io
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from big_mm.data.contract import Contract
from big_mm.data.scenes import COLOURS, SHAPES, Scene
from big_mm.evaluators import base
from big_mm.probing.heads import IGNORE
from big_mm.spec import UserError, choose

Mask = UInt8[np.ndarray, "height width"]


class Masks(Protocol):
    """Reads the mask of a record; `classnames` in the order of its numbers."""

    classnames: tuple[str, ...]

    def __call__(self, record: Mapping[str, Any]) -> Mask:
        """Class numbers, IGNORE where a pixel does not count; of the picture's size."""


@dataclasses.dataclass(frozen=True)
class ClassMasks:
    """A PNG with the class number of each pixel, as of ADE20K or VOC.

    Attributes:
      classnames: in the order of the numbers, at most 255.
      mask: the record's key; the schema needs extra=("mask",).
      ignore: what the file says of pixels that do not count.
      first: the number of the first class; 1 where 0 is "other" and does not count (ADE20K).
    """

    classnames: tuple[str, ...]
    mask: str = "mask"
    ignore: int = IGNORE
    first: int = 0

    def __post_init__(self) -> None:
        if not 2 <= len(self.classnames) <= IGNORE:
            raise UserError(f"masks need 2 to {IGNORE} classnames, not {len(self.classnames)}")

    def __call__(self, record: Mapping[str, Any]) -> Mask:
        """Raises UserError: no mask, or a number without a class name."""
        numbers = read(record, self.mask).astype(np.int64)
        ignored = (numbers == self.ignore) | (numbers < self.first)
        numbers = np.where(ignored, IGNORE, numbers - self.first)
        if (wrong := (numbers >= len(self.classnames)) & ~ignored).any():
            raise UserError(
                f"the mask of record {record['key']!r} has class {numbers[wrong][0] + self.first}; "
                f"there are {len(self.classnames)} classnames"
            )
        return numbers.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class SceneMasks:
    """Masks of the embedded world: background, then the objects' shapes or colours.

    The schema needs extra=("mask", "scene").
    """

    by: str = "shape"

    def __post_init__(self) -> None:
        choose("by", self.by, ("shape", "colour"))

    @functools.cached_property
    def classnames(self) -> tuple[str, ...]:
        """The background first."""
        return ("background", *(SHAPES if self.by == "shape" else COLOURS))

    def __call__(self, record: Mapping[str, Any]) -> Mask:
        """Raises UserError: no mask or no scene."""
        instances = read(record, "mask")
        scene = Scene.from_json(base.first_text(_feature(record, "scene")))
        names = ["background", *(getattr(item, self.by) for item in scene.objects)]
        return np.array([self.classnames.index(n) for n in names], np.uint8)[instances]


def prepare(mask: Mask, contract: Contract) -> UInt8[np.ndarray, "size size"]:
    """The mask brought to the picture's size as the contract brings pictures there: of each pixel
    the class that covers most of it, of equal ones the smaller number; IGNORE where padding does.
    """
    unpadded = dataclasses.replace(contract, fill=0)
    present = np.unique(mask)
    cover = np.stack(
        [unpadded.image(np.where(mask == c, 255, 0).astype(np.uint8))[..., 0] for c in present]
    )
    found = present[cover.argmax(axis=0)]
    return np.where(cover.max(axis=0) > 0, found, IGNORE).astype(np.uint8)


def read(record: Mapping[str, Any], key: str) -> UInt8[np.ndarray, "height width"]:
    """The numbers in a record's mask picture. Raises a UserError if there is none."""
    values = _feature(record, key)
    data = values if isinstance(values, bytes) else values[0]
    array = np.asarray(Image.open(io.BytesIO(data)))
    if array.ndim != 2:
        raise UserError(f"the {key} of record {record['key']!r} is no picture of class numbers")
    return array


def _feature(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    if value is None or len(value) == 0:
        raise UserError(f"record {record['key']!r} has no {key!r}: name it in the schema's extra")
    return value
