"""Compares the caption tokenizer with the Java program that it stands for, on made-up captions.

    pip install pycocoevalcap==1.2                                       # and Java
    python benchmarks/caption_tokens.py --count 20000 --seed 1 --json out.json

Each family of captions aims at other rules: captions as people write them, with letters lost,
swapped and added; every kind of word next to every sign; random strings over small alphabets
(apostrophes, numbers, tags, entities, abbreviations, spaces); all characters of the Basic
Multilingual Plane. Prints for each how many captions are tokenised differently, the shortest of
them, and captions a second of both. Exits with status 1 if there is any difference.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from big_mm.metrics import ptb

WORDS = """a man riding on the back of dog cat dog's isn't don't can't won't couldn't I'm you're
they've we'll he'd it's O'Brien o'clock rock'n'roll 'n' y'all c'mon ma'am d'oh l'amour cannot gonna
gotta wanna gimme lemme 'tis 'twas 'em 'cause more'n Mr. Mrs. Dr. St. U.S. U.K. a.m. p.m. e.g. i.e.
etc. vs. Jr. Inc. Co. Ltd. No. no. Fig. Jan. Sept. Calif. Ave. Ph.D. 1 2 10 1,000 3.14 .5 -5 1/2
12:30 10-20 2nd 1990s '90s 50% $5 US$5 #1 #hashtag @user & * + = / \\ | ~ ^ _ < > black-and-white
x-ray and/or AT&T R&B C++ C# F# .NET Yahoo! E! http://www.example.com/path?x=1 www.example.com
example.com foo.org/bar user@example.com <user@example.com> photo.jpg <b> </b> <br/> <img src="x">
&amp; &lt; &gt; &quot; &nbsp; &#39; &apos; &copy; :) :( ;-) :D =) ^_^ -_- ( ) [ ] { } "quoted"
``latex'' ‘curly’ “curly” «guillemets» – — - -- ... …. , . ; : ! ? !! ?! 's 't n't 've 'll café
日本 한국 русский עברית العربية हिन्दी ไทย 🎉 👨‍👩‍👧 ❤️ ★ € £5 ¢ ½ ² © ® 5'10" 415-555-1234
(415) 555-1234 w/ @home S.F. D.C. A. B. z. The He It A I 'er ol' ne'er Hallowe'en Xi'an""".split()
SENTENCES = (
    "A man with a red helmet on a small moped on a dirt road.",
    "two people are sitting on a bench next to a dog's bowl; it isn't full",
    "A stop sign at 5th Ave. and St. John's Blvd.",
    'The bus #42 says "Not in Service".',
    "A man in a T-shirt eats a half-eaten sandwich w/ chips.",
    "A sign that reads: 10:30 a.m. to 5 p.m.",
    "The photo shows $5.00 bills, 50% off, at 1/2 price.",
)
SIGNS = list("""!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~""")
OTHERS = list("’‘“”–—…·•½€£¥¢°²é日本🎉★´¿«»‹›‚„\u00ad\u200b\u00a0\u2009\u3000\t")
ALPHABETS = {
    "letters": "abdnotsx.'-_& ",
    "numbers": "0123456789.,-/:() $%'",
    "signs": "aA1.-'&;@/<>:=()[]_*#!?\" ",
    "apostrophes": "nN'’tTaesdlm `‘. ",
    "compounds": "abcABC.&+-/\\$#, 12",
    "tags": "aZ1.@<>/=\"' -!?x:",
}
ENTITIES = "amp lt gt quot apos nbsp mdash ndash eacute uuml copy #39 #x27 HT QL md AMP".split()
ABBREVIATIONS = "mr ms dr st inc co no fig p jan u.s ph.d a z etc vs calif La Tex Mfg pty AT&T OK 3"
ENDS = (".", ". ", ".,", ".-", ". The ", ". A ", ". Mr. ", ". 5 ", ".x ", "..", ".)", ".'s ", "!")
SPACES = (" ", "  ", "\t", "\u00a0", "\u3000", "\u200b", "&nbsp;", "a", "b.", "5", "no.", "The ")
# Not the characters at which Java ends a line.
PLANE = [
    chr(c)
    for c in range(1, 0x10000)
    if not 0xD800 <= c < 0xE000 and chr(c) not in "\n\r\x0b\x0c\x85\u2028\u2029"
]


