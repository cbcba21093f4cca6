"""How right an answer to a question about an image is, by the rules of the benchmarks' programs.

The soft accuracy of VQA is that of https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools
(arXiv:1505.00468, section 3.3); the rules for text in images are those of MMF's m4c_evaluators.py.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal, get_args

from big_mm.spec import UserError

Rule = Literal["vqa", "aokvqa", "textvqa", "stvqa", "anls", "chartqa"]
RULES: tuple[str, ...] = get_args(Rule)

_ENOUGH = 3  # people who said the same make an answer right
_ALIKE = 0.5  # of the longer text, below which ANLS counts nothing
_CLOSE = 0.05  # of a number, within which it is right for ChartQA

_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
# The official table has each of these with one of its apostrophes missing, and no others: "shed" is
# not "she'd". Its entries with a capital never match, for the words are lower-cased before.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""
_CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _CONTRACTED.split()
    for i, letter in enumerate(word)
    if letter == "'"
}
_CONTRACTIONS |= {"somebody'd": "somebodyd"}  # the wrong way round

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
# Meant to be a look-behind, written as a look-ahead that always holds.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # re.UNICODE, passed where the count of replacements belongs


@functools.lru_cache(maxsize=1 << 16)
def normalize(answer: str) -> str:
    """An answer as the official program compares it, where the people disagree.

    Lower case, single spaces, no articles, number words up to ten as digits, contractions with
    their apostrophe. Quirks that belong to the published numbers:

    - A punctuation sign becomes a space, but vanishes if a blank stands beside it anywhere in the
      answer; and all signs vanish if a comma between digits is anywhere in it.
    - A period stays before a digit only; of the others the first 32 go.
    - "none" is 0; "somebody'd" loses its apostrophe.
    """
    text = answer
    digits = _DIGITS_AROUND_COMMA.search(answer) is not None
    for sign in _PUNCTUATION:
        beside_a_blank = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if digits or beside_a_blank else " ")
    text = _PERIOD.sub("", text, count=_PERIODS)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


@functools.lru_cache(maxsize=1 << 16)
def normalize_read(answer: str) -> str:
    """An answer as TextVQA's and ST-VQA's programs compare it, always: as `normalize`, but lower
    case from the start, commas and question marks gone, and a blank before "'s".
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalize(_strip(text.strip()))


def accuracy(answer: str, people: Sequence[str], rule: Rule = "vqa") -> float:
    """How right an answer is, given those of people (usually ten in VQA): 0 to 1.

    Args:
      rule: one of
        "vqa": the mean over the people of min(matches among the others / 3, 1); `normalize` is
          applied to all answers if the people's differ, to none if they agree (so that "Yes" is
          wrong where all said "yes"). VQAv2, OK-VQA, VizWiz.
        "aokvqa": min(matches / 3, 1) over all people, nothing normalised, as A-OKVQA's program has
          it (arXiv:2206.01718).
        "textvqa": as "vqa", with `normalize_read` applied to all answers always
          (arXiv:1904.08920).
        "stvqa": 1 if the answer is any of the people's after `normalize_read`.
        "anls": the largest `similarity` to any of the people's answers (ST-VQA, DocVQA, InfoVQA).
        "chartqa": 1 if it is `relaxed` equal to any of them.

    Raises:
      UserError: nobody answered.
    """
    if not people:
        raise UserError("there are no people's answers to compare with")
    if rule == "aokvqa":
        return min(1.0, people.count(answer) / _ENOUGH)
    if rule == "anls":
        return max(similarity(answer, other) for other in people)
    if rule == "chartqa":
        return float(any(relaxed(answer, other) for other in people))
    if rule == "vqa":
        answer, others = _strip(answer), [_strip(other) for other in people]
        if len(set(others)) > 1:
            answer, others = normalize(answer), [normalize(other) for other in others]
    else:
        answer, others = normalize_read(answer), [normalize_read(other) for other in people]
        if rule == "stvqa":
            return float(answer in others)
    matches = others.count(answer)
    left = (min(1.0, (matches - (other == answer)) / _ENOUGH) for other in others)
    return sum(left) / len(others)


def similarity(answer: str, truth: str) -> float:
    """1 - edit distance / length of the longer, or 0 if that is below a half, in lower case and
    without blanks at the ends (average normalised Levenshtein similarity, arXiv:1905.13648,
    equation 1). Two empty texts are equal.
    """
    first, second = answer.lower().strip(), truth.lower().strip()
    longer = max(len(first), len(second))
    if not longer:
        return 1.0
    found = 1 - edit_distance(first, second) / longer
    return found if found >= _ALIKE else 0.0


def edit_distance(first: str, second: str) -> int:
    """Characters to insert, delete or exchange to make one of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != other))
    return row[-1]


def relaxed(answer: str, truth: str) -> bool:
    """Equal up to 5 % where both are numbers (a per cent sign divides by 100) and the truth is not
    zero; else equal but for the case (ChartQA, arXiv:2203.10244, section 5.1; pix2struct's program,
    for which "inf" and "1e3" are numbers too).
    """
    ours, theirs = _number(answer), _number(truth)
    if ours is not None and theirs:
        return abs(ours - theirs) / abs(theirs) <= _CLOSE
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
