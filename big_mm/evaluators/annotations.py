"""Benchmarks that annotate images of others: a source of records from their JSON lines.

# SNLI-VE, over records of Flickr30k
JsonLines("snli_ve_test.jsonl", images, field="Flickr30K_ID")
# NLVR2: "test1-0-1-0" is about test1-0-1-img0 (left) and test1-0-1-img1 (right)
JsonLines("test1.json", images, field="identifier", pattern=r"(.*)-[0-9]+",
          keys=(r"\\1-img0", r"\\1-img1"))
"""

import dataclasses
import functools
import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from big_mm.data import images as pictures
from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """A record for each line of a file: its fields, and the image or images that it names.

    Several images are put side by side, in their order and at the first one's height, for models
    that see a single picture. A record's key is KEY#LINE, lines counted from 0.

    Attributes:
      path: the file, one JSON object a line.
      images: the source of the images; its keys are read once, from all records.
      field: names the image in a line.
      pattern: that the field must match as a whole.
      keys: the images' keys, expanded from the pattern's groups (`re.Match.expand`).
    """

    path: str
    images: Source
    field: str
    pattern: str = "(.*)"
    keys: tuple[str, ...] = (r"\1",)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict[str, Any]:
        fields = {name: _plain(value) for name, value in self._lines[index].items()}
        places = [self._places[key] for key in self._names(index)]
        found = [self.images[place]["image"] for place in places]
        image = found[0] if len(found) == 1 else side_by_side(*map(pictures.decode, found))
        return fields | {"image": image, "key": f"{self._names(index)[0]}#{index}"}

    def where(self, index: int) -> str:
        return f"{self.path} line {index}"

    def _names(self, index: int) -> list[str]:
        line = self._lines[index]
        if self.field not in line:
            raise UserError(f"{self.where(index)} has no {self.field!r}")
        match = re.fullmatch(self.pattern, str(line[self.field]))
        if match is None:
            raise UserError(
                f"{self.where(index)}: {self.field} {line[self.field]!r} does not match "
                f"{self.pattern!r}"
            )
        return [match.expand(key) for key in self.keys]

    @functools.cached_property
    def _lines(self) -> list[dict[str, Any]]:
        file = epath.Path(self.path)
        if not file.exists():
            raise UserError(f"no file {self.path}")
        made = []
        for number, text in enumerate(filter(str.strip, file.read_text().splitlines())):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise UserError(f"{self.path} line {number} is not JSON: {error}") from error
            if not isinstance(line, dict):
                raise UserError(f"{self.path} line {number} is not a JSON object")
            made.append(line)
        return made

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        """The place of every named image; all are there."""
        names = {name for index in range(len(self)) for name in self._names(index)}
        return places(self.images, names, self.path)


def places(images: Source, names: Collection[str], path: str) -> dict[str, int]:
    """The place in a source of each image that a file names.

    Raises:
      UserError: some are not among the sound records.
    """
    found, wanted = {}, set(names)
    for place in range(len(images)):
        try:
            key = str(images[place]["key"])
        except BadRecord:
            continue
        if key in wanted:
            found[key] = place
    if missing := sorted(wanted - set(found)):
        raise UserError(
            f"{path}: {len(missing)} images are not among the sound records, such as {missing[0]!r}"
        )
    return found


def side_by_side(*parts: np.ndarray) -> Image.Image:
    """RGB pictures from left to right, at the height of the first."""
    height = parts[0].shape[0]
    scaled = [
        Image.fromarray(part).resize(
            (max(1, round(part.shape[1] * height / part.shape[0])), height),
            Image.Resampling.BICUBIC,
        )
        for part in parts
    ]
    return Image.fromarray(np.concatenate([np.asarray(part) for part in scaled], axis=1))


def _plain(value: Any) -> Any:
    """Booleans as words ("true"), the rest as it is."""
    return str(value).lower() if isinstance(value, bool) else value
