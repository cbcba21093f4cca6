"""How much captions differ from one another. All take tokenised captions (`ptb.tokenize`)."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from big_mm.metrics import bleu, cider, ngrams


def vocabulary(captions: Sequence[str]) -> int:
    """How many different words are said."""
    return len({word for caption in captions for word in caption.split()})


def distinct(captions: Sequence[str], n: int) -> float:
    """distinct-n: different runs of n words over all of them (arXiv:1510.03055, section 5.2).

    It falls with the number of captions: compare equal numbers only. 0 if there is no run.
    """
    counts: collections.Counter = collections.Counter()
    for caption in captions:
        found = ngrams.count(caption, n)
        counts.update({run: c for run, c in found.items() if len(run) == n})
    return len(counts) / max(1, counts.total())


def repeated(captions: Sequence[str], n: int) -> list[float]:
    """The share of each caption's runs of n words that it has said before; 0 if it has no run."""
    shares = []
    for caption in captions:
        counts = [c for run, c in ngrams.count(caption, n).items() if len(run) == n]
        shares.append(1 - len(counts) / sum(counts) if counts else 0.0)
    return shares


def mbleu(captions: Sequence[str], n: int = 4) -> float:
    """mBLEU-n of several captions of one image: the mean BLEU-n of each against the others
    (arXiv:1703.10476, section 4.3); 1 if all are alike.
    """
    scores = [
        bleu.bleu([caption], [[*captions[:i], *captions[i + 1 :]]], n)[-1].value()
        for i, caption in enumerate(captions)
    ]
    return float(np.mean(scores))


def self_cider(captions: Sequence[str], frequency: cider.DocumentFrequency) -> float:
    """Self-CIDEr of several captions of one image, 0 (all alike) to 1 (arXiv:1903.12020).

    -log_m r, where r is the largest eigenvalue's share of the sum of the square roots of the
    eigenvalues of the kernel of pairwise CIDEr. The kernel is CIDEr without length penalty and
    clipping in the paper; here it is CIDEr-D / 10, made symmetric by its mean with its transpose.
    """
    pairs = [[[other] for other in captions] for _ in captions]
    kernel = np.array(
        [
            cider.cider_d([caption] * len(captions), row, frequency) / 10
            for caption, row in zip(captions, pairs, strict=True)
        ]
    )
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((kernel + kernel.T) / 2), 0))
    if not roots.sum() or len(captions) < 2:
        return 0.0
    return float(-math.log(roots.max() / roots.sum()) / math.log(len(captions)))
