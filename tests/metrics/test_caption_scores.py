"""Caption scores equal the official scorer's, whose answers are in golden/ (made by make.py)."""

import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from big_mm.metrics import bleu, captioning, cider, ptb, rouge

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "coco_scores.json").read_text())
TOKENS = json.loads((GOLDEN / "ptb_tokens.json").read_text())
WORDS = st.lists(st.sampled_from("a b c d".split()), max_size=12).map(" ".join)


def tokenised(case):
    found = iter(ptb.tokenize_all([r for refs in case["references"] for r in refs]))
    references = [[next(found) for _ in refs] for refs in case["references"]]
    return ptb.tokenize_all(case["predictions"]), references


def test_the_tokenizer_agrees_with_java():
    lines = [line for line, _ in TOKENS]
    ours = ptb.tokenize_all(lines)
    wrong = [(*pair, mine) for pair, mine in zip(TOKENS, ours, strict=True) if pair[1] != mine]
    assert not wrong and len(TOKENS) > 2000


def test_what_is_behind_a_caption_rarely_matters():
    assert ptb.tokenize_all(["vitamin c.", "A man", "vitamin c.", "a man"])[::2] == [
        "vitamin c",
        "vitamin c.",
    ]
    lines = [line for line, _ in TOKENS]
    alone = [ptb.tokenize(line) for line in lines]
    changed = sum(a != b for a, b in zip(alone, ptb.tokenize_all(lines), strict=True))
    assert 0 < changed < 20


@pytest.mark.parametrize("name", CASES)
def test_scores_equal_the_official_ones(name):
    case = CASES[name]
    scores = captioning.score(case["predictions"], case["references"])
    assert scores == pytest.approx(case["scores"], rel=0, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_each_image_has_the_official_score(name):
    predictions, references = tokenised(CASES[name])
    ours = rouge.rouge_l(predictions, references), cider.cider_d(predictions, references)
    np.testing.assert_allclose(ours, (CASES[name]["rouge_l"], CASES[name]["cider"]), atol=1e-12)


def test_tokens_that_surprise():
    assert ptb.tokenize("A man's dog isn't here.") == "a man 's dog is n't here"
    assert ptb.tokenize("Dr. No, at 3 p.m. (maybe)") == "dr. no at 3 p.m. -lrb- maybe -rrb-"
    assert ptb.tokenize("a black-and-white cat 🎉") == "a black-and-white cat"
    assert ptb.tokenize("1 1/2 cups") == "1\u00a01/2 cups"
    assert ptb.tokenize(" \n.") == ""


def test_a_line_break_counts_as_a_space():
    assert ptb.tokenize("a dog\r\non\u2028a mat") == "a dog on a mat"


@hypothesis.given(st.text())
def test_any_text_has_tokens_without_capitals_or_outer_spaces(text):
    tokens = ptb.tokenize(text)
    assert tokens == tokens.lower() and tokens == tokens.strip(" ") and "  " not in tokens


@hypothesis.given(st.lists(WORDS, min_size=1, max_size=6))
def test_repeating_the_reference_is_the_best_that_can_be_said(truths):
    hypothesis.assume(all(truths))
    references = [[t] for t in truths]
    perfect = bleu.bleu(truths, references, 1)[0].value()
    assert perfect == pytest.approx(1, abs=1e-8)
    assert rouge.rouge_l(truths, references) == pytest.approx(np.ones(len(truths)))
    best = cider.cider_d(truths, references)
    assert (best <= 10 + 1e-9).all()
    assert (cider.cider_d(["d c b a"] * len(truths), references) <= best + 1e-9).all()


def test_cider_of_a_single_image_is_zero_whatever_is_said():
    assert cider.cider_d(["a dog"], [["a dog"]]) == 0


def test_cider_with_a_fixed_document_frequency_scores_each_image_alone():
    predictions, references = tokenised(CASES["captions"])
    frequency = cider.DocumentFrequency.of(references)
    alone = [
        cider.cider_d([p], [r], frequency)[0] for p, r in zip(predictions, references, strict=True)
    ]
    np.testing.assert_allclose(alone, CASES["captions"]["cider"], atol=1e-12)


def test_a_subset_is_another_metric():
    case = CASES["captions"]
    half = captioning.score(case["predictions"][:30], case["references"][:30])["cider"]
    assert abs(half - np.mean(case["cider"][:30])) > 0.01


def test_the_length_penalty_counts_bigrams():
    """One word has no bigram, two have one: the penalty between them is exp(-1 / 72)."""
    references = [["x"], ["y"]]
    exact, longer = (cider.cider_d([p, "y"], references)[0] for p in ("x", "x z"))
    assert exact == pytest.approx(10 / 4)  # only unigrams exist
    cosine = 1 / np.sqrt(2)  # z, unseen, weighs as much as x
    assert longer == pytest.approx(exact * cosine * np.exp(-1 / 72))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no reference caption for image 1"):
        captioning.score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="2 predictions"):
        captioning.score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="0 predictions"):
        captioning.score([], [])
