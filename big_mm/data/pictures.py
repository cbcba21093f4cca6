"""Pictures as a caller gives them: counted, and prepared by a contract."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.spec import UserError

# A file's path or bytes, a Pillow image, or a uint8 array [H,W,3]; for models that see several
# pictures at once, uint8 arrays [n,pictures,size,size,3] as the contract prepares them.
Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Pictures = Sequence[Picture] | np.ndarray


def count(images: Any) -> int:
    """The number of pictures, if it is a list of them and not one alone."""
    single = isinstance(images, (str, os.PathLike, bytes, Image.Image))
    if single or (isinstance(images, np.ndarray) and images.ndim not in (4, 5)):
        raise UserError("images must be a list of pictures or an array [n,H,W,3]: write [picture]")
    return len(images)


def count_with_texts(images: Any, texts: Sequence[Sequence[str]]) -> int:
    """The number of pictures, if each has a list of texts."""
    number = count(images)
    if number != len(texts):
        raise UserError(f"{number} images for {len(texts)} lists of texts")
    if not all(texts):
        raise UserError(f"images[{[bool(t) for t in texts].index(False)}] has no texts")
    return number


def prepared(image: Picture, contract: Contract, position: int) -> UInt8[np.ndarray, "size size 3"]:
    """The picture as the model sees it.

    Raises:
      UserError: it cannot be read; names it and its position.
    """
    name = f"images[{position}]"
    try:
        if isinstance(image, (str, os.PathLike)):
            name = f"{name} ({os.fspath(image)})"
            image = epath.Path(image).read_bytes()
        return contract.image(image)
    except (BadRecord, UserError, OSError) as error:
        raise UserError(f"{name}: {error}") from error
