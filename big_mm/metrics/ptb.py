"""The tokenizer of the official caption scorer, without Java.

pycocoevalcap 1.2 tokenises captions with Stanford CoreNLP 3.4.1's PTBTokenizer (`-preserveLines
-lowerCase`) and then drops a list of punctuation tokens. BLEU, ROUGE-L and CIDEr depend on that
tokenisation, so it is part of the metric. The rules below were written from the Java program's
behaviour, observed from outside: at each position the longest token wins, the earlier rule on ties.
`tests/metrics/golden` holds what the Java program answered.

Surprises that are kept because the official scores contain them:
- brackets become `-lrb-`, `-rrb-`, `-lsb-`, ... and stay: the official list of punctuation has them
  in capitals, which never occur after lower-casing; `?!`, `!!`, `/`, `&`, `*` stay too;
- an abbreviation, a single letter or an acronym keeps its full stop ("st.", "c.", "p.m."), any
  other word loses it; "dog.cat" is one word;
- emoji vanish and part what is beside them; `£` is `#`, `€` is `$`, `¢` is `cents`, `½` is `1/2`;
- "1 1/2" and telephone numbers are one token with a no-break space inside. ROUGE splits captions at
  plain spaces, BLEU and CIDEr at any white space, which matters only for these.

Differs from Java, as far as is known, in: URLs and e-mail addresses with unusual characters, HTML
entities beyond the common ones, rare emoticons, scripts younger than Unicode 3 and characters
beyond the Basic Multilingual Plane (dropped here), and a few collisions such as "more'n." or a
typographic apostrophe inside a word ("c’mon", "ol’dog"). A line separator inside a caption
(U+2028, carriage return) makes the official pipeline score all later captions against their
neighbours' references; here it counts as a space.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]
    + [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Words whose full stop belongs to them, in lower case or capitalised.
_ABBREVIATIONS = """
  al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm
  adj adm adv ala apr aug ave bhd cie col cos cpl dak dec det drs ens esq est etc ext feb fla fri
  gen gov hon inc ind jan jos jul jun kan ltd maj mar mfg mme mon mrs mtg neb nev nov oct pfc plc
  pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel thu tue wed wis wyo
  alex ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl
  invt kans mich minn mlle mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept
  supt tenn tues univ wisc assoc calif comdr lieut messrs profs supts thurs treas ph.d
""".split()
_CAPITALISED_ABBREVIATIONS = "Az La Pa Ark Del Ill Ore Tex Mass Miss Wash".split()
_BEFORE_NUMBER = "art ca fig figs no nos op p pp".split()  # "no. 5", but "no ." in "no. dog"
_APOSTROPHE_WORDS = """
  e'er o'er ne'er whate'er hallowe'en hawai'i li'l ma'am ma'ams s'mores cap'n qu'il shi'ite
  ba'ath sana'a xi'an ol' o'o
""".split()
# A single letter loses its full stop before these: they open a sentence.
_OPENERS = """
  A About According After An As At But He Her Here However If In It Last Many More Now Once One
  Other Our She Since So Some Such That The Their Then There These They This We What When While
  Yet You
