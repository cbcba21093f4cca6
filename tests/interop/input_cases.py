"""Pictures and texts that peers and we prepare: made here, so that only answers are stored."""

import numpy as np
from PIL import Image

SIZE, INNER = 8, 10
# Portrait, landscape, smaller than the target, one pixel wide, of odd margins, already right.
SHAPES = ((37, 53), (53, 38), (7, 31), (6, 5), (1, 29), (40, 1), (8, 8), (9, 64), (90, 61))


def picture(height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8: waves, an edge and noise, so that every kernel shows."""
    rng = np.random.default_rng(1000 * height + width)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 100 * np.sin(x / 3 + y / 7 + np.arange(3)[:, None, None])
    waves[:, y + x > (height + width) / 2] += 60
    return np.clip(waves.transpose(1, 2, 0) + rng.normal(0, 15, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def pictures() -> dict[str, Image.Image]:
    """By name: the shapes in RGB, and the other modes that a file can have."""
    made = {f"{h}x{w}": Image.fromarray(picture(h, w)) for h, w in SHAPES}
    base = made["37x53"]
    alpha = Image.fromarray(picture(53, 37)[:, :, 0].T.copy())
    made["grey"] = base.convert("L")
    made["grey_alpha"] = Image.merge("LA", (base.convert("L"), alpha))
    made["alpha"] = Image.merge("RGBA", (*base.split(), alpha))
    made["palette"] = base.quantize(16)
    made["cmyk"] = base.convert("CMYK")
    return made


WORDS = """a an the photo of dog dogs cat cats red blue green big small star circle and in on with
it's don't we'll they've i'd i'm you're running jumping painting drawing street tree house mr. 3 12
2024 hello world two three people person standing sitting next to table food pizza train""".split()

TEXTS = (
    "a photo of a dog",
    "A Photo of TWO dogs, running!",
    "It's the dog's house; don't they've we'll I'D YOU'RE",
    "",
    "   ",
    "  leading and trailing  spaces\tand\ttabs\nand lines ",
    "snake_case_words and _under_ __scores__",
    "punctuation: (a) [b] {c} <d> \"e\" 'f' `g` #h @i &j %k $l ^m *n +o =p ~q |r \\s /t ?!...",
    "entities &amp; &lt;b&gt; &amp;lt;twice&amp;gt; &#39;quoted&#39; &quot;x&quot; &nbsp;space",
    "mojibake: schÃ¶n cafÃ© â€œquotedâ€\x9d itâ€™s",
    "naïve café ÉCOLE Straße ΣΑΣ İstanbul ǅ ﬁne ½ ² Å Å",
    "decomposed cafe\u0301 A\u030a and \u1100\u1161",
    "emoji 🐕 👨‍👩‍👧 ❤️ 🇩🇪 ☃",
    "日本語の写真 中文 한국어 русский",
    "صورة كلب תמונה हिन्दी ไทย",
    "numbers 3 12 2024 1,000.5 3rd x2 ４２",
    "zero\u200bwidth no\u00a0break thin\u2009space ideographic\u3000space soft\u00adhyphen",
    "http://example.com/a?b=c user@example.com #tag",
    "▁already▁marked ▁",
    "'s 't start ''s 'S",
    "word " * 40,
    "a photo of a dog and a cat in the street with a red house and two trees and three people",
    "antidisestablishmentarianism",
)
LENGTH = 16