def families(rng: random.Random) -> dict[str, Callable[[], str]]:
    """A maker of captions for each family."""

    def some(choices: list[str] | tuple[str, ...] | str, most: int) -> str:
        return "".join(rng.choice(choices) for _ in range(rng.randint(1, most)))

    def words() -> str:
        ends = ([" "], [""], SIGNS, OTHERS)
        joined = (
            rng.choice((w, w, w.upper(), w.capitalize()))
            + rng.choice(rng.choices(ends, (8, 1, 3, 1))[0])
            for w in rng.choices(WORDS, k=rng.randint(1, 14))
        )
        return "".join(joined)

    def mutated(text: str) -> str:
        letters = list(text)
        for _ in range(rng.randint(0, 4)):
            place = rng.randrange(len(letters) + 1)
            letters[place : place + rng.randint(0, 1)] = rng.choice((*SIGNS, *OTHERS, " ", "n", ""))
        return "".join(letters)

    def abbreviations() -> str:
        names = ABBREVIATIONS.split()
        return "".join(
            rng.choice((w, w.capitalize(), w.upper())) + rng.choice(ENDS)
            for w in rng.choices(names, k=rng.randint(1, 6))
        )

    entities = [f"&{e};" for e in ENTITIES] + [f"&{e}" for e in ENTITIES] + list("adonst'. ")
    made = {
        "sentences": lambda: mutated(rng.choice(SENTENCES)),
        "words": words,
        "mutated words": lambda: mutated(words()),
        "abbreviations": abbreviations,
        "entities": lambda: some(entities, 8),
        "spaces": lambda: some(SPACES, 12),
        "characters": lambda: some(PLANE, 20),
        "characters in text": lambda: some(["a", "b1", ".", "'", " ", "-", rng.choice(PLANE)], 20),
    }
    return made | {
        name: lambda alphabet=alphabet: some(alphabet, 24) for name, alphabet in ALPHABETS.items()
    }


def official(captions: list[str]) -> list[str]:
    """What pycocoevalcap 1.2 makes of them, without its temporary file in its own folder."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or package.submodule_search_locations is None:
        sys.exit("pycocoevalcap is not installed: pip install pycocoevalcap==1.2")
    folder = pathlib.Path(package.submodule_search_locations[0]) / "tokenizer"
    program = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.NamedTemporaryFile("wb") as file:
        file.write("\n".join(captions).encode())
        file.flush()
        answer = subprocess.run(
            ["java", "-cp", str(next(folder.glob("*.jar"))), *program, file.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            check=True,
        )
    lines = answer.stdout.decode().split("\n")[: len(captions)]
    return [" ".join(w for w in x.rstrip().split(" ") if w not in ptb.PUNCTUATION) for x in lines]


def main() -> int:
    """Returns 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000, help="captions of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=5, help="differences shown of each family")
    parser.add_argument("--json", metavar="FILE", help="write the table here")
    arguments = parser.parse_args()
    table = []
    for name, make in families(random.Random(arguments.seed)).items():
        captions = [make() for _ in range(arguments.count)]
        times = [time.perf_counter()]
        theirs = official(captions)
        times.append(time.perf_counter())
        ours = ptb.tokenize_all(captions)
        times.append(time.perf_counter())
        differ = [t for t in zip(captions, ours, theirs, strict=True) if t[1] != t[2]]
        speed = [round(len(captions) / (b - a)) for a, b in zip(times, times[1:], strict=False)]
        table.append({"family": name, "differ": len(differ), "java": speed[0], "python": speed[1]})
        print(f"{name:20} {len(differ):6} differ {speed[0]:8}/s Java {speed[1]:8}/s Python")
        for caption, mine, java in sorted(differ, key=lambda t: len(t[0]))[: arguments.show]:
            print(f"    {caption!r}: {mine!r}, Java {java!r}")
    if arguments.json:
        rows = {"count": arguments.count, "seed": arguments.seed, "families": table}
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["differ"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
