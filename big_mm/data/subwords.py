"""Tokenizers of others in their own files, through Hugging Face's `tokenizers` (extra `interop`).

The file's own rules of a text are kept (normaliser, splitting); its rules of a row (bos and eos,
truncation, padding) are the contract's. A text that spells a special token ("<|endoftext|>") gets
the ids of its letters: nothing that a caption says can end it.
"""

import abc
import dataclasses
import functools
import gzip
import json
from typing import Any, ClassVar

from big_mm.data.vocabulary import Tokenizer
from big_mm.spec import UserError

# CLIP's vocabulary: 256 bytes, the same at the end of a word, and so many merges; its file has
# five times as many.
_CLIP_MERGES = 49_152 - 256 - 2
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BERT_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "this tokenizer needs the package tokenizers: install big-mm[interop] "
            "(or: pip install tokenizers)"
        ) from error
    return tokenizers


@dataclasses.dataclass(frozen=True)
class Subwords(Tokenizer):
    """What the three kinds of files have in common."""

    @functools.cached_property
    def _tokenizer(self) -> Any:
        _library()
        try:
            made = self._make()
        except UserError:
            raise
        except Exception as error:  # the library raises bare exceptions
            raise UserError(f"{self.path} is no {type(self).__name__} file: {error}") from error
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = True
        return made

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self._size

    @functools.cached_property
    def _size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without bos and eos; never a reserved id but unk."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def portable(self) -> tuple[str, bytes]:
        """A `tokenizer.json`."""
        return TokenizerJson.file_name, self.with_rows()

    def with_rows(self) -> bytes:
        """A `tokenizer.json` that puts bos and eos around a text by itself."""
        lib = _library()
        made = lib.Tokenizer.from_str(self._tokenizer.to_str())
        begin, end = (
            [(self.token(number), number)] if number >= 0 else []
            for number in (self.bos_id, self.eos_id)
        )
        parts = [*(t for t, _ in begin), "$A", *(t for t, _ in end)]
        made.post_processor = lib.processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=begin + end
        )
        return made.to_str().encode()

    @abc.abstractmethod
    def _make(self) -> Any:
        """The library's tokenizer of the file's content."""

    def token(self, number: int) -> str:
        """An id's token, as the file spells it."""
        return self._tokenizer.id_to_token(number)

    def id_of(self, token: str) -> int:
        """A token's id, -1 if it has none."""
        found = self._tokenizer.token_to_id(token)
        return -1 if found is None else found

    def _reserved(self) -> frozenset[int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


@dataclasses.dataclass(frozen=True)
class TokenizerJson(Subwords):
    """A Hugging Face `tokenizer.json`.

    The file does not say which of its special tokens is which: give pad_id, bos_id and eos_id.
    """

    file_name: ClassVar[str] = "tokenizer.json"

    def _make(self) -> Any:
        return _library().Tokenizer.from_str(self.model_bytes.decode())

    def portable(self) -> tuple[str, bytes]:
        """The file itself."""
        return self.file_name, self.model_bytes

    def around(self) -> tuple[list[int], list[int]]:
        """The ids that the file's own rules put before a text and behind it."""
        row = self._tokenizer.encode("a", add_special_tokens=True)
        words = [place for place, special in enumerate(row.special_tokens_mask) if not special]
        return row.ids[: words[0]], row.ids[words[-1] + 1 :]

    def _special(self) -> dict[str, int]:
        missing = [n for n in ("pad_id", "bos_id", "eos_id") if getattr(self, n) is None]
        if missing:
            raise UserError(
                f"{self.path} does not say which its special tokens are: give "
                f"{', '.join(missing)} (-1 for none)"
            )
        return {}

    def _decode(self, ids: list[int]) -> str:
        suffix = json.loads(self.model_bytes)["model"].get("end_of_word_suffix")
        text = super()._decode(ids)
        # The library's byte-level decoder leaves it in (huggingface/tokenizers issue 872).
        return text.replace(suffix, " ").strip() if suffix else text


@dataclasses.dataclass(frozen=True)
class ClipBPE(Subwords):
    """CLIP's byte pairs from their merges: `bpe_simple_vocab_16e6.txt.gz` or a `merges.txt`.

    The ids follow from the order of the merges: bytes, bytes at the end of a word, merges, bos,
    eos. CLIP pads with 0, which is the token "!", not with a reserved id.

    Attributes:
      normalize: Unicode NFC, single spaces and lower case, as Hugging Face's CLIPTokenizer does;
        else the text is as the contract leaves it (open_clip's cleaning is the contract's `clean`).
    """

    normalize: bool = False

    file_name: ClassVar[str] = "tokenizer.merges"

    @functools.cached_property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs, the first to be merged first."""
        data = self.model_bytes
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode().split("\n")
        lines = [line for line in lines[1 : _CLIP_MERGES + 1] if line]
        pairs = [tuple(line.split()) for line in lines]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{self.path} is no list of merges, a pair of tokens a line")
        return pairs

    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        letters = [_letter(b) for b in _visible_bytes()] + [_letter(b) for b in _other_bytes()]
        tokens = letters + [c + "</w>" for c in letters] + ["".join(pair) for pair in self.merges]
        # Two merges may spell one token, which has the later id then; so does open_clip's.
        ids = {token: i for i, token in enumerate(tokens)}
        return ids | {token: len(tokens) + i for i, token in enumerate(_CLIP_SPECIAL)}

    def _make(self) -> Any:
        lib = _library()
        model = lib.models.BPE(
            vocab=self.vocabulary(), merges=self.merges, end_of_word_suffix="</w>"
        )
        made = lib.Tokenizer(model)
        if self.normalize:
            single_spaces = lib.normalizers.Replace(lib.Regex(r"\s+"), " ")
            made.normalizer = lib.normalizers.Sequence(
                [lib.normalizers.NFC(), single_spaces, lib.normalizers.Lowercase()]
            )
        made.pre_tokenizer = lib.pre_tokenizers.Sequence(
            [
                lib.pre_tokenizers.Split(lib.Regex(_CLIP_WORDS), "removed", invert=True),
                lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        made.decoder = lib.decoders.ByteLevel()
        made.add_special_tokens(list(_CLIP_SPECIAL))
        return made

    def _special(self) -> dict[str, int]:
        bos, eos = map(self.id_of, _CLIP_SPECIAL)
        return {"pad_id": 0, "bos_id": bos, "eos_id": eos}

    def _decode(self, ids: list[int]) -> str:
        return super()._decode(ids).replace("</w>", " ").strip()


@dataclasses.dataclass(frozen=True)
class WordPiece(Subwords):
    """BERT's word pieces from a `vocab.txt`, lower-cased and without accents: LiT's tokenizer.

    BERT's [CLS] and [SEP] are bos and eos. LiT has no [SEP]: eos_id=-1.
    """

    file_name: ClassVar[str] = "tokenizer.vocab"

    def _make(self) -> Any:
        lib = _library()
        lines = self.model_bytes.decode().split("\n")
        ids = {token.rstrip("\r"): i for i, token in enumerate(lines) if token}
        if absent := [token for token in _BERT_SPECIAL if token not in ids]:
            raise UserError(f"{self.path} is no vocabulary of word pieces: no {absent[0]}")
        made = lib.Tokenizer(lib.models.WordPiece(vocab=ids, unk_token="[UNK]"))
        made.normalizer = lib.normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
        made.decoder = lib.decoders.WordPiece()
        made.add_special_tokens(list(_BERT_SPECIAL))
        return made

    @property
    def unk_id(self) -> int:
        """What a character without a piece becomes."""
        return self.id_of(_BERT_SPECIAL[3])

    def _special(self) -> dict[str, int]:
        pad, bos, eos, _ = map(self.id_of, _BERT_SPECIAL)
        return {"pad_id": pad, "bos_id": bos, "eos_id": eos}


def _visible_bytes() -> list[int]:
    """Those that CLIP's and GPT-2's vocabularies write as themselves."""
    return [b for b in range(256) if 33 <= b <= 126 or (161 <= b and b != 173)]


def _other_bytes() -> list[int]:
    return sorted(set(range(256)) - set(_visible_bytes()))


def _letter(byte: int) -> str:
    """The character that stands for a byte."""
    others = _other_bytes()
    return chr(256 + others.index(byte)) if byte in others else chr(byte)
