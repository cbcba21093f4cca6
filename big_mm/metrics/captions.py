"""The COCO caption scores from plain text."""

from collections.abc import Sequence

from big_mm.metrics import bleu, cider, ptb, rouge


def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1..4, ROUGE-L and CIDEr(-D) as pycocoevalcap 1.2 gives them for the same captions.

    One prediction and at least one reference an image, over the complete evaluation set: the scores
    of parts do not average to the score of the whole. BLEU and ROUGE-L lie in 0..1, CIDEr in 0..10.

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
    scores = {f"bleu{n}": float(s) for n, s in enumerate(bleu.bleu(tokenised, truths), start=1)}
    scores["rouge_l"] = float(rouge.rouge_l(tokenised, truths).mean())
    scores["cider"] = float(cider.cider_d(tokenised, truths).mean())
    return scores
