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

from big_mm.data import images, tokenizers
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


@dataclasses.dataclass(frozen=True)
class Contract:
    """Input rules of one model.

    Attributes:
      tokenizer: a `SentencePiece`, or another object with its methods; None for pictures only.
      image_size: height and width in pixels.
      resize: "squash" or "crop", see `images.fit`.
      kernel: "area", "bilinear" or "bicubic", see `images.resize`.
      max_pixels: a picture whose header declares more is refused.
      max_len: tokens of a text, bos and eos included; a longer text is cut and keeps its eos.
      lowercase: texts are lower-cased.
      canonicalize: texts are also stripped of punctuation (SigLIP's rule).
      padding: "masked" has `token_mask` true from bos to eos; "attended" has it true everywhere,
        for towers trained to read their padding (CLIP, SigLIP).
      decoding: defaults of caption generation.
    """

    tokenizer: tokenizers.SentencePiece | None = None
    image_size: int = 224
    resize: images.Fit = "squash"
    kernel: images.Kernel = "area"
    max_pixels: int = images.MAX_PIXELS
    max_len: int = 64
    lowercase: bool = False
    canonicalize: bool = False
    padding: Literal["masked", "attended"] = "masked"
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        for field, allowed in (
            ("resize", images.FITS),
            ("kernel", images.KERNELS),
            ("padding", ("masked", "attended")),
        ):
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"contract: {field}={getattr(self, field)!r} is not one of {', '.join(allowed)}"
                )
        if self.image_size < 1 or self.max_len < 2:
            raise UserError("contract: image_size must be at least 1 and max_len at least 2")

    def image(self, image: Image.Image | np.ndarray | bytes | bytearray) -> images.RGB:
        """Prepares one picture: a file's bytes, a Pillow image, or a uint8 array.

        Raises:
          BadRecord: bytes that are damaged or declare too many pixels.
          UserError: an array that is not uint8 of shape [H,W], [H,W,1], [H,W,3] or [H,W,4].
        """
        if isinstance(image, Image.Image):
            array = images.to_rgb(image)
        elif isinstance(image, (bytes, bytearray)):
            array = images.decode(bytes(image), self.max_pixels)
        else:
            array = _array_to_rgb(image)
        return images.fit(array, self.image_size, self.resize, self.kernel)

    def text(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "batch length"], Bool[np.ndarray, "batch length"]]:
        """`tokens` (bos, words, eos, pad ...) and `token_mask`, both [len(texts), max_len]."""
        if isinstance(texts, str):
            raise UserError("texts must be a sequence of strings, not one string")
        tokenizer = self._tokenizer()
        tokens = np.full((len(texts), self.max_len), tokenizer.pad_id, np.int32)
        token_mask = np.full(tokens.shape, self.padding == "attended")
        for row, ids in enumerate(tokenizer.encode_batch([self.normalize(t) for t in texts])):
            ids = [tokenizer.bos_id, *ids[: self.max_len - 2], tokenizer.eos_id]
            tokens[row, : len(ids)] = ids
            token_mask[row, : len(ids)] = True
        return tokens, token_mask

    def normalize(self, text: str) -> str:
        """The text as the tokenizer sees it (SentencePiece adds Unicode NFKC)."""
        if self.canonicalize:
            return tokenizers.canonicalize(text)
        return text.lower() if self.lowercase else text

    def detokenize(
        self, ids: Int[np.ndarray, "batch length"] | Sequence[Sequence[int]]
    ) -> list[str]:
        """The text of each row up to its first eos."""
        tokenizer = self._tokenizer()
        rows = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return [tokenizer.decode(row) for row in rows]

    def describe(self) -> dict[str, Any]:
        """Everything that must be equal for two models to see the same inputs; JSON-able."""
        rules = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("tokenizer", "decoding")
        }
        rules["tokenizer"] = self.tokenizer.fingerprint if self.tokenizer else None
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
        needed = self._tokenizer().vocab_size
        if not needed <= vocab_size <= -(-needed // 128) * 128:
            raise UserError(
                f"the model's vocabulary of {vocab_size} does not match the tokenizer's {needed}: "
                f"set the model's vocab_size to {needed} (or round it up to a multiple of 128)"
            )

    def _tokenizer(self) -> tokenizers.SentencePiece:
        if self.tokenizer is None:
            raise UserError("the contract has no tokenizer, so it cannot take texts")
        return self.tokenizer


def _array_to_rgb(array: Any) -> images.RGB:
    array = np.asarray(array)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise UserError(
            f"a picture must be uint8 [H,W], [H,W,1], [H,W,3] or [H,W,4], "
            f"not {array.dtype} {array.shape}"
        )
    if array.shape[-1] == 4:
        return images.to_rgb(Image.fromarray(array))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
