"""SentencePiece tokenizer, and the command that trains one from the captions of a data set.

    python -m big_mm.data.tokenizers --shards 'data/train-*.tfrecord' --schema captions=caption \\
        --vocab_size 4096 --out captions.model

Ids 0 to 4 of a model trained here are reserved (pad, bos, eos, unk, cls). They are control pieces,
which no text encodes to: a caption that says "<cls>" becomes ordinary pieces. With byte fallback,
the default, every text has an encoding without unk.
"""

import argparse
import dataclasses
import functools
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import sentencepiece
from etils import epath

from big_mm.data.damage import BadRecord
from big_mm.data.examples import Schema
from big_mm.data.normalization import canonicalize
from big_mm.data.records import Source, TFRecordSource
from big_mm.data.vocabulary import Tokenizer
from big_mm.spec import UserError

RESERVED = ("<pad>", "<s>", "</s>", "<unk>", "<cls>")


@dataclasses.dataclass(frozen=True)
class SentencePiece(Tokenizer):
    """A SentencePiece model file: one trained here, or another's.

    The special ids are the model's own unless they are given. One trained here has RESERVED.
    """

    file_name: ClassVar[str] = "tokenizer.model"

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except RuntimeError as error:
            raise UserError(f"{self.path} is not a SentencePiece model: {error}") from error

    @property
    def vocab_size(self) -> int:
        """The number of pieces."""
        return self._processor.vocab_size()

    @property
    def unk_id(self) -> int:
        """What a character without a piece becomes."""
        return self._processor.unk_id()

    @property
    def cls_id(self) -> int:
        """The id of the control piece "<cls>"; -1 if there is none."""
        found = self._processor.piece_to_id(RESERVED[4])
        return found if self._processor.is_control(found) else -1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without bos and eos; never a reserved id but unk."""
        return self._processor.encode(text)

    def token(self, number: int) -> str:
        """An id's piece."""
        return self._processor.id_to_piece(number)

    def _special(self) -> dict[str, int]:
        model = self._processor
        return {"pad_id": model.pad_id(), "bos_id": model.bos_id(), "eos_id": model.eos_id()}

    def _reserved(self) -> frozenset[int]:
        model = self._processor
        every = range(self.vocab_size)
        return frozenset(i for i in every if model.is_control(i) or model.is_unknown(i))

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


def train(
    captions: Iterable[str],
    vocab_size: int,
    *,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    byte_fallback: bool = True,
    hard_vocab_limit: bool = True,
) -> bytes:
    """Trains a model with the reserved ids; the same captions give the same bytes.

    Args:
      captions: texts, already normalised as the contract will (lower-cased, ...).
      vocab_size: pieces in all, of which 5 are reserved and, with `byte_fallback`, 256 are bytes.
      model_type: "unigram" or "bpe". On a small corpus BPE finds more whole words.
      character_coverage: the share of the text whose characters get pieces; the rest become bytes.
      byte_fallback: whether characters without a piece are spelt in bytes; else they become unk,
        which suits a closed world with a vocabulary below 300.
      hard_vocab_limit: whether fewer pieces than asked for are an error.

    Raises:
      UserError: no text, or a corpus too small for so many pieces (says how many it supports).
    """
    texts = [" ".join(c.split()) for c in captions]
    texts = [t for t in texts if t]
    if not texts:
        raise UserError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            hard_vocab_limit=hard_vocab_limit,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece="<pad>",
            control_symbols=["<cls>"],
            num_threads=4,  # fixed: the sums of the EM steps depend on how they are split
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from error
    return model.getvalue()


def _explain(message: str, vocab_size: int) -> str:
    """SentencePiece's message as what the user can do about it."""
    if found := re.search(r"too high.*<= (\d+)", message):
        return (
            f"the captions support at most {found[1]} pieces, not {vocab_size}: lower vocab_size, "
            "pass hard_vocab_limit=False (--no-hard_vocab_limit), or give more text"
        )
    if found := re.search(r"smaller than required_chars.*vs (\d+)", message):
        return (
            f"vocab_size {vocab_size} is too small: the bytes, the reserved ids and the characters "
            f"of these captions need {found[1]}; raise it or lower character_coverage"
        )
    return f"SentencePiece cannot train on these captions: {message}"


def _captions(source: Source, limit: int) -> Iterator[str]:
    """The captions of at most `limit` records, evenly spaced; damaged records are skipped."""
    stride = max(1, -(-len(source) // limit))
    for i in range(0, len(source), stride):
        try:
            yield from source[i]["captions"]
        except BadRecord:
            continue


def _run(args: argparse.Namespace) -> str:
    """Trains and saves; returns a line that says what was made."""
    if args.text:
        captions = epath.Path(args.text).read_text(encoding="utf-8").splitlines()
    else:
        schema = dataclasses.replace(Schema.parse(args.schema), image=None, key=None, label=None)
        captions = _captions(TFRecordSource(tuple(args.shards), schema), args.max_records)
    if args.canonicalize:
        captions = map(canonicalize, captions)
    elif args.lowercase:
        captions = map(str.lower, captions)
    captions = list(captions)
    model = train(
        captions,
        args.vocab_size,
        model_type=args.model_type,
        character_coverage=args.character_coverage,
        byte_fallback=args.byte_fallback,
        hard_vocab_limit=args.hard_vocab_limit,
    )
    epath.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    epath.Path(args.out).write_bytes(model)
    tokenizer = SentencePiece(args.out)
    sample = tokenizer.encode_batch(captions[:1000])
    return (
        f"{args.out}: {tokenizer.vocab_size} pieces from {len(captions)} captions, "
        f"{sum(map(len, sample)) / len(sample):.1f} tokens a caption and at most "
        f"{max(map(len, sample))} (first {len(sample)})"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m big_mm.data.tokenizers", description="Trains a SentencePiece tokenizer."
    )
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--shards", nargs="+", help="TFRecord shards: paths, globs, {a,b} lists")
    origin.add_argument("--text", help="a text file, one caption a line")
    parser.add_argument("--schema", default="", help="of the shards, e.g. captions=txt")
    parser.add_argument("--vocab_size", type=int, required=True)
    parser.add_argument("--model_type", choices=("unigram", "bpe"), default="unigram")
    parser.add_argument("--character_coverage", type=float, default=0.9995)
    parser.add_argument("--byte_fallback", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--hard_vocab_limit", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--lowercase", action="store_true", help="as the contract does")
    parser.add_argument("--canonicalize", action="store_true", help="as the contract does")
    parser.add_argument("--max_records", type=int, default=2_000_000, help="evenly spaced")
    parser.add_argument("--out", required=True, help="the model file to write")
    args = parser.parse_args(argv)
    try:
        print(_run(args))
    except (UserError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
