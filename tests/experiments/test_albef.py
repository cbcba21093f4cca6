"""ALBEF: its losses against the public code's numbers, the queue, the teacher, the negatives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.evaluators.choice import FirstWord
from big_mm.losses.masked import MaskedTokens, mask_tokens
from big_mm.losses.matching import Matching
from big_mm.losses.momentum import MomentumContrast
from big_mm.mesh import single_device_mesh
from big_mm.objectives import queue
from big_mm.predictor import Predictor
from big_mm.spec import UserError, build
from big_mm.types import Aux
from experiments.albef.model import ALBEF
from experiments.albef.objective import AlignBeforeFuse
from tests import tiny as whole
from tests.models import tiny_models as tiny

RNG = jax.random.key(0)
BATCH = tiny.batch() | {"text_id": jnp.array([5, 6, 7], jnp.int32)}
LOSSES = {"contrastive": MomentumContrast(), "matching": Matching(), "words": MaskedTokens()}


def model(**options):
    image, read = tiny.vision("gap"), tiny.text("first", causal=False)
    fusion = {"fusion": tiny.blocks(cross_attention=True)}
    return ALBEF(image, read, embed_dim=12, **fusion | options)


def objective(**options):
    sizes = {"momentum": 0.9, "queue_size": 8, "alpha": 0.4, "ramp_steps": 4}
    return AlignBeforeFuse(model(), LOSSES, **sizes | options)


@functools.cache
def params():
    return jax.jit(model().init)(jax.random.key(1), BATCH)["params"]


def cosines(rows, width, phase):
    """What both codes are given."""
    return jnp.cos(jnp.arange(rows * width).reshape(rows, width) * 1.7 + phase)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def contrast(alpha, ids=(0, 1, 2)):
    """Outputs of the public code's case: three rows, a full queue of six."""
    ids = jnp.array([*ids, *range(10, 16)])
    taught = [unit(cosines(3, 4, phase)) for phase in (2.0, 3.0)]
    old = [unit(cosines(6, 4, phase)) for phase in (4.0, 5.0)]
    return {
        "image_embedding": unit(cosines(3, 4, 0.0)),
        "text_embedding": unit(cosines(3, 4, 1.0)),
        "teacher_image_embedding": taught[0],
        "teacher_text_embedding": taught[1],
        "candidate_image": jnp.concatenate([taught[0], old[0]]),
        "candidate_text": jnp.concatenate([taught[1], old[1]]),
        "candidate_valid": jnp.ones(9, bool),
        "positive": ids[:3, None] == ids,
        "logit_scale": jnp.float32(10.0),
        "alpha": jnp.float32(alpha),
    }


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 12.3175001), (0.4, 12.9373770)])
def test_contrast_is_the_public_codes(alpha, expected):
    # salesforce/ALBEF, models/model_pretrain.py, on these features with temp=0.1.
    mean, _ = MomentumContrast()(contrast(alpha), {})
    np.testing.assert_allclose(mean.compute(), expected, rtol=1e-5)


def test_contrast_is_its_loop_where_rows_share_a_caption_and_the_queue_is_not_full():
    outputs = contrast(0.3, ids=(0, 0, 2)) | {"candidate_valid": jnp.arange(9) < 7}
    total = 0.0
    for here, there in (("image", "text"), ("text", "image")):
        for row in range(3):
            logits, taught = (
                10 * np.asarray(outputs[f"candidate_{there}"][:7]) @ outputs[name][row]
                for name in (f"{here}_embedding", f"teacher_{here}_embedding")
            )
            own = np.asarray(outputs["positive"][row, :7], float)
            soft = np.exp(taught) / np.exp(taught).sum()
            target = 0.3 * soft + 0.7 * own / own.sum()
            total -= (target * (logits - np.log(np.exp(logits).sum()))).sum() / 6
    mean, _ = MomentumContrast()(outputs, {})
    np.testing.assert_allclose(mean.compute(), total, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 2.7911408), (0.4, 2.6124082)])
