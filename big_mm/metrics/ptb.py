"""The tokenizer of the official caption scorer, without Java.

pycocoevalcap 1.2 tokenises captions with Stanford CoreNLP 3.4.1's PTBTokenizer (`-preserveLines
-lowerCase`) and then drops a list of punctuation tokens. BLEU, ROUGE-L and CIDEr depend on that
tokenisation, so it is part of the metric. The rules below were written from the Java program's
behaviour, observed from outside: at each position the rule that sees furthest wins, what it looks
ahead at included, and the earlier rule on ties. `tests/metrics/golden` holds what the Java program
answered, `benchmarks/caption_tokens.py` asks it again about as many captions as one likes.

Surprises that are kept because the official scores contain them:
- brackets become `-lrb-`, `-rrb-`, `-lsb-`, ... and stay: the official list of punctuation has them
  in capitals, which never occur after lower-casing; `?!`, `!!`, `/`, `&`, `*` stay too;
- an abbreviation, a single letter or an acronym keeps its full stop ("st.", "c.", "p.m."), any
  other word loses it; "dog.cat" is one word;
- emoji vanish and part what is beside them; `£` is `#`, `€` is `$`, `¢` is `cents`, `½` is `1/2`;
- "1 1/2" and telephone numbers are one token with a no-break space inside. ROUGE splits captions at
  plain spaces, BLEU and CIDEr at any white space, which matters only for these.

A line separator inside a caption (U+2028, carriage return) makes the official pipeline score all
later captions against their neighbours' references; here it counts as a space. Java before its
release 18 reads the captions in the locale's encoding: what is equalled is a UTF-8 locale.
"""

import re
from collections.abc import Iterator, Sequence

