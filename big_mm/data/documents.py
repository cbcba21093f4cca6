"""Interleaved documents: several images, each with the text that follows it."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.data.transforms import Record
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents made of pairs: each behind some others, which the seed and its number choose.

    A document has `images` (encoded) and `texts` (each image's captions), its own record's last;
    the other keys are that record's.
    """

    source: Source
    images: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.images <= len(self.source):
            raise UserError(
                f"Documents: images={self.images} must be from 1 to the {len(self.source)} records"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Damaged if one of its records is."""
        own = self.source[index]
        records = [*(self.source[other] for other in self.others(index)), own]
        images, texts = ([record[key] for record in records] for key in ("image", "captions"))
        return own | {"images": images, "texts": texts}

    def where(self, index: int) -> str:
        return self.source.where(index)

    def others(self, index: int) -> list[int]:
        """The records before it: none twice, and not itself."""
        rng = np.random.default_rng((self.seed, index))
        drawn = rng.choice(len(self) - 1, self.images - 1, replace=False)
        return [int(i) + int(i >= index) for i in drawn]


def document(contract: Contract, texts: Sequence[str]) -> Int32[np.ndarray, " length"]:
    """bos and words of each text, one after the other: each bos stands for an image."""
    tokens, mask = contract.text(texts)
    return np.concatenate([row[: n - 1] for row, n in zip(tokens, mask.sum(axis=1), strict=True)])


@dataclasses.dataclass(frozen=True)
class Interleave(grain.transforms.RandomMap):
    """A document as arrays: `images` [media, size, size, 3]; of all its texts `tokens` and
    `token_mask`, cut to the contract's length; of each alone `pair_tokens`, `pair_token_mask` and
    `pair_id` [media, ...].

    A record has `images` (encoded), as many as any other, and `texts`: what follows each image, or
    several choices of that. Shards of documents are read by
    Schema(image=None, captions=None, texts=("texts=text",), extra=("images=image",)).

    Attributes:
      pair_len: tokens of a text alone.
    """

    pair_len: int
    contract: Contract | None = None

    def bind(self, contract: Contract) -> "Interleave":
        return dataclasses.replace(self, contract=self.contract or contract)

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        given = [[text] if isinstance(text, str) else text for text in record["texts"]]
        if not all(choices and all(choices) for choices in given):
            raise BadRecord("empty_caption")
        if len(given) != len(record["images"]):
            raise BadRecord("malformed", f"{len(given)} texts of {len(record['images'])} images")
        texts = [choices[int(rng.random() * len(choices))] for choices in given]
        contract, eos_id = self.contract, self.contract.tokenizer.eos_id
        pairs = dataclasses.replace(contract, max_len=self.pair_len).text(texts)
        words = document(contract, texts)[: contract.max_len - 1]
        tokens = np.full(contract.max_len, contract.tokenizer.pad_id, np.int32)
        tokens[: len(words) + 1] = [*words, eos_id]
        return {
            "key": record["key"],
            "images": np.stack([contract.image(data) for data in record["images"]]),
            "tokens": tokens,
            "token_mask": np.arange(contract.max_len) <= len(words),
            "pair_tokens": pairs[0],
            "pair_token_mask": pairs[1],
            "pair_id": np.array([zlib.crc32(row.tobytes()) - 2**31 for row in pairs[0]], np.int32),
        }