""".split()
_JOINED = frozenset(
    "cannot gonna gotta wanna lemme gimme".split()
)  # each is 3 letters and the rest

# Beyond ASCII: what Java keeps as tokens of their own, and what it rewrites.
_SYMBOL = re.compile(
    "[\u00a1\u00a5-\u00a9\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bf\u00d7\u00f7\u037e\u0387\u0589"
    "\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u0600-\u0603\u0606-\u060c\u0614\u061b\u061e\u061f\u066a"
    "\u066d\u06d4\u0700-\u070d\u07f6-\u07f8\u0964\u0965\u0e3f\u0e4f\u1fbd\u2016\u2017\u201a"
    "\u201e-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u20a4"
    "\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129\u212e"
    "\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
)
_REWRITTEN = {
  "\u00ad": "", "\u2026": " ... ", "\u2013": " -- ", "\u2014": " -- ", "\u2015": " -- ",
  "\u201c": " `` ", "\u201d": " '' ", "\u00ab": " `` ", "\u00bb": " '' ", "\u2039": " ` ",
  "\u203a": " ' ", "\u2018": "`", "\u201b": "`", "\u00a2": " cents ", "\u00a3": " # ",
  "\u00a4": " $ ", "\u20a0": " $ ", "\u20ac": " $ ", "\u00bc": "  1/4 ", "\u00bd": "  1/2 ",
  "\u00be": "  3/4 ", "\u2153": "  1/3 ", "\u2154": "  2/3 ",
}  # fmt: skip
_ENTITIES = {
  "&amp;": "&", "&lt;": " < ", "&gt;": " > ", "&quot;": " '' ", "&nbsp;": " ", "&apos;": "'",
  "&mdash;": " -- ",
}  # fmt: skip
_SPACE = re.compile(r"\s")
_ENTITY = re.compile("|".join(_ENTITIES), re.IGNORECASE)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-"})

_MARKS = "".join(chr(c) for c in range(0x300, 0x3100) if unicodedata.category(chr(c))[0] == "M")
_L = rf"(?:[^\W\d_]|[{_MARKS}])"  # a letter or a mark on one
_W = rf"(?:[^\W_]|[{_MARKS}])"  # a letter, mark or digit
_HYPHEN = "[-_\u2010\u2011]"
_APOSTROPHE = "['\u2019]"
_O = rf"[dlnoDLNO]{_APOSTROPHE}{_L}{{2,}}"  # O'Brien, o'clock, d'oh


def _any_of(words: list[str]) -> str:
    """The words, longest first, also capitalised, with either apostrophe."""
    forms = {form for word in words for form in (word, word.capitalize(), word.title())}
    escaped = (re.escape(form).replace("'", _APOSTROPHE) for form in forms)
    return "(?:" + "|".join(sorted(escaped, key=len, reverse=True)) + ")"


_NEGATED = re.compile(rf"(?i){_L}+?(?=n['\u2019`]t)")  # what comes before "n't"
_WORD_RULES = [
    rf"(?i:n['\u2019`]t){_L}*",
    # words, "dog.cat" and "dog!cat" too, and things with hyphens or underscores
    rf"(?:{_L}{_W}*(?:[.!?]{_L}{_W}*)*|{_W}+)(?:{_HYPHEN}{_W}+)*(?:\.(?=[,;:]))?",
    rf"(?:{_O}|{_W}[.,]?)(?:{_W}|[.,])*(?:-(?:{_O}|{_W}+))+",  # 12,000-foot, three-o'clock
    rf"{_W}+(?:-{_W}+)*-[A-Za-z](?:\.[A-Za-z])+\.",  # non-U.S.
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",  # and/or, 1/2-inch
    # numbers
    r"\d+(?:[.,:]\d+)*",
    r"\d+[ -]\d+/\d+",  # 1 1/2
    r"\d{3} \d{3}[ -]\d{4}",  # a telephone number
    # a full stop that belongs to its word
    rf"{_any_of(_ABBREVIATIONS)}\.(?:-{_W}+)*|(?:{'|'.join(_CAPITALISED_ABBREVIATIONS)})\.",
    rf"{_any_of(_BEFORE_NUMBER)}\.(?= ?\d)",
    rf"[A-Za-z](?:\.[A-Za-z])+\.(?:-{_W}+)*|[A-Za-z]\.-{_W}+",
    rf"[A-Za-z]\.(?! +(?:{'|'.join(_OPENERS)})(?: |$))",
    # an apostrophe that belongs to its word
    _any_of(_APOSTROPHE_WORDS),
    _O,
    rf"[jldyJLDY]{_APOSTROPHE}(?={_L})|[cC]'mon",
    # names
    r"[A-Z]+(?:[&+][A-Z]+)+",
    r"[cC]\+\+|[cCfF]#",
    r"[A-Z]{1,2}\$",
    r"https?://[^\s<>\"|()]*[^\s<>\"|.!?(){},;-]",
    r"(?i:www)\.(?:[\w-]+\.)+[A-Za-z]{2,4}",
    rf"(?:{_L}{_W}*\.)+(?:com|net|org|edu)/[^\s<>\"|()]*[^\s<>\"|.!?(){{}},;-]{{2}}",
    rf"{_W}[\w.+/-]*@[^\s\"<>().]+(?:\.[^\s\"<>().]+)*",
]
_OTHER_RULES = [
    rf"(?i:'(?:ll|re|ve|[sdm])(?!{_L})|\u2019(?:ll|re|ve|[sdm]))",
    rf"(?i:{_APOSTROPHE}n{_APOSTROPHE})",  # rock 'n' roll
    rf"(?i:{_APOSTROPHE}(?:em|till?|cause|n(?= |$)))",
    r"(?i:'t(?=is|was))",
    rf"{_APOSTROPHE}(?:\d\d(?= |$)|[2-9]0s)",  # the '90s
    r"[-+]?(?:\d+|[.,:]\d+)(?:[.,:]\d+)*",
    r"\(\d{3}\) ?\d{3}[- ]\d{4}",
    r"</?[A-Za-z!?][^<>]*>",
    rf"[:;=]['-]?[()DPp\[\]{{|](?!{_W})|[-^>]_[-^<]",
    r"@[A-Za-z_]\w*|&#\d+;",
    rf"#{_L}+",
    r"-{2,}|[!?]+|_+|\*+|#+|@+|<<|>>|''|``",
    r".",
]
_FAST = re.compile(r"[A-Za-z]+(?=[ ,;]|$)")
_UNIFORM = _BRACKETS | {
    "---": "--",
    "----": "--",
    '"': "''",
    "\u2019": "'",
    "\u2010": "-",
    "\u2011": "-",
}
_MORE = re.compile(rf"{_APOSTROPHE}{_L}")
_CLITIC = re.compile("(?i:\u2019(?:ll|re|ve|[sdm])|n\u2019t\\w*)")
_WORD_START = re.compile(_W)
_WORD_RULES = [re.compile(rule) for rule in _WORD_RULES]
_OTHER_RULES = [re.compile(rule) for rule in _OTHER_RULES]


def tokenize(text: str) -> str:
    """Lower-case tokens of one caption, without punctuation, joined by single spaces.

    Line breaks count as spaces. Equals pycocoevalcap 1.2's tokenisation on what captions hold.
    """
    return " ".join(token for token in _tokens(_prepared(text)) if token not in PUNCTUATION)


def _prepared(text: str) -> str:
    """The text with its rare characters in the few forms that the rules know."""
    text = _SPACE.sub(" ", text)
    text = _ENTITY.sub(lambda m: _ENTITIES[m[0].lower()], text)
    if not text.isascii():
        text = "".join(c if c < "\x80" else _character(c) for c in text)
    return text.strip()


@functools.cache
def _character(c: str) -> str:
    if c in _REWRITTEN:
        return _REWRITTEN[c]
    if _SYMBOL.match(c):
        return f" {c} "
    if c in "\u2019\u2010\u2011":
        return c
    category = unicodedata.category(c)
    mark = category in ("Mn", "Mc") and c < "\u3100"
    return c if (mark or category[0] == "L" or category == "Nd") and c <= "\uffff" else " "


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        match = _FAST.match(text, position) or _longest(text, position)
        token, position = match[0], match.end()
        if token.lower() in _JOINED and not _MORE.match(text, position):
            yield token[:3].lower()
            yield token[3:].lower()
        else:
            yield _spelled(token)


def _longest(text: str, position: int) -> re.Match[str]:
    if not _WORD_START.match(text, position):
        rules = _OTHER_RULES
    elif negated := _NEGATED.match(text, position):
        return negated
    else:
        rules = _WORD_RULES
    matches = (rule.match(text, position) for rule in rules)
    return max((m for m in matches if m), key=lambda m: m.end())  # the first of the longest


def _spelled(token: str) -> str:
    """The token as Java prints it, in lower case."""
    if token in _UNIFORM:
        return _UNIFORM[token]
    if _CLITIC.fullmatch(token):
        token = token.replace("\u2019", "'")
    return token.translate(_ROUND).replace(" ", "\u00a0").lower()
