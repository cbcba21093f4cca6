"""Objects cut out of images, as GeneCIS shows them: a source of records.

visual_genome = TFRecordSource("visual_genome/*.tfrecord", Schema(captions=None))
task = GeneCis("focus_attribute.json")
ComposedRetrieval(Crops(task, visual_genome), task)
"""

import dataclasses
import functools
from typing import Any

from PIL import Image

from big_mm.data import images as pictures
from big_mm.data.records import Source
from big_mm.evaluators import annotations
from big_mm.evaluators.composed_benchmarks import GeneCis
from big_mm.spec import UserError

DILATION = 0.7


@dataclasses.dataclass(frozen=True)
class Crops:
    """A record for each object of an attribute task: the square around its box (`square`).

    Attributes:
      benchmark: an attribute task.
      images: the source of the whole images; its keys are read once, from all records.
    """

    benchmark: GeneCis
    images: Source

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key, image, box = self._crops[index]
        whole = Image.fromarray(pictures.decode(self.images[self._places[image]]["image"]))
        try:
            return {"image": square(whole, box), "key": key}
        except UserError as error:
            raise UserError(f"{self.where(index)}: {error}") from error

    def where(self, index: int) -> str:
        return f"{self.benchmark.path} object {self._crops[index][0]}"

    @functools.cached_property
    def _crops(self) -> list[tuple[str, str, tuple[float, ...]]]:
        """Key, image and box of each, those of one image together."""
        made = [(key, image, box) for key, (image, box) in self.benchmark.crops.items()]
        return sorted(made, key=lambda crop: crop[1])

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        names = {image for _, image, _ in self._crops}
        return annotations.places(self.images, names, self.benchmark.path)


def square(image: Image.Image, box: tuple[float, ...], dilation: float = DILATION) -> Image.Image:
    """An object with its surroundings, padded to a square with black as GeneCIS' program does.

    That program adds `dilation` times the box's size at the left and the top alone (at the right
    and the bottom only what the image's border has taken from there). Pillow rounds the edges,
    halves to even.

    Args:
      box: x, y, width and height in pixels.

    Raises:
      UserError: nothing of the image is in the box.
    """
    x, y, width, height = box
    left, top = max(0, x - dilation * width), max(0, y - dilation * height)
    right = min(image.width, left + (1 + dilation) * width)
    bottom = min(image.height, top + (1 + dilation) * height)
    if round(right) <= round(left) or round(bottom) <= round(top):
        raise UserError(
            f"the box {box} shows nothing of an image of {image.width} x {image.height} pixels"
        )
    part = image.crop((left, top, right, bottom))
    side = max(part.size)
    made = Image.new(part.mode, (side, side))
    made.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return made
