"""Captions by a checkpoint: the synthetic texts of ALIP, VeCLIP or TIPS, or a pass of CapFilt."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_mm import predictor as predictor_lib
from big_mm import trees
from big_mm.curation.answers import key_of
from big_mm.curation.asking import Question
from big_mm.data import images as images_lib
from big_mm.data.contract import Decoding
from big_mm.data.examples import Schema
from big_mm.predictor import Predictor
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Caption:
    """`count` captions of each record's picture, in one feature, as `Predictor.caption` gives them.

    A sample depends on the model, the picture, its number and the seed alone.

    Attributes:
      checkpoint: as `big_mm.load` takes it.
      decoding: None takes the contract's. More than one caption needs a temperature.
      prefix: the words that captions begin with.
      schema: which feature holds the picture.
      feature: the new feature.
      batch_size: captions made together.
      threads: batches at a time: pictures of the next are prepared while the devices work.
    """

    checkpoint: str
    decoding: Decoding | None = None
    prefix: str = ""
    count: int = 1
    schema: Schema = Schema(captions=None, key=None)
    feature: str = "synthetic"
    seed: int = 0
    batch_size: int = 64
    threads: int = 4

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"count={self.count} must be at least 1")
        if self.schema.image is None:
            raise UserError("Caption needs a schema with the picture's feature (image=...)")

    @property
    def adds(self) -> tuple[str, ...]:
        """The one feature."""
        return (self.feature,)

    def fingerprint(self) -> str:
        """Of model, contract and decoding, how many captions, and which feature is read."""
        return key_of(self._model, str(self.count), repr(self.schema), self.feature)

    def questions(self, record: Mapping[str, Any]) -> list[Question]:
        """One a caption. Raises BadRecord where the picture cannot be decoded."""
        image = self._predictor.contract.image(record["image"])
        keys = [key_of(self._model, image.tobytes(), str(n)) for n in range(self.count)]
        return [Question(key, (image, int(key[:8], 16) >> 1)) for key in keys]

    def answer(self, contents: Sequence[tuple[images_lib.RGB, int]]) -> list[str]:
        """The captions of prepared pictures."""
        images, rows = zip(*contents, strict=True)
        tokens, _ = self._predictor.generate(
            np.stack(images), self._decoding, prefix=self.prefix, seed=self.seed, rows=rows
        )
        return self._predictor.contract.detokenize(tokens)

    def features(self, record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, list[str]]:
        """The captions that are not blank."""
        return {self.feature: [text for text in answers if text.strip()]}

    @functools.cached_property
    def _predictor(self) -> Predictor:
        loaded = predictor_lib.load(self.checkpoint)
        return dataclasses.replace(loaded, batch_size=self.batch_size, progress=False)

    @functools.cached_property
    def _decoding(self) -> Decoding:
        how = self.decoding or self._predictor.contract.decoding
        if self.count > 1 and not how.temperature:
            raise UserError(f"count={self.count} captions would be equal at temperature 0")
        return how

    @functools.cached_property
    def _model(self) -> str:
        """A digest of all that a caption depends on besides the picture."""
        parts = [repr(self._predictor.model), trees.digest(self._predictor.params)]
        parts += [self._predictor.contract.fingerprint, dataclasses.asdict(self._decoding)]
        return key_of(json.dumps([*parts, self.prefix, self.seed], sort_keys=True))
