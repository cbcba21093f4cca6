"""The input contract of big_vision's models, whose files hold parameters only."""

from typing import Any

from absl import logging
from etils import epath

from big_mm.data import subwords, tokenizers
from big_mm.data.contract import Contract
from big_mm.interop import tokenizer_files as files
from big_mm.interop.inputs import HALF, Inputs, no_tokenizer, warn_of
from big_mm.spec import UserError, choose, spec

FAMILIES = ("siglip", "siglip2", "naflex", "lit", "cappa")
_IDS: dict[str, dict[str, int]] = {
    "siglip": {"pad_id": 1, "bos_id": -1},
    "siglip2": {"bos_id": -1},
    "naflex": {"bos_id": -1},
    "lit": {"eos_id": -1},
    "cappa": {"bos_id": 0},
}


def read(family: str, image_size: int, max_len: int, tokenizer: str | None) -> Inputs:
    """Of a big_vision checkpoint, which holds parameters only: as its configs and demos feed it.

    Args:
      family: one of FAMILIES. "siglip" and "siglip2": `resize(R)|value_range(-1, 1)` and
        `tokenize(eos="sticky", pad_value=1)`, for Gemma `lower|tok(bos="no", eos="sticky")`;
        "naflex": as "siglip2", but pictures by `resize_to_sequence`, which antialiases (and keeps
        fractions of a grey value, which are dropped here); "lit": `bert_tokenize`; "cappa":
        `tokenize(eos="sticky")`, decoded from a 0.
      max_len: places of a row; "cappa" has its 0 in the first of them.
      tokenizer: the SentencePiece model, for "lit" BERT's vocab.txt.

    Raises:
      UserError: an unknown family, or another kind of tokenizer file than the family has.
    """
    choose("family", family, FAMILIES)
    path = files.find(epath.Path(), tokenizer, ())
    if path is None:
        made = no_tokenizer(None, ("--tokenizer",))
    else:
        wanted, _ = _file(family)
        if (found := files.kind(path)) is not wanted:
            raise UserError(
                f"{path} is a {found.__name__} file; {family} models have a {wanted.__name__} one"
            )
        made = files.named(path, **_IDS[family])
    sizes = {"image_size": image_size, "max_len": max_len}
    contract = spec(Contract, tokenizer=made, **sizes, **_rules(family))
    return Inputs(contract, HALF, HALF)


def write(folder: epath.Path, contract: Contract, family: str) -> None:
    """Writes a contract's tokenizer as big_vision reads it: a SentencePiece model, or vocab.txt.

    Warns of the rules that its programs do not have for the family.
    """
    plain = {"resize": "squash", "resize_size": None, "clean": "none", "canonicalize": False}
    warn_of("big_vision", contract, **plain, **_rules(family))
    if (tokenizer := contract.tokenizer) is None:
        return
    wanted, name = _file(family)
    if type(tokenizer) is not wanted:
        logging.warning(
            "big_vision's %s models have a %s tokenizer: this %s is not written",
            family,
            wanted.__name__,
            type(tokenizer).__name__,
        )
        return
    tokenizer.save(folder / name)
    for key, theirs in _IDS[family].items():
        if (ours := getattr(tokenizer, key)) != theirs:
            logging.warning("big_vision has %s=%d, not %d: texts differ", key, theirs, ours)


def _file(family: str) -> tuple[type, str]:
    """The kind of tokenizer of a family, and what its file is called."""
    if family == "lit":
        return subwords.WordPiece, files.WORD_PIECES[0]
    return tokenizers.SentencePiece, files.SENTENCEPIECE[1]


def _rules(family: str) -> dict[str, Any]:
    return {
        "kernel": "tf_triangle" if family == "naflex" else "tf_bilinear",
        "rounding": "big_vision",
        "transparency": "drop",
        "lowercase": "casefold" if family == "lit" else "ascii",
        "padding": "masked" if family in ("lit", "cappa") else "attended",
    }
