"""Evaluators give exact numbers, whatever the batches, devices and damaged records."""

import json
import math

import jax.numpy as jnp
import oracles
import pytest
import tiny
from oracles import NAMES, basis, classifier, labelled

from big_mm import spec
from big_mm.data import scenes
from big_mm.evaluators import (
    Captioning,
    Evaluator,
    GroundingGap,
    Retrieval,
    SceneAccuracy,
    ZeroShot,
    base,
    captioning,
    prompts,
    run_all,
    suite,
)
from big_mm.losses.captioning import CrossEntropy
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.metrics import captioning as caption_metrics
from big_mm.predictor import Predictor
from big_mm.spec import UserError

BATCH_SIZES = [1, 5, 8, 64]


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    built = spec.build(tiny.config(tmp_path_factory.mktemp("tiny")))
    model, contract = built["objective"].model, built["contract"]
    return Predictor(model, tiny.parameters(model, contract), contract, single_device_mesh())


def several(i):
    """One to three captions; picture 3 has only one that says something else."""
    own = [f"number {i}", f"a {i}", f"the {i}"][: 1 + i % 3]
    return {"captions": ["number 0"] if i == 3 else own}


def reader(contract):
    return oracles.Oracle(
        contract,
        image_vector=lambda n: basis(n, 16),
        text_vector=lambda text: basis(int(text.split()[-1]), 16),
    )


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_retrieval_with_several_captions_an_image(contract, batch_size):
    source = oracles.Numbered(13, several, damaged=(4, 12))
    metrics = Retrieval(source, batch_size=batch_size, ks=(1, 2)).run(reader(contract), 0)
    images = [i for i in range(13) if i not in (4, 12)]
    texts = sum(len(several(i)["captions"]) for i in images)
    assert (metrics["images"], metrics["texts"]) == (11, texts)
    # Picture 3 finds nothing. "number 0" of picture 3 finds picture 0 first, and picture 0 finds a
    # caption that is a tie between its own and that of picture 3, which counts as wrong.
    assert metrics["image_to_text_r@1"] == pytest.approx(9 / 11)
    assert metrics["image_to_text_r@2"] == pytest.approx(10 / 11)
    assert metrics["text_to_image_r@1"] == pytest.approx((texts - 1) / texts)
    assert metrics["text_to_image_r@1_chance"] == pytest.approx(1 / 11)


def test_retrieval_limits_and_prefixes(contract):
    asked = []
    oracle = oracles.Oracle(
        contract, lambda n: basis(n), lambda text: asked.append(text) or basis(len(asked))
    )
    evaluator = Retrieval(oracles.Numbered(9, several), captions_per_image=1, limit=5, prefix="so ")
    metrics = evaluator.run(oracle, 0)
    assert metrics["images"] == metrics["texts"] == 5
    assert asked == [f"so number {i}" for i in (0, 1, 2, 0, 4)]


def test_retrieval_shows_right_and_wrong_queries(contract):
    evaluator = Retrieval(oracles.Numbered(13, several))
    shown = evaluator.evaluate(reader(contract), 0).artifacts["examples"]
    wrong = shown["image_to_text_wrong"]
    assert [w["truth"] for w in wrong] == [["number 0"], ["number 0"]]
    assert all(r["results"][0]["right"] for r in shown["text_to_image_right"])
    assert not shown["text_to_image_wrong"][0]["results"][0]["right"]


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_captioning_scores_the_complete_set_at_once(contract, batch_size):
    truths = [["a red circle", "one red circle"], ["a blue star"], ["a green ring", "a ring"]]
    said = ["a red circle", "a red circle", "a green ring", "a star"]
    source = oracles.Numbered(14, lambda i: {"captions": truths[i % 3]}, damaged=(2, 13))
    oracle = oracles.Oracle(contract, says=lambda n: said[n % 4])
    metrics = Captioning(source, batch_size=batch_size).run(oracle, 0)
    sound = [i for i in range(14) if i not in (2, 13)]
    references = [truths[i % 3] for i in sound]
    expected = caption_metrics.score([said[i % 4] for i in sound], references)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    others = [references[i][0] for i in captioning.derangement(len(sound))]
    assert metrics["cider_chance"] == caption_metrics.score(others, references)["cider"]
    assert metrics["distinct"] == 3 / 12 and metrics["examples"] == 12


def test_captioning_marks_words_that_no_reference_has(contract):
    source = oracles.Numbered(2, lambda i: {"captions": ["A red circle.", "one circle"]})
    oracle = oracles.Oracle(contract, says=lambda n: "a blue star")
    result = Captioning(source).evaluate(oracle, 0)
    shown = result.artifacts["captions"]
    assert shown["examples"][0]["unmatched"] == ["blue", "star"]
    assert result.protocol["decoding"]["num_beams"] == 1


