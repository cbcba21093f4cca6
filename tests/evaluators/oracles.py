"""A source of numbered pictures, and a predictor whose answers are known."""

import dataclasses
import io
from typing import Any

import numpy as np
import tiny
from flax import linen as nn
from PIL import Image

from big_mm import spec
from big_mm.data.contract import Contract, Decoding
from big_mm.data.damage import BadRecord
from big_mm.mesh import single_device_mesh
from big_mm.predictor import Predictor

NAMES = ("zero", "one", "two", "three")


def contract(directory) -> Contract:
    """The tiny model's, of a length that cuts none of the tests' texts."""
    return dataclasses.replace(spec.build(tiny.config(directory).contract), max_len=48)


def picture(number: int) -> np.ndarray:
    """A plain picture that `number_of` reads back."""
    image = np.zeros((tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3), np.uint8)
    image[:] = (number % 256, number // 256, 77)
    return image


def number_of(image: np.ndarray | bytes) -> int:
    if isinstance(image, bytes):
        image = np.asarray(Image.open(io.BytesIO(image)))
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Record i shows picture i; `damaged` records cannot be read; `features(i)` adds to them."""

    count: int
    features: Any = lambda i: {"captions": [f"number {i}"]}
    damaged: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.damaged:
            raise BadRecord("data_crc")
        file = io.BytesIO()
        Image.fromarray(picture(index)).save(file, "PNG")
        return {"image": file.getvalue(), "key": f"n{index}", **self.features(index)}

    def where(self, index: int) -> str:
        return f"numbered @ {index}"


class Oracle(Predictor):
    """Answers from functions of the picture's number and of the text, without any model."""

    def __init__(
        self, contract, image_vector=None, text_vector=None, says=None, log_likelihood=None
    ):
        object.__setattr__(self, "contract", contract)
        object.__setattr__(self, "mesh", single_device_mesh())
        object.__setattr__(self, "kept", {})
        object.__setattr__(self, "image_vector", image_vector)
        object.__setattr__(self, "text_vector", text_vector)
        object.__setattr__(self, "says", says)
        object.__setattr__(self, "log_likelihood", log_likelihood)

    def image_outputs(self, images, keys, dtype="float32"):
        assert (tuple(keys), dtype) == (("image_embedding",), "float32")
        return {keys[0]: unit([self.image_vector(number_of(image)) for image in images])}

    def text_outputs(self, texts, keys):
        assert tuple(keys) == ("text_embedding",)
        return {keys[0]: unit([self.text_vector(text) for text in texts])}

    def generate(self, images, how: Decoding, *, prefix="", seed=0):
        prefixes = [prefix] * len(images) if isinstance(prefix, str) else prefix
        said = [self.says(number_of(image)) for image in images]
        texts = [first + words for first, words in zip(prefixes, said, strict=True)]
        return self.contract.text(texts)[0], np.zeros(len(texts), np.float32)

    def caption_log_likelihood(self, images, captions):
        pairs = zip(images, captions, strict=True)
        totals = [self.log_likelihood(number_of(image), caption) for image, caption in pairs]
        words = [len(caption.split()) for caption in captions]
        return np.array(totals, np.float32), np.array(words, np.int32)

    def texts_log_likelihood(self, images, texts, prefix=""):
        prefixes = [prefix] * len(images) if isinstance(prefix, str) else prefix
        totals = np.full((len(texts), max(map(len, texts))), -np.inf, np.float32)
        words = np.zeros(totals.shape, np.int32)
        for row, (image, first, each) in enumerate(zip(images, prefixes, texts, strict=True)):
            pairs = [image] * len(each), [first + text for text in each]
            totals[row, : len(each)] = self.caption_log_likelihood(*pairs)[0]
            words[row, : len(each)] = [len(text.split()) for text in each]
        return totals, words


@dataclasses.dataclass(frozen=True)
class Opposed:
    """Images rank texts as the cosine does, and texts rank images the other way round."""

    image: tuple[str, ...] = ("image_embedding",)
    text: tuple[str, ...] = ("text_embedding",)

    def __call__(self, images, texts):
        cosine = images["image_embedding"] @ texts["text_embedding"].T
        return 3 * cosine, -cosine


def basis(i, width=8):
    return np.eye(width)[i % width]


def labelled(i):
    return {"label": i % 4, "class_name": [NAMES[i % 4].encode()]}


def classifier(contract, wrong=()):
    """Right about every picture, except that those in `wrong` look like the next class."""
    return Oracle(
        contract,
        image_vector=lambda n: basis(n % 4 + (n in wrong)),
        text_vector=lambda text: basis(NAMES.index(text.split()[-1])),
    )


class OnlyPictures(nn.Module):
    """A model without texts and captions."""

    @nn.compact
    def __call__(self, batch, train=False):
        return self.encode_image(batch["image"])

    def encode_image(self, image, train=False):
        flat = image.reshape(len(image), -1)[:, :8] + 1.0
        return {"image_embedding": flat / (flat**2).sum(-1, keepdims=True) ** 0.5}


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