from big_mm.metrics import ptb_characters

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"]
    + [".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# ---- parts of the rules --------------------------------------------------------------------------

_LETTERS = ptb_characters.members(ptb_characters.LETTERS)
_MARKS = ptb_characters.members(ptb_characters.MARKS)
_DIGITS = ptb_characters.members(ptb_characters.DIGITS)
_ACCENTED = "&[aeiouAEIOU](?i:acute|grave|uml);"
_A = f"[{_LETTERS}]"
_D = f"[{_DIGITS}]"
_AD = f"[{_LETTERS}{_DIGITS}]"
_L = f"(?:[{_LETTERS}{_MARKS}\u00ad]|{_ACCENTED})"  # a letter, or a mark on one
_LD = f"(?:[{_LETTERS}{_MARKS}{_DIGITS}\u00ad]|{_ACCENTED})"
_WORD = f"{_L}{_LD}*(?:[.!?]{_L}{_LD}*)*"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_APOSTROPHE = "(?:['\u0092\u2019]|(?i:&apos;))"
_APOSTROPHES = "(?:['\u0092\u2019`\u0091\u2018\u201b]|(?i:&apos;))"
_SPACE = "[ \\t\u00a0\u2000-\u200a\u3000]"
_BREAK = f"(?:{_SPACE}|\\n)"
_CLITIC = f"{_APOSTROPHE}(?i:[msd]|re|ve|ll)"
_NOT = f"[nN]{_APOSTROPHES}[tT]"
_PART = f"(?:[dDoOlL]{_APOSTROPHES}{_AD})?{_AD}+"
_FRACTION = f"{_D}{{1,4}}(?:\\\\?/|\u2044){_D}{{1,4}}"
_ACRONYM = "[A-Za-z](?:\\.[A-Za-z])+\\."
_COMPOUND = f"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}|[A-Za-z0-9\u00ad]+))+"
_SUMS = "[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+"
_PAUSE = "[,;:\u3001]"
_MIXED = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_LINK = '[^ \\t\\n\\f\\r"<>|()]'
_LINK_END = '[^ \\t\\n\\f\\r"<>|.!?(){},-]'
_HOST = '[^ \\t\\n\\f\\r"<>|.!?(){},]'
_BARE_HOST = "[^ \\t\\n\\f\\r\"`'<>|.!?(){},-_$]"
_PATH = f"(?:/{_LINK}+{_LINK_END})?"
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"


def _any_of(words: str) -> str:
    """One of the words, in any case; the longest that is there."""
    escaped = map(re.escape, sorted(words.split(), key=len, reverse=True))
    return f"(?i:{'|'.join(escaped)})"


# Words whose full stop belongs to them, in any case. The second kind looks two characters ahead.
_TITLES = _any_of("""
  cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mme
  mrs pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs insp invt
  mlle msgr natl pres prof reps sens supt assoc comdr lieut messrs profs supts treas
""")
_PLACES_AND_DATES = _any_of("""
  al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla fri
  inc ind jan jul jun kan ltd mar mon neb nev nov oct plc sep seq sys tel thu tue wed wis wyo ariz
  assn bldg blvd bros colo conn corp intl kans mich minn mont okla penn sept tenn tues univ wisc
  calif thurs ph.d
""")
# Not in capitals throughout, and only with a capital first.
_MAKERS, _COMPANIES = "[mM](?:fg|tg)", "[pP](?:pte|pty|te|ty|tes|tys)"
_STATES = "A(?i:z|rk)|[LP](?i:a)|D(?i:el)|I(?i:ll)|M(?i:[ai]ss)|O(?i:re)|T(?i:ex)|W(?i:ash)"
_DATED = f"(?:{_PLACES_AND_DATES}|{_COMPANIES}|{_STATES})"
_BEFORE_NUMBER = _any_of("art ca fig figs no nos op p pp prop")  # "no. 5", but "no ." in "no. dog"
# A single letter loses its full stop before these: they open a sentence, on this line or the next.
_OPENERS = "|".join(
    f"{word[0]}(?i:{word[1:]})"
    for word in """
  A About According Additionally After An As At But He Her Here However If In It Last Many More Now
  Once One Other Our She Since So Some Such That The Their Then There These They This We What When
  While Yet You
""".split()
)
_EXTENSIONS = _any_of("""
  bat bmp bz2 c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php
  pl png ppt ps py sql tar txt wav x xml zip 3gp wma wmv avi flv mp4
""")

_ADDRESS = (
    '(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \\t\\n\\f\\r"<>|()\u00a0{}]*@'
    '(?:[^ \\t\\n\\f\\r"<>|(){}.\u00a0]+\\.)*[^ \\t\\n\\f\\r"<>|(){}.\u00a0]+(?:(?i:&gt;)|>)?'
)
_TAG = (
    f"<(?:[!?][A-Za-z-][^>\\n]*|/{_NAME}"
    f"|{_NAME}(?:[ ]+{_NAME}(?:[ ]*=[ ]*(?:'[^'\\n]*'|\"[^\"\\n]*\"))?)*[ ]*/?)[ ]*>"
)
_NUMBER = f"[-+]?(?:{_D}*(?:[.:,\u00ad\u066b\u066c]{_D}+)+|{_D}+)"
_DASH = "[- \u00a0]"
_TELEPHONE = (
    f"(?:\\([0-9]{{2,3}}\\)[ \u00a0]?|(?:\\+\\+?)?(?:[0-9]{{2,4}}{_DASH})?[0-9]{{2,4}}{_DASH})"
    f"[0-9]{{3,4}}{_DASH}?[0-9]{{3,5}}"
)

# What may stand at a place, what must follow it if anything, and how it is spelled.
_WORD_RULES = [
    ("(?i:cannot|gonna|gotta|lemme|gimme|wanna)", "", "split"),
    (_WORD, _CLITIC, "word"),
    ("[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", _NOT, "word"),
    (_WORD, "", "word"),
    (f"(?:[lLdDjJ]|[oO][lL]){_APOSTROPHE}", "", ""),
    (f"[A-HJ-XZn]{_APOSTROPHES}{_A}{{2,}}", "", ""),
    (f"{_A}+[aeiouyAEIOUY]{_APOSTROPHES}[aeiouA-Z]{_A}*", "", ""),
    ("(?i:c'mon|e'er|s'mores|ev'ry|li'l|nat'l|nor'easter|cont'd)", "", ""),
    (f"[oO]{_APOSTROPHES}[oO]", "", ""),
    (f"[yY]{_APOSTROPHE}", _A, ""),
    (_NOT, "", "clitic"),
    (f"(?i:https?)://(?:(?![{{}}]){_LINK})+{_LINK_END}", "", ""),
    (f"(?i:www)\\.(?:{_HOST}+\\.)+[a-zA-Z]{{2,4}}{_PATH}", "", ""),
    (f"(?:{_BARE_HOST}+\\.)+(?i:com|net|org|edu){_PATH}", "", ""),
    (_ADDRESS, "", ""),
    (f"{_D}{{1,2}}[-/]{_D}{{1,2}}[-/]{_D}{{2,4}}", "", ""),
    (_NUMBER, "", "word"),
    (f"(?:{_D}{{1,4}}{_DASH})?{_D}{{1,4}}(?:\\\\?/|\u2044){_D}{{1,4}}", "", ""),
    (f"{_MIXED}(?:\\\\?/{_MIXED}){{1,2}}", "", ""),
    ("[A-Z]+\\$", "", ""),
    (f"(?:{_TITLES}|{_MAKERS})\\.", "", ""),
    (f"{_DATED}\\.", "[\\s\\S]{2}", ""),
    (f"{_DATED}\\.", "", ""),
    (f"{_BEFORE_NUMBER}\\.", f"{_BREAK}?{_D}", ""),
    (_ACRONYM, "", ""),
    (f"[A-Za-z]\\.(?!{_BREAK}+(?:{_OPENERS}|M[rRsS]\\.|{_TAG}){_BREAK})", "", ""),
    (f"{_LD}+(?:\\.{_LD}+)*\\.{_EXTENSIONS}", f"{_BREAK}|[.?!,]", ""),
    (_TELEPHONE, "", ""),
    ("[cC]\\+\\+|[cCfF]#|x_[-^x=~<>']", "", ""),
    (_SUMS, "", "ampersand"),
    (f"{_SUMS}\\.", _PAUSE, "ampersand"),
    (f"{_PART}(?:{_HYPHEN}{_PART})*", "", "word"),
    (_COMPOUND, "", "word"),
    (f"{_COMPOUND}\\.", _PAUSE, "word"),
    (f"{_PART}(?:{_HYPHEN}{_PART})*\\.", _PAUSE, "word"),
    (f"{_WORD}\\.", _PAUSE, "word"),
]
_OTHER_RULES = [
    (_TAG, "", "tag"),
    ("(?i:&(?:MD|mdash|ndash);)|[\u0096\u0097\u2013-\u2015]", "", "dash"),
    ("(?i:&(?:amp|lt|gt);)", "", ""),
    (f"(?:{_SPACE}|(?i:&nbsp;))+", "", "unknown"),
    ("(?i:&(?:quot|apos);)", "", "quotes"),
    ("(?i:&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);)", "", ""),
    (f"{_APOSTROPHE}[nN]{_APOSTROPHE}", "", ""),
    ("'[nN]", "[ \\t\u00a0\\n]|\\Z", ""),
    ("(?:[\u0092\u2019]|(?i:&apos;))[nN]", "", ""),
    (f"(?i:{_APOSTROPHE}(?:em|till?|cause))|{_APOSTROPHE}[2-9]0[sS]", "", ""),
    ("'[tT]", "(?i:is|was)", ""),
    (_CLITIC, "[^A-Za-z]|\\Z", "clitic"),
    ("(?:[\u2019\u0092]|(?i:&apos;))(?i:[msd]|re|ve|ll)", "", "clitic"),
    (f"{_APOSTROPHE}[0-9][0-9]", _BREAK, ""),
    (f"(?:{_BARE_HOST}+\\.)+(?i:com|net|org|edu){_PATH}", "", ""),
    (_ADDRESS, "", ""),
    ("@[a-zA-Z_][a-zA-Z_0-9]*", "", ""),
    (f"#{_L}+", "", ""),
    (_NUMBER, "", "word"),
    (
        "[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)",
        "",
        "",
    ),
    (_TELEPHONE, "", ""),
    ("[<>]?[:;=]['o*-]?[()DPdpO|\\\\@\\[\\]{]|:3", "[^A-Za-z0-9]", ""),
    ("[-^x=~<>']_[-^x=~<>']|\\([-^x=~<>'][_.-]?[-^x=~<>']\\)", "", ""),
    ("[`\u2018-\u201f\u2039\u203a\u00ab\u00bb\u0091-\u0094]{1,2}|''|'|\"", "", "quotes"),
    ("\\.{3,}|\\.(?: \\.){2,}", "", "dots"),
    ("-{2,}|[!?]+|_+|\\*+|(?:\\\\\\*)+|#+|@+|<<|>>", "", ""),
]


def _compiled(rules: Sequence[tuple[str, str, str]]) -> list[tuple[re.Pattern[str], str]]:
    """The token is group 1; the whole match is what the rule has seen."""
    return [(re.compile(f"({token})(?:{ahead})"), kind) for token, ahead, kind in rules]


_WORD_PATTERNS, _OTHER_PATTERNS = _compiled(_WORD_RULES), _compiled(_OTHER_RULES)
_WORD_START = re.compile(_LD)
# What needs no other rule: words before a space, and the signs behind them. With "@" in the text an
# address may begin anywhere.
_FAST = re.compile(
    r"[A-Za-z]+(?=[ ;\n]|,[ \n]|\Z)"
    rf"|(?!(?:{_TITLES}|{_MAKERS}|{_DATED}|{_BEFORE_NUMBER})\.)[A-Za-z]{{2,}}(?=\.[ \n])"
    r"|[0-9]+(?=\n| (?![0-9]))|,(?=[ \n])|\.(?=\n| (?!\.))"
)
_FAST_WORD = re.compile(r"[A-Za-z]+(?=[ \n]|\Z)")
_SPLIT = frozenset("cannot gonna gotta wanna lemme gimme".split())  # each is 3 letters and the rest
_ALIKE = {"dots": "...", "dash": "--"}
_REST_OF_WORD = re.compile(r"[^\W\u2e80-\ua4cf\uf900-\ufaff]*")
_SPACES = re.compile(f"(?:{_SPACE}|(?i:&nbsp;))+")
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c\x85\u2028\u2029", " "))
_QUOTES = str.maketrans({
  "\u2018": "`", "\u201b": "`", "\u2019": "'", "\u2039": "`", "\u203a": "'", "\u0091": "`",
  "\u0092": "'", "\u201c": "``", "\u201d": "''", "\u00ab": "``", "\u00bb": "''", "\u0093": "``",
  "\u0094": "''", '"': "''",
})  # fmt: skip
_PRINTED = str.maketrans({"(": "-lrb-", ")": "-rrb-", " ": "\u00a0"})
_WHOLE = {
  "&amp;": "&", "&lt;": "<", "&gt;": ">", "\u2026": "...",
  "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\u0080": "$", "\u20a0": "$", "\u20ac": "$",
  "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
  "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "---": "--", "----": "--",
}  # fmt: skip
_SYMBOL = re.compile(f"[!-~{ptb_characters.members(ptb_characters.SYMBOLS)}]")


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Lower-case tokens of each caption, without punctuation, joined by single spaces.

    Equals what pycocoevalcap 1.2 makes of the same captions in the same order. The order matters,
    if rarely: "vitamin c." keeps its full stop unless the next caption begins with "A ", "The ",
    ..., as if both were of one text. A line break inside a caption counts as a space.
    """
    lines = [caption.translate(_LINE_BREAKS) for caption in captions]
    text, start, found = "\n".join(lines), 0, []
    for line in lines:
        tokens = _tokens(text, start, start + len(line), _FAST if "@" not in line else _FAST_WORD)
        found.append(_without_punctuation(" ".join(filter(None, tokens))))
        start += len(line) + 1
    return found


def _tokens(text: str, position: int, end: int, fast: re.Pattern[str]) -> Iterator[str]:
    """The tokens of a line of the text, which is looked ahead in beyond the line's end."""
    while position < end:
        if text[position] == " ":
            position = _SPACES.match(text, position).end()
        elif match := fast.match(text, position):
            position = match.end()
            token = match[0].lower()
            if token in _SPLIT:
                yield token[:3]
                token = token[3:]
            yield token
        else:
            token, kind = _longest(text, position)
            position += len(token)
            yield from _spelled(token, kind)


def _without_punctuation(line: str) -> str:
    """As pycocoevalcap does it: white space at the end goes too, be it part of the last token."""
    return " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)


def tokenize(text: str) -> str:
    """`tokenize_all` of one caption with nothing behind it that matters."""
    return tokenize_all([text, ""])[0]


def _longest(text: str, position: int) -> tuple[str, str]:
    """What the rule that sees furthest takes, and how it is spelled."""
    word = _WORD_START.match(text, position)
    furthest, token, how = 0, text[position], ""
    for pattern, kind in _WORD_PATTERNS if word else _OTHER_PATTERNS:
        match = pattern.match(text, position)
        if match and match.end() > furthest:  # the first of the longest
            furthest, token, how = match.end(), match[1], kind
    if not furthest and not _SYMBOL.match(token) and token not in _WHOLE:
        how = "unknown"
    return token, how


def _spelled(token: str, kind: str) -> list[str]:
    """The token as Java prints it, in lower case; two for "cannot", none for what it drops."""
    if kind == "unknown":
        return []
    if kind in _ALIKE:
        return [_ALIKE[kind]]
    if kind == "split":
        return [token[:3].lower(), token[3:].lower()]
    if kind == "clitic":
        token = token.replace("&apos;", "'").translate(_QUOTES)
    elif kind == "quotes":
        token = token.replace("&apos;", "'").replace("&quot;", '"').translate(_QUOTES)
    elif kind == "ampersand":
        token = re.sub("(?i)&amp;", "&", token)
    elif kind == "word":
        token = token.replace("\u00ad", "")
    token = _lower(token)
    if kind == "tag":
        return [token.replace(" ", "\u00a0")]
    return [_WHOLE.get(token, token).translate(_PRINTED)]


def _lower(token: str) -> str:
    """Lower case, in which a sigma is final if a letter with a case is before it in its word and
    none behind: Java looks past digits, Python does not.
    """
    if "\u03a3" not in token:
        return token.lower()

    def sigma(match: re.Match[str]) -> str:
        before = _REST_OF_WORD.match(token[: match.start()][::-1])[0]
        behind = _REST_OF_WORD.match(token, match.end())[0]
        final = before.lower() != before.upper() and behind.lower() == behind.upper()
        return "\u03c2" if final else "\u03c3"

    return re.sub("\u03a3", sigma, token).lower()
