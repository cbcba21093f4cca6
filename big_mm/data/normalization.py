"""What is done to a text before its tokenizer sees it, as the families of models were trained."""

import html
import string
from collections.abc import Callable
from types import ModuleType
from typing import Literal

from big_mm.spec import UserError

Clean = Literal["none", "web", "web_underscore"]
CLEANS = ("none", "web", "web_underscore")
Canonicalize = bool | Literal["hugging_face"]
CANONICALIZES = (False, True, "hugging_face")
Lowercase = bool | Literal["ascii", "characters", "casefold"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def normalize(text: str, clean: Clean, canonical: Canonicalize, lower: Lowercase) -> str:
    """The steps that are asked for, in the order in which every family takes them.

    Args:
      clean: "web" is `clean_web`; "web_underscore" also makes every "_" a space.
      canonical: `canonicalize`; "hugging_face" takes "_" as punctuation, so that it vanishes.
      lower: True is Python's `lower`; "ascii" changes A to Z only, as `tf.strings.lower` does:
        big_vision's rule; "characters" takes each alone, so that a last sigma is as any other, as
        Hugging Face's libraries do; "casefold" also makes "ß" "ss", as TensorFlow Text does.
    """
    if clean != "none":
        text = clean_web(text)
        if clean == "web_underscore":
            text = " ".join(text.replace("_", " ").split())
    if canonical:
        text = canonicalize(text, underscore="" if canonical == "hugging_face" else " ")
    return _LOWER[lower](text)


def canonicalize(text: str, underscore: str = " ") -> str:
    """SigLIP's normalisation: lower case, "_" as a space, no ASCII punctuation, single spaces."""
    text = text.replace("_", underscore).translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


def clean_web(text: str) -> str:
    """CLIP's cleaning: mojibake mended, HTML entities resolved (twice), single spaces.

    Raises:
      UserError: ftfy, which mends the mojibake, is not installed.
    """
    text = html.unescape(html.unescape(_ftfy().fix_text(text)))
    return " ".join(text.split())


def require(clean: Clean) -> None:
    """Raises the UserError of `clean_web` before any text is there to be cleaned."""
    if clean != "none":
        _ftfy()


_LOWER: dict[Lowercase, Callable[[str], str]] = {
    False: str,
    True: str.lower,
    "ascii": lambda text: text.translate(_ASCII_LOWER),
    "characters": lambda text: "".join(map(str.lower, text)),
    "casefold": str.casefold,
}
LOWERCASES = tuple(_LOWER)


def _ftfy() -> ModuleType:
    try:
        import ftfy
    except ImportError as error:
        raise UserError(
            "CLIP's text cleaning needs ftfy: install big-mm[interop] (or: pip install ftfy)"
        ) from error
    return ftfy
