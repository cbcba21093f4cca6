"""A run's batch without the run's data: what `plan` knows of shapes before any file is there."""

import copy
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from big_mm import spec
from big_mm.data.damage import BadRecord
from big_mm.data.pipeline import Pipeline
from big_mm.data.tokenizers import SentencePiece
from big_mm.spec import UserError
from big_mm.training.run import Run


@dataclasses.dataclass(frozen=True)
class AnyVocabulary(SentencePiece):
    """Stands in for a tokenizer whose file is not there: every text is empty."""

    path: str = ""
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        pass

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [[] for _ in texts]


@dataclasses.dataclass(frozen=True)
class AnyRecord:
    """Stands in for a source: one grey picture with one caption, in the shape of `like`'s records.

    Attributes:
      like: the source of the config; its schema, if it has one, names further features.
      size: side of the picture in pixels.
    """

    like: Any
    size: int

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = io.BytesIO()
        Image.new("RGB", (self.size, self.size), (128, 128, 128)).save(file, "png")
        record = {"image": file.getvalue(), "captions": ["a caption"], "key": "0"}
        schema = getattr(self.like, "schema", None)
        if getattr(schema, "label", None):
            record["label"] = 0
        for name in getattr(schema, "extra", ()):
            record[name.partition("=")[0]] = [b""]
        return record

    def where(self, index: int) -> str:
        return f"the record that stands in for those of {self.like}"


def build(config: ml_collections.ConfigDict) -> Run:
    """The run of a config, without what needs its files: evaluators, tokenizer, `init_from`."""
    config = copy.deepcopy(config)
    with config.unlocked(), config.ignore_type():
        config.evaluators = {}
        config.init_from = None
        if config.contract.get("tokenizer") is not None:
            config.contract.tokenizer = spec.spec(AnyVocabulary)
    return spec.build(config)


def batch(run: Run) -> dict[str, np.ndarray]:
    """One row as the run's own transforms give it, of a record that stands in for its data.

    Raises:
      UserError: the transforms read something that only the real records have.
    """
    sources: Sequence[Any] = tuple(
        AnyRecord(source, run.contract.image_size) for source in run.data.sources
    )
    data: Pipeline = dataclasses.replace(run.data, sources=sources, num_workers=0, num_threads=1)
    try:
        return next(data.batches(run.contract, 1, run.seed))
    except (BadRecord, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"the transforms want more than a picture and a caption ({error!r}), so that a batch "
            "cannot be imagined: --read-data takes the shapes from the config's own data"
        ) from error