def test_captioning_takes_a_further_scorer(contract):
    samples = [scenes.sample("test_seen", 0, i) for i in range(6)]

    def features(i):
        scene = samples[i].scene.to_json().encode()
        return {"captions": samples[i].short, "scene": [scene]}

    oracle = oracles.Oracle(contract, says=lambda n: samples[n % 3].short[0])
    shortened = Captioning(oracles.Numbered(6, features), scorer=SceneAccuracy())
    # The tiny vocabulary cuts long captions; the oracle's answers go through it unharmed if short.
    metrics = shortened.run(oracle, 0)
    assert 0 <= metrics["exact_chance"] <= metrics["exact"] <= 1
    assert shortened.about["exact"].headline and shortened.about["cider"].headline
    with pytest.raises(UserError, match="records have no 'scene'"):
        Captioning(oracles.Numbered(6), scorer=SceneAccuracy()).run(oracle, 0)


def test_the_grounding_gap_of_a_decoder_that_looks_and_of_one_that_does_not(contract):
    source = oracles.Numbered(11, damaged=(3,))
    seeing = lambda n, caption: -1.0 if caption == f"number {n}" else -7.0  # noqa: E731
    metrics = GroundingGap(source).run(oracles.Oracle(contract, log_likelihood=seeing), 0)
    assert metrics["loss"] == pytest.approx(1 / 2)  # two words a caption
    assert metrics["gap"] == pytest.approx(6 / 2)
    assert metrics["preferred"] == 1.0 and metrics["examples"] == 10
    blind = oracles.Oracle(contract, log_likelihood=lambda n, caption: -float(caption[-1]))
    metrics = GroundingGap(source).run(blind, 0)
    assert metrics["gap"] == pytest.approx(0, abs=1e-12) and metrics["preferred"] == 0.0


@pytest.mark.parametrize("count", [2, 3, 100])
def test_a_derangement_moves_everything(count):
    order = captioning.derangement(count)
    assert sorted(order) == list(range(count)) and all(i != j for i, j in enumerate(order))
    assert order == captioning.derangement(count)


def test_too_few_records_are_refused(contract):
    oracle = oracles.Oracle(contract, says=lambda n: "a")
    with pytest.raises(UserError, match="evaluator 'mine': 1 usable records are too few"):
        run_all({"mine": Captioning(oracles.Numbered(1))}, oracle)


def everything(batch_size):
    def features(i):
        text = tiny.TEXTS[i % 16]
        return {"captions": [text, text + " ring"], "label": i % 16}

    source = oracles.Numbered(21, features, damaged=(5,))
    return {
        "zero_shot": ZeroShot(
            source, tiny.TEXTS, prompts.Templates(("{}", "a {}")), batch_size=batch_size
        ),
        "retrieval": Retrieval(source, batch_size=batch_size),
        "captioning": Captioning(source, batch_size=batch_size),
        "grounding": GroundingGap(source, batch_size=batch_size),
    }


def test_devices_and_batches_change_nothing(predictor):
    one = run_all(everything(batch_size=64), predictor)
    eight = Predictor(
        predictor.model, predictor.params, predictor.contract, MeshConfig().make(), batch_size=16
    )
    assert eight.mesh.size == 8
    many = run_all(everything(batch_size=7), eight)
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert one["grounding/loss_chance"] == math.log(predictor.contract.tokenizer.vocab_size)


def test_the_likelihood_is_the_loss_of_training(predictor):
    source = everything(8)["grounding"].source
    metrics = GroundingGap(source).run(predictor, 0)
    batch = next(base.examples(source, predictor.contract, 32))
    arrays = {k: batch[k] for k in ("image", "tokens", "token_mask")}
    outputs = {"caption_logits": jnp.asarray(predictor.outputs(arrays)["caption_logits"])}
    mean, _ = CrossEntropy()(outputs, {k: jnp.asarray(v) for k, v in arrays.items()})
    assert metrics["loss"] == pytest.approx(float(mean.compute()), rel=1e-4)


def test_artifacts_are_stored_and_read_back(contract, tmp_path):
    source = oracles.Numbered(8, labelled)
    evaluators = {"zero_shot": ZeroShot(source, NAMES), "plain": Plain()}
    announced = []
    metrics = run_all(evaluators, classifier(contract), 7, tmp_path, announced.append)
    assert metrics["zero_shot/accuracy"] == 1.0 and metrics["plain/answer"] == 42.0
    stored = suite.stored(tmp_path)
    assert announced == ["zero_shot", "plain"] and sorted(stored) == ["plain", "zero_shot"]
    assert stored["zero_shot"]["step"] == 7 and stored["plain"]["artifacts"] == {}
    assert stored["zero_shot"]["about"]["accuracy"]["headline"]
    json.dumps(stored, allow_nan=False)


class Plain(Evaluator):
    """The least an evaluator needs."""

    def evaluate(self, predictor, step):
        return base.Result({"answer": 42.0})


@pytest.mark.parametrize("name", ["zero_shot", "retrieval", "captioning", "grounding"])
def test_a_model_that_lacks_what_is_scored_is_refused(contract, name):
    model = Predictor(oracles.OnlyPictures(), {}, contract, single_device_mesh())
    with pytest.raises(UserError, match=f"evaluator '{name}': OnlyPictures .*has no "):
        run_all({name: everything(8)[name]}, model)
