"""Guided captions: what is blind, what the scales mean, and the mixture with a language model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec
from big_mm.predictor import Predictor
from big_mm.spec import UserError
from experiments.guidance import config, guidance
from tests import tiny


def captioner(vocab_size, **options):
    made = tiny.captioner(vocab_size)
    towers = {"image": made.image, "text": made.text}
    return spec.spec(guidance.BlindableCaptioner, **towers, **options)


def build(contract):
    """A module of its own each time: Flax shares the parameters of one that is used twice."""
    return spec.build(captioner(contract.tokenizer.vocab_size))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A captioner, and another one that serves as language model."""
    contract = spec.build(tiny.config(tmp_path_factory.mktemp("guidance")).contract)
    return [
        Predictor(model, tiny.parameters(model, contract, seed, gain=4.0), contract)
        for seed, model in enumerate((build(contract), build(contract)))
    ]


def caption(predictor, images, scale=1.0):
    how = dataclasses.replace(predictor.contract.decoding, guidance=scale)
    return predictor.generate(images, how)[0]


@pytest.mark.parametrize("blind", [0.0, 0.5, 1.0])
def test_a_share_of_the_images_is_not_seen_in_training(pair, blind):
    predictor = pair[0]
    model, images = predictor.model.clone(blind=blind), jnp.asarray(tiny.images(400))

    def tokens(seed, train):
        encode = jax.jit(functools.partial(model.apply, method="encode_image", train=train))
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(encode({"params": predictor.params}, images, rngs=rngs)["image_tokens"])

    whole, seen = tokens(0, False), tokens(0, True)
    assert whole.any(axis=(1, 2)).all()
    blinded = ~seen.any(axis=(1, 2))
    np.testing.assert_allclose(seen[~blinded], whole[~blinded], rtol=1e-5)
    assert blinded.mean() == pytest.approx(blind, abs=4 * (blind * (1 - blind) / 400) ** 0.5)
    assert 0 < blind < 1 or (tokens(1, True) == seen).all()


def test_scale_1_is_ordinary_and_scale_0_does_not_see(pair):
    predictor, images = pair[0], tiny.images(6)
    plain, blind = caption(predictor, images), caption(predictor, images, 0.0)
    assert len({tuple(row) for row in plain.tolist()}) > 1
    assert len({tuple(row) for row in blind.tolist()}) == 1
    np.testing.assert_array_equal(caption(predictor, images, 1.0 + 1e-6), plain)
    nothing = predictor.model.clone(blind=1.0)
    outputs = nothing.apply(
        {"params": predictor.params},
        {"image": jnp.asarray(images[:1]), "tokens": jnp.asarray(blind[:1])}
        | {"token_mask": jnp.asarray(blind[:1] != 0)},
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    logits = np.array(outputs["caption_logits"][0, :-1])
    logits[:, [0, 1, 4]] = -np.inf  # never written: pad, bos, cls
    ended = (blind[0] == predictor.contract.tokenizer.eos_id).argmax() or len(blind[0]) - 1
    np.testing.assert_array_equal(logits.argmax(-1)[:ended], blind[0, 1 : ended + 1])


def test_the_mixture_with_a_language_model_is_equation_4(pair, tmp_path):
    p, q = pair
    images, alpha, beta = tiny.images(5), 1.5, 0.75
    mixed = guidance.LanguageGuided(p.model, q.model, alpha, beta)
    params = {"captioner": p.params, "language": q.params}
    tokens = caption(dataclasses.replace(p, model=mixed, params=params), images)
    seen = p.image_outputs(images, ("image_tokens",))["image_tokens"]

    def log_probs(predictor, rows, image_tokens):
        step = functools.partial(predictor.model.apply, method="decode_step", mutable=["cache"])
        step = jax.jit(step)
        outputs, _ = step({"params": predictor.params}, rows, image_tokens)
        return np.array(jax.nn.log_softmax(outputs["caption_logits"], axis=-1))

    ids = p.contract.tokenizer
    score = log_probs(q, tokens, 0 * seen) + alpha * log_probs(p, tokens, seen)
    score -= beta * log_probs(p, tokens, 0 * seen)
    score[..., [ids.pad_id, ids.bos_id, ids.cls_id]] = -np.inf
    written = tokens[:, 1:] != ids.pad_id
    np.testing.assert_array_equal(score.argmax(-1)[:, :-1][written], tokens[:, 1:][written])


def test_a_captioner_that_is_its_own_language_model_guides_itself(pair):
    p, images = pair[0], tiny.images(5)
    mixed = guidance.LanguageGuided(p.model, build(p.contract), 2.5, 2.5)
    own = dataclasses.replace(p, model=mixed, params={"captioner": p.params, "language": p.params})
    how = dataclasses.replace(p.contract.decoding, num_beams=3, guidance=2.5)
    plain = dataclasses.replace(how, guidance=1.0)
    np.testing.assert_array_equal(own.generate(images, plain)[0], p.generate(images, how)[0])


def test_a_language_model_of_another_tokenizer_is_refused(pair, tmp_path):
    other = tiny.workdir(tmp_path, captioner, lowercase=True)
    with pytest.raises(UserError, match="contracts differ: lowercase"):
        guidance.WithLanguageModel(str(other))(pair[0])
    (tmp_path / "same").mkdir()
    same = tiny.workdir(tmp_path / "same", captioner)
    altered = guidance.WithLanguageModel(str(same), 2.0, 0.5)(pair[0])
    assert (altered.model.alpha, altered.model.beta) == (2.0, 0.5)
    assert altered.caption(tiny.images(2))


def test_an_unknown_arm_is_refused():
    with pytest.raises(UserError, match="arm='blind' is none of guided, seeing"):
        config.get_config("blind")
