"""Captions rewritten by a language model: LaCLIP (arXiv:2305.20088, section 3).

The model is shown captions with their rewrites, one a line, and then a caption alone:

    a boat on a lake => A wooden boat drifts over a calm lake.
    ...
    my dog =>

Rewrite i is shown pairs of the set i modulo their number (the paper's four rewrites come from four
sets: by two chatbots, from COCO, by people), drawn anew for every caption.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from big_mm.curation.answers import key_of
from big_mm.curation.asking import Question
from big_mm.data.examples import Schema
from big_mm.spec import UserError

# How often the model is asked for a rewrite before the caption goes without.
_TRIES = 3
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»"}


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """Rewrites of each caption of a record, in one feature. Equal captions have equal rewrites.

    Attributes:
      writer: the language model, a `chat.LanguageModel`.
      examples: sets of (caption, rewrite) pairs.
      count: rewrites of a caption. A greater one asks only for those that are new.
      shots: pairs that the model is shown.
      instruction: what it reads before them.
      schema: which features hold the captions.
      feature: the new feature.
      max_characters: a longer caption is cut before it is rewritten.
      seed: of the pairs, and of the model's samples if it takes one.
      threads: requests at the same time.
    """

    writer: Any
    examples: tuple[tuple[tuple[str, str], ...], ...]
    count: int = 4
    shots: int = 3
    instruction: str = (
        "Write image captions differently. Answer with one line, the new text of the last caption, "
        "and nothing else."
    )
    schema: Schema = Schema(image=None, key=None)
    feature: str = "rewrites"
    max_characters: int = 1000
    seed: int = 0
    threads: int = 16

    batch_size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for pairs in self.examples:
            if len(pairs) < self.shots or any(len(pair) != 2 for pair in pairs):
                raise UserError(
                    f"each set of examples must be at least shots={self.shots} pairs of a caption "
                    f"and its rewrite, as ((caption, rewrite), ...), not {pairs!r}"
                )
        if not self.examples or self.count < 1:
            raise UserError("Rewrite needs a set of examples, and a count of at least 1")

    @property
    def adds(self) -> tuple[str, ...]:
        """The one feature."""
        return (self.feature,)

    def fingerprint(self) -> str:
        """Of the model, what it is shown, and which captions it rewrites."""
        kept = ("examples", "count", "shots", "instruction", "feature", "max_characters", "seed")
        fields = {name: getattr(self, name) for name in kept}
        return key_of("Rewrite", self.writer.request("", 0), repr(self.schema), json.dumps(fields))

    def questions(self, record: Mapping[str, Any]) -> list[Question]:
        """`count` of each caption."""
        return [
            Question(key_of(self._request(caption, number, 0), str(number)), (caption, number))
            for caption in record["captions"]
            for number in range(self.count)
        ]

    def answer(self, contents: Sequence[tuple[str, int]]) -> list[str]:
        """The model's words, as they are; "" where it has none in three tries."""
        return [self._answer(caption, number) for caption, number in contents]

    def features(self, record: Mapping[str, Any], answers: Sequence[str]) -> dict[str, list[str]]:
        """The rewrites, caption by caption; those that are empty are left out."""
        return {self.feature: [text for text in map(cleaned, answers) if text]}

    def _answer(self, caption: str, number: int) -> str:
        for attempt in range(_TRIES):
            text = self.writer.ask(self._request(caption, number, attempt))
            if cleaned(text):
                return text
        return ""

    def _request(self, caption: str, number: int, attempt: int) -> bytes:
        caption = " ".join(caption.split())[: self.max_characters]
        lines = [f"{source} => {target}" for source, target in self._shown(caption, number)]
        prompt = "\n\n".join([self.instruction, *lines, f"{caption} =>"])
        return self.writer.request(prompt, _draw(self.seed, number, attempt) >> 33)

    def _shown(self, caption: str, number: int) -> list[tuple[str, str]]:
        """`shots` pairs, the same in every run."""
        pairs = self.examples[number % len(self.examples)]
        place = functools.partial(_draw, self.seed, number, caption)
        return [pairs[i] for i in sorted(range(len(pairs)), key=place)[: self.shots]]


def cleaned(answer: str) -> str:
    """The rewrite in a model's answer: its first line of text, in one line, without quotes.

    A line that ends in a colon announces it and is passed over; of a line in the form of the
    examples, what follows the arrow is taken.
    """
    lines = (" ".join(line.split()) for line in answer.splitlines())
    line = next((line for line in lines if line and not line.endswith(":")), "")
    line = line.rpartition("=>")[2].strip()
    while len(line) > 1 and _QUOTES.get(line[0]) == line[-1]:
        line = line[1:-1].strip()
    return "" if line in _QUOTES else line


def _draw(*parts: Any) -> int:
    """64 bits that depend on nothing but these."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:8], "little")
