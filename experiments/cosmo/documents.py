"""Documents of several scenes and their captions, and the contrastive loss of their pairs."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.data.records import Source
from big_mm.data.transforms import Record
from big_mm.losses.contrastive import Softmax
from big_mm.spec import UserError
from big_mm.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class Documents:
    """Each record behind some others, which the seed and its number choose.

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
    """A document with one caption of each image: `images` [media, size, size, 3], `tokens` and
    `token_mask` of all of it, cut to the contract's length, `pair_tokens`, `pair_token_mask` and
    `pair_id` [media, ...] of the captions, one by one.

    Attributes:
      pair_len: tokens of a caption alone.
    """

    pair_len: int
    contract: Contract | None = None

    def bind(self, contract: Contract) -> "Interleave":
        return dataclasses.replace(self, contract=self.contract or contract)

    def random_map(self, record: Record, rng: np.random.Generator) -> Record:
        if not all(record["texts"]):
            raise BadRecord("empty_caption")
        texts = [choices[int(rng.random() * len(choices))] for choices in record["texts"]]
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


@dataclasses.dataclass(frozen=True)
class PairSoftmax(Softmax):
    """`Softmax` over the pairs of all documents, whose embeddings are [documents, pairs, dim]."""

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        names = (*self.similarity.image, *self.similarity.text)
        flat = {name: outputs[name].reshape(-1, outputs[name].shape[-1]) for name in names}
        media = outputs[names[0]].shape[1]
        rows = {self.positives: batch[self.positives].reshape(-1)} if self.positives else {}
        if "mask" in batch:
            rows["mask"] = jnp.repeat(batch["mask"], media)
        return super().__call__(outputs | flat, rows)
