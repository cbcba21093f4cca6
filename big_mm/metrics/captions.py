"""The COCO caption scores from plain text."""

from collections.abc import Sequence

from big_mm.metrics import bleu, cider, ptb, rouge
from big_mm.metrics.statistics import Mean, Statistic


def statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, Statistic]:
    """BLEU-1..4, ROUGE-L and CIDEr(-D) as pycocoevalcap 1.2 gives them for the same captions.

    One prediction and at least one reference an image, over the complete evaluation set: the scores
    of parts do not average to the score of the whole. BLEU and ROUGE-L lie in 0..1, CIDEr in 0..10.
    Drawn again, CIDEr keeps the document frequencies of the complete set.

    Raises:
      ValueError: nothing to score, lengths differ, or an image has no reference.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"caption scores need one prediction an image: got {len(predictions)} predictions and "
            f"references of {len(references)} images"
        )
    if missing := [i for i, captions in enumerate(references) if not captions]:
        raise ValueError(
            f"no reference caption for image {missing[0]} ({len(missing)} such images)"
        )
    tokenised = [ptb.tokenize(p) for p in predictions]
    truths = [[ptb.tokenize(c) for c in captions] for captions in references]
    scores: dict[str, Statistic] = {
        f"bleu{n}": score for n, score in enumerate(bleu.bleu(tokenised, truths), start=1)
    }
    scores["rouge_l"] = Mean.of(rouge.rouge_l(tokenised, truths))
    scores["cider"] = Mean.of(cider.cider_d(tokenised, truths))
    return scores


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`statistics` as numbers."""
    return {name: found.value() for name, found in statistics(predictions, references).items()}
