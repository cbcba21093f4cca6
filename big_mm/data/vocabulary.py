"""What every tokenizer is to the rest: a file, special ids, texts to ids and back.

A special id is a fact of the file or given beside it, because the same file is used in more than
one way: SigLIP pads with its eos, CapPa with pad, both from one SentencePiece model. -1 is an id
that the tokenizer does not have or that its models do not use.
"""

import abc
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from etils import epath

from big_mm.spec import UserError

SPECIAL = ("pad_id", "bos_id", "eos_id")


@dataclasses.dataclass(frozen=True)
class Tokenizer(abc.ABC):
    """A vocabulary in one file.

    Attributes:
      path: the file, local or remote (`gs://`).
      sha256: if given, the hexadecimal digest that the file must have.
      pad_id: fills a row behind its text. Default: as the file says.
      bos_id: begins a row, -1 for none. Default: as the file says.
      eos_id: ends a text, -1 for none. Default: as the file says.
      file_name: what the file is called in a checkpoint.
    """

    path: str
    sha256: str = ""
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None

    file_name: ClassVar[str]

    def __post_init__(self) -> None:
        if not epath.Path(self.path).exists():
            raise UserError(
                f"no tokenizer model at {self.path} (train one: big_mm.data.tokenizers)"
            )
        if self.sha256 and self.sha256 != self.fingerprint:
            raise UserError(
                f"{self.path} is another vocabulary than expected: its sha256 is "
                f"{self.fingerprint[:12]}..., not {self.sha256[:12]}..."
            )
        found = self._special()
        for name in SPECIAL:
            if getattr(self, name) is None:
                object.__setattr__(self, name, found[name])
            if not -1 <= getattr(self, name) < self.vocab_size:
                raise UserError(
                    f"{self.path}: {name}={getattr(self, name)} is outside the vocabulary of "
                    f"{self.vocab_size}"
                )
        if self.pad_id == -1:
            raise UserError(
                f"{self.path} has no id that is reserved for padding: name the one that the model "
                "was trained with (pad_id=...)"
            )

    @property
    def unk_id(self) -> int:
        """What a character without a piece becomes; -1 if every text has pieces."""
        return -1

    @property
    def cls_id(self) -> int:
        """A reserved id for a CLS token inside a row; -1 if there is none."""
        return -1

    @property
    def free_id(self) -> int:
        """Marks the places of a row that are still to be written: pad, or -1 if pad is a word."""
        return self.pad_id if self.pad_id in self.reserved | {self.eos_id} else -1

    @functools.cached_property
    def model_bytes(self) -> bytes:
        """The file's content: what travels with a checkpoint and to worker processes."""
        return epath.Path(self.path).read_bytes()

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the file, hexadecimal."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @functools.cached_property
    def reserved(self) -> frozenset[int]:
        """The ids that no text has."""
        return self._reserved()

    def rules(self) -> dict[str, Any]:
        """What must be equal for two tokenizers to give the same rows; JSON-able."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["path"]
        return fields | {"sha256": self.fingerprint}

    def __getstate__(self) -> dict[str, Any]:
        """Carries the file's bytes: a worker needs neither the file nor its file system."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"model_bytes": self.model_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The number of ids."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without bos and eos; never a reserved id but unk."""

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text."""
        # One by one: the libraries' own batches start threads, which cost more than ten texts, and
        # which worker processes do not survive.
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """Text up to the first eos; reserved ids contribute nothing.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        words = []
        for position, i in enumerate(map(int, ids)):
            if i == self.eos_id and not (position == 0 and i == self.bos_id):
                break
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
            if i not in self.reserved:
                words.append(i)
        return self._decode(words)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, for example into a checkpoint."""
        epath.Path(path).write_bytes(self.model_bytes)

    def portable(self) -> tuple[str, bytes]:
        """The name and content of a file that a public library reads without this code."""
        return self.file_name, self.model_bytes

    @abc.abstractmethod
    def token(self, number: int) -> str:
        """An id's token, as the file spells it."""

    @abc.abstractmethod
    def _special(self) -> dict[str, int]:
        """The ids of SPECIAL as the file has them, -1 where it has none."""

    @abc.abstractmethod
    def _reserved(self) -> frozenset[int]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of ids that are words."""