def test_masked_words_are_the_public_codes(alpha, expected):
    # salesforce/ALBEF, models/xbert.py, BertForMaskedLM.forward on these logits.
    outputs = {
        "word_logits": jnp.stack([cosines(2, 7, 0.0), cosines(2, 7, 1.0)]),
        "teacher_word_logits": jnp.stack([cosines(2, 7, 2.0), cosines(2, 7, 3.0)]),
        "word_mask": jnp.array([[False, True], [True, False]]),
        "alpha": jnp.float32(alpha),
    }
    mean, _ = MaskedTokens()(outputs, {"tokens": jnp.array([[0, 3], [5, 0]])})
    np.testing.assert_allclose(mean.compute(), expected, rtol=1e-6)


@functools.cache
def compiled():
    return jax.jit(objective().forward)


def forward(extra, **others):
    return compiled()(params(), extra, BATCH | {"mask": jnp.ones(3, bool)} | others, RNG)


def test_three_steps_of_teacher_and_queue():
    mine = objective()
    extra = mine.init_extra(RNG, params())
    kernel = expected = np.asarray(params()["match_head"]["kernel"])
    for step in range(3):
        outputs = forward(extra)
        np.testing.assert_allclose(outputs["alpha"], 0.1 * step, rtol=1e-6)
        assert outputs["candidate_valid"].sum() == 3 + min(3 * step, 8)
        moved = jax.tree.map(lambda x, by=step + 1.0: x + by, params())
        extra = mine.update_extra(extra, moved, Aux({}, carry=mine.carry(outputs, BATCH)))
        expected = 0.9 * expected + 0.1 * (kernel + step + 1)
    np.testing.assert_allclose(extra["teacher"]["match_head"]["kernel"], expected, rtol=1e-5)
    # Nine rows in eight places: the ninth is where the first was.
    np.testing.assert_array_equal(extra["queue"]["id"], [7, 6, 7, 5, 6, 7, 5, 6])
    np.testing.assert_array_equal(extra["queue"]["image"][0], outputs["teacher_image_embedding"][2])
    assert extra["queue"][queue.VALID].all() and int(extra["queue"][queue.POINTER]) == 1


def test_what_is_padding_is_no_candidate_and_no_target():
    mine, sound = objective(), jnp.array([True, True, False])
    extra = mine.init_extra(RNG, params())
    black = jnp.zeros_like(BATCH["image"][2])
    terms = []
    for image in (BATCH["image"], BATCH["image"].at[2].set(black)):
        outputs = forward(extra, mask=sound, image=image)
        values, _ = mine.terms(outputs, BATCH | {"mask": sound}, LOSSES)
        terms.append([float(value.compute()) for value in values.values()])
    np.testing.assert_allclose(*terms, rtol=1e-6)
    assert outputs["match_valid"][:2].all()
    carry = mine.carry(outputs, BATCH | {"mask": sound})
    extra = mine.update_extra(extra, params(), Aux({}, carry=carry))
    assert extra["queue"][queue.VALID].tolist() == [True, True] + 6 * [False]


def test_a_false_pair_is_scored_as_that_pair():
    """Of two captions each has one wrong image, and each image one wrong caption."""
    extra = objective().init_extra(RNG, params())
    outputs = forward(extra, mask=jnp.array([True, True, False]))
    apply, crossed = jax.jit(model().apply), {"image": BATCH["image"][jnp.array([1, 0, 2])]}
    own, swapped = (apply({"params": params()}, BATCH | at)["match_logit"] for at in ({}, crossed))
    expected = jnp.stack([own, swapped, swapped[jnp.array([1, 0, 2])]], axis=1)
    np.testing.assert_allclose(outputs["match_logits"][:2], expected[:2], atol=1e-5)
    alike = forward(extra, text_id=jnp.array([5, 5, 5], jnp.int32))
    np.testing.assert_array_equal(alike["match_valid"], [[True, False, False]] * 3)


