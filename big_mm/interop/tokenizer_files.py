"""Tokenizers as others' directories hold them: which file, and which ids begin, end and fill a row.

A directory's `tokenizer_config.json` names the special tokens; what of them belongs to a row is
found by asking the tokenizer for an empty text, as the peers themselves do.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import logging
from etils import epath

from big_mm.data import subwords, tokenizers
from big_mm.data.contract import Contract
from big_mm.spec import UserError, spec

CONFIG, SPECIAL_TOKENS = "tokenizer_config.json", "special_tokens_map.json"
# What a directory may hold, the most exact first.
SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
MERGES = ("bpe_simple_vocab_16e6.txt.gz", "merges.txt")
JSON = ("tokenizer.json",)
WORD_PIECES = ("vocab.txt",)


def find(folder: epath.Path, given: str | None, names: Sequence[str]) -> epath.Path | None:
    """The user's file, or the first of `names` in the folder; None if there is neither.

    Raises:
      UserError: the user's file is not there.
    """
    if given is not None:
        if not epath.Path(given).is_file():
            raise UserError(f"no tokenizer file at {given}")
        return epath.Path(given)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def kind(path: epath.Path) -> type[tokenizers.Tokenizer]:
    """The class that reads a file, told by its content.

    Raises:
      UserError: no kind of tokenizer file.
    """
    head = path.read_bytes()[:4096]
    if head.lstrip()[:1] == b"{":
        return subwords.TokenizerJson
    if head[:2] == b"\x1f\x8b" or b"#version" in head.partition(b"\n")[0]:
        return subwords.ClipBPE
    if re.match(rb"\S+\r?\n", head) and b"\x00" not in head:
        return subwords.WordPiece
    return tokenizers.SentencePiece


def row_ids(path: epath.Path) -> dict[str, int]:
    """pad_id, bos_id and eos_id of a `tokenizer.json`, -1 where a row has none.

    Raises:
      UserError: a row has more than one token before or behind its text.
    """
    made = subwords.TokenizerJson(str(path), pad_id=0, bos_id=-1, eos_id=-1)
    config = settings(path.parent)
    names = {role: special_token(path.parent, role) for role in ("pad", "bos", "eos")}
    ids = {role: made.id_of(name) for role, name in names.items() if name is not None}
    before, behind = made.around()
    if config.get("add_bos_token") is not None:
        before = [ids["bos"]] * bool(config["add_bos_token"])
    if config.get("add_eos_token") is not None:
        behind = [ids["eos"]] * bool(config["add_eos_token"])
    if len(before) > 1 or len(behind) > 1:
        raise UserError(
            f"{path} puts {len(before)} tokens before a text and {len(behind)} behind it; "
            "a contract has one bos and one eos"
        )
    return {
        "pad_id": ids.get("pad", -1),
        "bos_id": before[0] if before else -1,
        "eos_id": behind[0] if behind else -1,
    }


def require_bert(path: epath.Path) -> None:
    """Refuses a file from which the rows of a BERT or RoBERTa cannot be made.

    Raises:
      UserError: a SentencePiece model, whose ids XLM-RoBERTa shifts; merges; a vocab.txt that is
        not lower-cased.
    """
    found = kind(path)
    if found is subwords.WordPiece and settings(path.parent).get("do_lower_case") is False:
        raise UserError(f"{path} is of a cased BERT, which is read from its tokenizer.json")
    if found not in (subwords.WordPiece, subwords.TokenizerJson):
        raise UserError(
            f"{path} is a {found.__name__} file; BERT and RoBERTa towers are read with their "
            "tokenizer.json (or BERT's vocab.txt)"
        )


def settings(folder: epath.Path) -> dict[str, Any]:
    """What tokenizer_config.json says, and special_tokens_map.json where that is silent."""
    return _json(folder / SPECIAL_TOKENS) | _json(folder / CONFIG)


def write(folder: epath.Path, contract: Contract) -> None:
    """Writes a contract's tokenizer as the peers read it; nothing if it has none.

    Warns where they cannot: a SentencePiece model of ours has no class of theirs.
    """
    tokenizer = contract.tokenizer
    if tokenizer is None:
        return
    says: dict[str, Any] = {"model_max_length": contract.max_len}
    if isinstance(tokenizer, subwords.ClipBPE):
        (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary()))
        lines = ["#version: 0.2", *(" ".join(pair) for pair in tokenizer.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n")
        says["tokenizer_class"] = "CLIPTokenizer"
    elif isinstance(tokenizer, subwords.Subwords):
        (folder / JSON[0]).write_bytes(tokenizer.with_rows())
        says["tokenizer_class"] = "PreTrainedTokenizerFast"
    else:
        siglip = contract.canonicalize and (tokenizer.bos_id, tokenizer.eos_id) == (-1, 1)
        tokenizer.save(folder / SENTENCEPIECE[0 if siglip else 1])
        says["tokenizer_class"] = "SiglipTokenizer" if siglip else "T5Tokenizer"
        if not siglip:
            logging.warning(
                "tokenizer.model is written, but Hugging Face has no class that makes these rows "
                "of it (bos %d, eos %d)",
                tokenizer.bos_id,
                tokenizer.eos_id,
            )
    for role in ("pad", "bos", "eos"):
        if (number := getattr(tokenizer, f"{role}_id")) >= 0:
            says[f"{role}_token"] = tokenizer.token(number)
    (folder / CONFIG).write_text(json.dumps(says, indent=2, ensure_ascii=False) + "\n")


def special_token(folder: epath.Path, role: str) -> str | None:
    """The token that a directory names for "pad", "bos", ...; None if it names none."""
    value = settings(folder).get(f"{role}_token")
    return value.get("content") if isinstance(value, dict) else value


def token_id(path: epath.Path, token: str) -> int:
    """The id of a token of a `tokenizer.json`, -1 if it has none."""
    return subwords.TokenizerJson(str(path), pad_id=0, bos_id=-1, eos_id=-1).id_of(token)


def named(path: epath.Path, **ids: int) -> ml_collections.ConfigDict:
    """The spec of the tokenizer of a file; `ids` replace the file's own."""
    found = kind(path)
    if found is subwords.TokenizerJson:
        ids = row_ids(path) | ids
    return spec(found, path=str(path), **ids)


def _json(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
