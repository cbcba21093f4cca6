"""What a model was promised about its inputs: picture preparation, text, padding, decoding.

Training, evaluators and the predictor share one `Contract`; it is saved with every checkpoint, and
`check_same` refuses to score a model under another one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, Int32
from PIL import Image

from big_mm.data import images, normalization
from big_mm.data.vocabulary import Tokenizer
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How captions are generated unless the caller says otherwise; see `decoding.options`.

    Attributes:
      max_len: tokens of a caption, with bos and eos; None is the contract's `max_len`.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stop: bool = True
    min_len: int = 0
    max_len: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0


_CHOICES = {
    "resize": images.FITS,
    "rounding": images.ROUNDINGS,
    "kernel": images.KERNELS,
    "transparency": images.TRANSPARENCIES,
    "clean": normalization.CLEANS,
    "canonicalize": normalization.CANONICALIZES,
    "lowercase": normalization.LOWERCASES,
    "padding": ("masked", "attended"),
}


@dataclasses.dataclass(frozen=True)
class Contract:
    """Input rules of one model.

    Those of other programs' models are made by `interop.inputs`.

    Attributes:
      tokenizer: with its special ids; None for pictures only.
      image_size: height and width in pixels.
      resize: "squash", "crop" or "pad", see `images.fit`.
      resize_size: the side that "squash" and "crop" resize to before `image_size` is cut from the
        middle; None is `image_size`.
      rounding: of odd sizes and margins: "torchvision", "hugging_face" or "big_vision".
      fill: the grey of what "pad" adds, 0 to 255.
      kernel: one of `images.KERNELS`, see `images.resize`.
      transparency: "white" composites on white, "drop" shows the colours that were hidden.
      max_pixels: a picture whose header declares more is refused.
      max_len: tokens of a text, bos and eos included; a longer text is cut and keeps its eos.
      clean, canonicalize, lowercase: what is done to a text, see `normalization.normalize`.
      padding: "masked" has `token_mask` true from bos to eos; "attended" has it true everywhere,
        for towers trained to read their padding (SigLIP).
      decoding: defaults of caption generation.
    """

    tokenizer: Tokenizer | None = None
    image_size: int = 224
    resize: images.Fit = "squash"
    resize_size: int | None = None
    rounding: images.Rounding = "torchvision"
    fill: int = 0
    kernel: images.Kernel = "area"
    transparency: images.Transparency = "white"
    max_pixels: int = images.MAX_PIXELS
    max_len: int = 64
    clean: normalization.Clean = "none"
    canonicalize: normalization.Canonicalize = False
    lowercase: normalization.Lowercase = False
    padding: Literal["masked", "attended"] = "masked"
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                listed = ", ".join(map(str, allowed))
                raise UserError(
                    f"contract: {field}={getattr(self, field)!r} is not one of {listed}"
                )
        if self.image_size < 1 or self.max_len < 2:
            raise UserError("contract: image_size must be at least 1 and max_len at least 2")
        if self.resize_size is not None and self.resize_size < self.image_size:
            raise UserError(
                f"contract: resize_size={self.resize_size} is below image_size={self.image_size}"
            )
        if self.tokenizer is not None:
            normalization.require(self.clean)

    def image(self, image: Image.Image | np.ndarray | bytes | bytearray) -> images.RGB:
        """Prepares one picture: a file's bytes, a Pillow image, or a uint8 array.

        Raises:
          BadRecord: bytes that are damaged or declare too many pixels.
          UserError: an array that is not uint8 of shape [H,W], [H,W,1], [H,W,3] or [H,W,4].
        """
        if isinstance(image, Image.Image):
            array = images.to_rgb(image, self.transparency)
        elif isinstance(image, (bytes, bytearray)):
            array = images.decode(bytes(image), self.max_pixels, self.transparency)
        else:
            array = _array_to_rgb(image, self.transparency)
        return self.fit(array)

    def fit(self, image: images.RGB) -> images.RGB:
        """A decoded picture as `images.fit` brings it to `image_size`."""
        return images.fit(
            image,
            self.image_size,
            self.resize,
            self.kernel,
            resize_size=self.resize_size,
            rounding=self.rounding,
            fill=self.fill,
        )

    def text(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """`tokens` (bos, words, eos, pad ...) and `token_mask`, both [len(texts), max_len].

        Without bos or eos where the tokenizer has none.
        """
        tokenizer = self.require_tokenizer()
        words = self._words(texts)
        tokens = np.full((len(words), self.max_len), tokenizer.pad_id, np.int32)
        token_mask = np.full(tokens.shape, self.padding == "attended")
        begin = [tokenizer.bos_id] * (tokenizer.bos_id >= 0)
        end = [tokenizer.eos_id] * (tokenizer.eos_id >= 0)
        for row, ids in enumerate(words):
            ids = [*begin, *ids[: self._room], *end]
            tokens[row, : len(ids)] = ids
            token_mask[row, : len(ids)] = True
        return tokens, token_mask

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """The places of the texts that `text` cuts."""
        return [i for i, ids in enumerate(self._words(texts)) if len(ids) > self._room]

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without bos and eos."""
        if isinstance(texts, str):
            raise UserError("texts must be a sequence of strings, not one string")
        return self.require_tokenizer().encode_batch([self.normalize(t) for t in texts])

    @property
    def _room(self) -> int:
        """Tokens of a text beside bos and eos."""
        tokenizer = self.require_tokenizer()
        return self.max_len - (tokenizer.bos_id >= 0) - (tokenizer.eos_id >= 0)

    def normalize(self, text: str) -> str:
        """The text as the tokenizer sees it (which may have rules of its own: Unicode NFKC)."""
        return normalization.normalize(text, self.clean, self.canonicalize, self.lowercase)

    def detokenize(
        self, ids: Int[np.ndarray, "batch length"] | Sequence[Sequence[int]]
    ) -> list[str]:
        """The text of each row up to its first eos."""
        tokenizer = self.require_tokenizer()
        rows = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return [tokenizer.decode(row) for row in rows]

    def describe(self) -> dict[str, Any]:
        """Everything that must be equal for two models to see the same inputs; JSON-able."""
        rules = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("tokenizer", "decoding")
        }
        rules["tokenizer"] = self.tokenizer.rules() if self.tokenizer else None
        rules["decoding"] = dataclasses.asdict(self.decoding)
        return rules

    @property
    def fingerprint(self) -> str:
        """sha256 of `describe()`, hexadecimal."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def check_same(self, other: "Contract") -> None:
        """Refuses another contract, decoding defaults aside.

        Raises:
          UserError: naming the rules that differ, with both values.
        """
        ours, theirs = self.describe(), other.describe()
        differ = [k for k in ours if k != "decoding" and ours[k] != theirs[k]]
        if differ:
            listed = "; ".join(f"{k}: {ours[k]!r} here, {theirs[k]!r} there" for k in differ)
            raise UserError(f"the input contracts differ: {listed}")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Checks a model's vocabulary: the tokenizer's, or that rounded up to a multiple of 128.

        Raises:
          UserError: another size.
        """
        needed = self.require_tokenizer().vocab_size
        if not needed <= vocab_size <= -(-needed // 128) * 128:
            raise UserError(
                f"the model's vocabulary of {vocab_size} does not match the tokenizer's {needed}: "
                f"set the model's vocab_size to {needed} (or round it up to a multiple of 128)"
            )

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          UserError: there is none.
        """
        if self.tokenizer is None:
            raise UserError("the contract has no tokenizer, so it cannot take texts")
        return self.tokenizer


def _array_to_rgb(array: Any, transparency: images.Transparency) -> images.RGB:
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"a picture must be uint8 [H,W], [H,W,1], [H,W,3] or [H,W,4], "
            f"not {array.dtype} {array.shape}"
        )
    if array.shape[-1] == 4:
        return images.to_rgb(Image.fromarray(array), transparency)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
