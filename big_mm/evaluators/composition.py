"""How a reference image and an edit in words become one query."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from big_mm.data.contract import Decoding
from big_mm.predictor import Predictor
from big_mm.spec import UserError

Embeddings = Float[np.ndarray, "query width"]
Images = UInt8[np.ndarray, "query size size 3"]


@dataclasses.dataclass(frozen=True)
class References:
    """What is known of the queries, in their order.

    Attributes:
      embeddings: unit vectors of the reference images.
      images: the prepared reference images, if the composition `sees`; else none.
      edits: what to change, in words.
    """

    embeddings: Embeddings
    images: Images | None
    edits: Sequence[str]


class Composition(Protocol):
    """Makes query embeddings. `sees`: it needs the reference images themselves."""

    sees: bool

    def __call__(self, predictor: Predictor, references: References) -> Embeddings:
        """Unit vectors."""

    def protocol(self) -> dict[str, Any]:
        """What pins the queries, JSON-able."""


class Rewriter(Protocol):
    """The caption of the wanted image, from the reference's caption and the edit."""

    def __call__(self, caption: str, edit: str) -> str: ...


@dataclasses.dataclass(frozen=True)
class Fill:
    """The rewriter that puts both into a sentence with {caption} and {edit}."""

    template: str = "{caption}, {edit}"

    def __post_init__(self) -> None:
        for field in ("{caption}", "{edit}"):
            if self.template.count(field) != 1:
                raise UserError(f"the template {self.template!r} must hold {field} exactly once")

    def __call__(self, caption: str, edit: str) -> str:
        return self.template.replace("{caption}", caption).replace("{edit}", edit)


@dataclasses.dataclass(frozen=True)
class Sum:
    """normalize((1 - w) image + w text) of unit embeddings (weighted modality fusion,
    arXiv:2409.04918; its released code sums embeddings that are not unit).

    Attributes:
      text_weight: w; 1/2 is the plain sum, 0 the image alone, 1 the text alone.
      prefix: put before the edit.
    """

    text_weight: float = 0.5
    prefix: str = ""

    sees: ClassVar[bool] = False

    def __call__(self, predictor: Predictor, references: References) -> Embeddings:
        text = predictor.encode_text([self.prefix + edit for edit in references.edits])
        weight = self.text_weight
        return unit((1 - weight) * references.embeddings + weight * unit(text))

    def protocol(self) -> dict[str, Any]:
        return {"query": "sum", "text weight": self.text_weight, "prefix": self.prefix}


@dataclasses.dataclass(frozen=True)
class Fused:
    """What the model itself makes of image and edit: its output `query_embedding`.

    Attributes:
      batch_size: queries at a time.
    """

    batch_size: int = 256

    sees: ClassVar[bool] = True

    def __call__(self, predictor: Predictor, references: References) -> Embeddings:
        tokens, token_mask = predictor.contract.text(list(references.edits))
        count, made = len(tokens), []
        size = min(self.batch_size, count)
        for start in range(0, count, size):
            at = np.minimum(np.arange(start, start + size), count - 1)  # one shape compiles once
            batch = {"image": references.images[at], "tokens": tokens[at]}
            batch["token_mask"] = token_mask[at]
            made.append(predictor.outputs(batch, ("query_embedding",))["query_embedding"])
        return unit(np.concatenate(made)[:count])

    def protocol(self) -> dict[str, Any]:
        return {"query": "the model's own"}


@dataclasses.dataclass(frozen=True)
class CaptionAndRewrite:
    """The text embedding of the reference's caption, rewritten (arXiv:2310.09291).

    Attributes:
      rewriter: a `Rewriter`; the paper asks a language model.
      decoding: of the reference's caption; None takes the contract's.
      prefix: the words that the caption begins with.
    """

    rewriter: Any = Fill()
    decoding: Decoding | None = None
    prefix: str = ""

    sees: ClassVar[bool] = True

    def texts(self, predictor: Predictor, references: References) -> tuple[list[str], list[str]]:
        """The reference captions, and the rewritten ones."""
        how = self.decoding or predictor.contract.decoding
        tokens, _ = predictor.generate(references.images, how, prefix=self.prefix)
        captions = predictor.contract.detokenize(tokens)
        pairs = zip(captions, references.edits, strict=True)
        return captions, [self.rewriter(caption, edit) for caption, edit in pairs]

    def __call__(self, predictor: Predictor, references: References) -> Embeddings:
        return unit(predictor.encode_text(self.texts(predictor, references)[1]))

    def protocol(self) -> dict[str, Any]:
        rule = getattr(self.rewriter, "template", type(self.rewriter).__name__)
        return {"query": "rewritten caption", "rewriter": rule}


@dataclasses.dataclass(frozen=True)
class PromptDirection:
    """Along the direction from the reference's text to the composed text (arXiv:2502.07215).

    With d = composed text - reference text, of unit vectors: normalize((1 - b) (image + a d) +
    b (reference text + c d)), as the authors' program has it: the two sums keep their lengths.
    b = c = 1 is `mapper` alone, b = 1 and c = 0 the reference's text, a = b = 0 the image alone.

    Attributes:
      image_scale: a (alpha_I).
      text_scale: c (alpha_T).
      text_weight: b (beta).
      mapper: gives the texts of reference and query; here a caption and its rewriting.
    """

    image_scale: float = 1.0
    text_scale: float = 1.0
    text_weight: float = 0.5
    mapper: CaptionAndRewrite = CaptionAndRewrite()

    sees: ClassVar[bool] = True

    def __call__(self, predictor: Predictor, references: References) -> Embeddings:
        captions, rewritten = self.mapper.texts(predictor, references)
        plain, composed = (unit(predictor.encode_text(t)) for t in (captions, rewritten))
        direction, weight = composed - plain, self.text_weight
        image = unit(references.embeddings) + self.image_scale * direction
        return unit((1 - weight) * image + weight * (plain + self.text_scale * direction))

    def protocol(self) -> dict[str, Any]:
        settings = {
            "image scale": self.image_scale,
            "text scale": self.text_scale,
            "text weight": self.text_weight,
        }
        return self.mapper.protocol() | {"query": "prompt direction"} | settings


def unit(vectors: Embeddings) -> Embeddings:
    """Each row at length 1, in float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