def test_words_are_those_of_the_masked_caption_with_its_image():
    outputs = forward(objective().init_extra(RNG, params()))
    shown, masked = mask_tokens(
        jax.random.split(RNG, 6)[0],
        BATCH["tokens"],
        BATCH["token_mask"],
        share=0.15,
        mask_id=4,
        vocab_size=tiny.VOCAB,
    )
    alone = jax.jit(model().apply)({"params": params()}, BATCH | {"tokens": shown})
    np.testing.assert_array_equal(outputs["word_mask"], masked)
    for name in ("word_logits", "teacher_word_logits"):
        np.testing.assert_allclose(outputs[name], alone["word_logits"], atol=1e-4)


def test_no_gradient_reaches_the_teacher():
    mine = objective()
    extra = mine.init_extra(RNG, params())

    def loss(teacher):
        return mine.loss(params(), extra | {"teacher": teacher}, BATCH, RNG)[0]

    slopes = jax.jit(jax.grad(loss))(params())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes))


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="alpha=1.5 must be from 0 to 1"):
        objective(alpha=1.5)
    with pytest.raises(UserError, match="accumulate=2: AlignBeforeFuse takes hard negatives"):
        objective().check_accumulation(2)
    with pytest.raises(UserError, match="needs cross_attention=True"):
        jax.eval_shape(model(fusion=tiny.blocks()).init, RNG, BATCH)
    with pytest.raises(UserError, match="text.causal=False"):
        causal = dataclasses.replace(model(), text=tiny.text("first"))
        jax.eval_shape(causal.init, RNG, BATCH)
    with pytest.raises(UserError, match="is no key of"):
        mine = objective(positives="caption_id")
        extra = mine.init_extra(RNG, params())
        jax.eval_shape(mine.forward, params(), extra, BATCH, RNG)


def test_a_question_is_a_caption_with_its_first_word_exchanged():
    ask = FirstWord(("red", "blue", "green"))
    item = ask.of({"key": "k", "captions": ["two blue rings and a red star"]})
    assert item.texts[item.right] == "two blue rings and a red star"
    assert item.texts[0] == "two red rings and a red star" and len(item.texts) == 3
    with pytest.raises(UserError, match="record 'k': 'a star' has no red, blue, green"):
        ask.of({"key": "k", "captions": ["a star"]})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    built = build(whole.config(tmp_path_factory.mktemp("tiny")))
    contract = built["contract"]
    read = dataclasses.replace(
        tiny.text("first", causal=False), vocab_size=300, max_len=contract.max_len
    )
    image = dataclasses.replace(tiny.vision("gap"), image_size=contract.image_size)
    made = dataclasses.replace(model(), image=image, text=read)
    return Predictor(made, whole.parameters(made, contract), contract, single_device_mesh())


def test_each_text_of_an_image_is_matched_as_a_pair_is(predictor):
    texts, images = [["a red star", "a blue ring"], ["a white circle"]], whole.images(2)
    found = predictor.texts_match(images, texts)
    for row, (image, own) in enumerate(zip(images, texts, strict=True)):
        tokens, token_mask = predictor.contract.text(own)
        pairs = {"image": np.stack([image] * len(own)), "tokens": tokens, "token_mask": token_mask}
        alone = predictor.outputs(pairs, ("match_logit",))["match_logit"]
        np.testing.assert_allclose(found[row, : len(own)], alone, rtol=1e-4, atol=1e-5)
    assert found[1, 1] == -np.inf
    with pytest.raises(UserError, match=r"images\[1\] has no texts"):
        predictor.texts_match(images, [["a"], []])
    dual = dataclasses.replace(predictor, model=tiny.dual_encoder())
    with pytest.raises(UserError, match="DualEncoder cannot match images with texts"):
        dual.texts_match(images, texts)
