"""Retrieval's options are what a plain matrix of similarities says."""

import dataclasses

import numpy as np
import oracles
import pytest

from big_mm.evaluators import Retrieval
from big_mm.evaluators.retrieval import Banks, Rerank
from big_mm.evaluators.scoring import Likelihood, Matching
from big_mm.metrics import hubness
from big_mm.spec import UserError

COUNT, WIDTH = 40, 12


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def vector(seed, noise=0.0):
    shared = np.random.default_rng(999).normal(size=WIDTH)
    own = np.random.default_rng(seed).normal(size=WIDTH)
    return own + 0.7 * shared + noise * np.random.default_rng(seed + 7000).normal(size=WIDTH)


def text_of(i):
    """Pictures 3 and 4, 13 and 14, ... have the same caption."""
    return f"thing {i - (i % 10 == 4)}"


def said(i):
    return {"captions": [text_of(i), f"further {i}"][: 1 + i % 2]}


def oracle(contract):
    return oracles.Oracle(
        contract,
        image_vector=lambda n: vector(int(text_of(n).split()[1]), 0.9) + 0.1 * vector(n + 500),
        text_vector=lambda text: vector(int(text.split()[-1]) + 300 * ("further" in text)),
        log_likelihood=lambda n, text: -abs(n - 0.1 - int(text.split()[-1])),
    )


def matrix(contract, texts):
    predictor = oracle(contract)
    images = predictor.encode_image([oracles.picture(i) for i in range(COUNT)])
    return images.astype(float) @ predictor.encode_text(texts).astype(float).T


def ranks(scores, right):
    """Of the first right item, equal scores against the query."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((scores >= best) & ~right).sum(axis=1)


def average_precision(scores, right, k):
    total = []
    for row, hits in zip(scores, right, strict=True):
        order = np.lexsort((hits, -row))[:k]
        found = hits[order]
        precision = [found[: i + 1].mean() for i in np.flatnonzero(found)]
        total.append(sum(precision) / min(k, hits.sum()))
    return np.mean(total)


def problem(shared):
    rows = [said(i)["captions"] for i in range(COUNT)]
    flat = [text for row in rows for text in row]
    texts = list(dict.fromkeys(flat)) if shared else flat
    owner = np.repeat(np.arange(COUNT), [len(row) for row in rows])
    if shared:
        right = np.array([[text in row for text in texts] for row in rows])
    else:
        right = owner == np.arange(COUNT)[:, None]
    return texts, right


@pytest.mark.parametrize("shared", [False, True])
def test_figures_are_those_of_the_whole_matrix(contract, shared):
    texts, right = problem(shared)
    scores = matrix(contract, texts).astype(np.float32)
    evaluator = Retrieval(
        oracles.Numbered(COUNT, said),
        map_at=(5,),
        same_captions="shared" if shared else "apart",
    )
    found = evaluator.run(oracle(contract))
    for direction, s, r in (
        ("image_to_text", scores, right),
        ("text_to_image", scores.T, right.T),
    ):
        expected = ranks(s, r)
        for k in (1, 5, 10):
            assert found[f"{direction}_r@{k}"] == pytest.approx((expected <= k).mean())
        assert found[f"{direction}_median_rank"] == np.floor(np.median(expected))
        assert found[f"{direction}_map@5"] == pytest.approx(average_precision(s, r, 5))
        order = np.argsort(-s, axis=1, kind="stable")[:, :10]
        assert found[f"{direction}_hubness"] == pytest.approx(
            hubness.skewness(order, s.shape[1]), abs=0.1
        )
    assert found["texts"] == len(texts)


def test_another_similarity_ranks_each_direction_its_own_way(contract):
    texts, right = problem(shared=False)
    evaluator = Retrieval(
        oracles.Numbered(COUNT, said), similarity=oracles.Opposed(), map_at=(5,), batch_size=7
    )
    result = evaluator.evaluate(oracle(contract), 0)
    scores = matrix(contract, texts).astype(np.float32)
    for direction, s, r in (
        ("image_to_text", scores, right),
        ("text_to_image", -scores.T, right.T),
    ):
        expected = ranks(s, r)
        assert result.values[f"{direction}_r@5"] == pytest.approx((expected <= 5).mean())
        assert result.values[f"{direction}_median_rank"] == np.floor(np.median(expected))
        found = average_precision(s, r, 5)
        assert result.values[f"{direction}_map@5"] == pytest.approx(found)
    assert "Opposed" in result.protocol["similarity"]
    with pytest.raises(UserError, match="banks and rerank need the cosine"):
        Retrieval(evaluator.source, similarity=oracles.Opposed(), rerank=Rerank())


def test_shared_captions_are_right_for_all_their_images(contract):
    source = oracles.Numbered(COUNT, said)
    apart, shared = (
        Retrieval(source, same_captions=how).run(oracle(contract)) for how in ("apart", "shared")
    )
    assert shared["text_to_image_r@1"] > apart["text_to_image_r@1"]
    with pytest.raises(UserError, match="same_captions='both' is none of apart, shared"):
        Retrieval(source, same_captions="both")


def test_likelihoods_order_the_first_items_anew(contract):
    source = oracles.Numbered(COUNT, said)
    plain = Retrieval(source, ks=(1, 8, 20), same_captions="shared")
    before = plain.run(oracle(contract))
    after = dataclasses.replace(plain, rerank=Rerank(depth=8)).run(oracle(contract))
    for direction in ("image_to_text", "text_to_image"):
        assert after[f"{direction}_r@8"] == before[f"{direction}_r@8"]
        assert after[f"{direction}_r@20"] == before[f"{direction}_r@20"]
    # The likelihood knows the number: what the first stage found is put first.
    assert after["image_to_text_r@1"] == after["image_to_text_r@8"]
    heavy = dataclasses.replace(plain, rerank=Rerank(depth=8, cosine=1e4)).run(oracle(contract))
    assert heavy == pytest.approx(before)


def test_a_matching_head_orders_the_first_items_too(contract, monkeypatch):
    plain = Retrieval(oracles.Numbered(COUNT, said), ks=(1, 8), same_captions="shared")
    by = {
        scorer: dataclasses.replace(plain, rerank=Rerank(depth=8, scorer=scorer))
        for scorer in (Likelihood(), Matching())
    }
    read = oracles.Oracle.texts_log_likelihood
    monkeypatch.setattr(oracles.Oracle, "texts_match", lambda *args: read(*args)[0], raising=False)
    likelihood, matching = (each.run(oracle(contract)) for each in by.values())
    assert matching == likelihood
    reranked = by[Matching()].evaluate(oracle(contract), 0).protocol["reranked"]
    assert reranked == "first 8 by log odds of matching + 0 cosine"


@pytest.mark.parametrize("dynamic", [False, True])
def test_banks_take_hubs_away(contract, dynamic):
    source = oracles.Numbered(COUNT, said)
    others = oracles.Numbered(COUNT, lambda i: {"captions": [f"thing {i + 100}"]})
    before = Retrieval(source).run(oracle(contract))
    banks = Banks(others, query_beta=10.0, gallery_beta=1.0, dynamic=dynamic)
    result = Retrieval(source, banks=banks).evaluate(oracle(contract), 0)
    after = result.values
    assert after["text_to_image_hubness"] < before["text_to_image_hubness"]
    assert after["text_to_image_r@1"] >= before["text_to_image_r@1"]
    kind = "dual dynamic" if dynamic else "dual"
    assert result.protocol["hubs"] == f"{kind} inverted softmax, beta 10 and 1"
