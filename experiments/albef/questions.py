"""Questions about an image, asked as captions with one word exchanged."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from big_mm.evaluators import base
from big_mm.evaluators.choice import Item
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class FirstWord:
    """What is the first of these words in the caption? Each of them, in its place, is an answer.

    Attributes:
      words: the answers.
      caption: text feature, whose first text has at least one of them.
    """

    words: tuple[str, ...]
    caption: str = "captions"

    classes: ClassVar[bool] = True
    ordered: ClassVar[bool] = False

    def of(self, record: Mapping[str, Any]) -> Item:
        text = base.first_text(record[self.caption])
        found = re.search(rf"\b(?:{'|'.join(self.words)})\b", text)
        if not found:
            raise UserError(f"record {record['key']!r}: {text!r} has no {', '.join(self.words)}")
        before, after = text[: found.start()], text[found.end() :]
        texts = tuple(before + word + after for word in self.words)
        return Item(texts, self.words.index(found.group()))
