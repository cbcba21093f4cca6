"""The encoder-decoder: causal, grounded, and the same when decoded step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.models.captioner import Captioner
from big_mm.spec import UserError
from tests.models import tiny_models as tiny


@functools.cache
def model(**options):
    made = tiny.captioner(**options)
    return made, tiny.variables(made)


@pytest.mark.parametrize("tied", [False, True])
def test_decoding_step_by_step_equals_the_whole(tied):
    made, variables = model(tie_embeddings=tied)
    batch = tiny.batch((8, 8, 8))
    whole = tiny.method(made)(variables, batch)["caption_logits"]
    np.testing.assert_allclose(tiny.decode(made, variables, batch, 2), whole, atol=5e-5)


def test_what_a_token_sees():
    made, variables = model()
    run, batch = tiny.method(made), tiny.batch((8, 8, 8))
    before = run(variables, batch)["caption_logits"]
    later = run(variables, batch | {"tokens": batch["tokens"].at[:, 4].add(1)})["caption_logits"]
    np.testing.assert_allclose(before[:, :4], later[:, :4], atol=1e-5)
    assert np.abs(before - later)[:, 4].min() > 0
    other = run(variables, batch | {"image": batch["image"][::-1]})["caption_logits"]
    assert np.abs(before - other)[0].max() > 1e-2


def test_an_image_alone_has_no_logits():
    made, variables = model()
    out = tiny.method(made)(variables, {"image": tiny.batch()["image"]})
    assert set(out) == {"image_tokens", "patch_tokens"}


@pytest.mark.parametrize("text", [tiny.text("none"), tiny.text("cls")])
def test_parts_that_do_not_fit(text):
    with pytest.raises(UserError, match="cross_attention"):
        jax.eval_shape(Captioner(tiny.vision(), text).init, jax.random.key(0), tiny.batch())


def test_a_bias_of_the_head_and_a_mask_that_is_only_read():
    made = tiny.captioner(head_bias=True, mask_token=True)
    variables = tiny.variables(made)
    assert variables["params"]["text"]["embedding"].shape[0] == tiny.VOCAB
    bias = variables["params"]["caption_head"]["bias"]
    assert bias.shape == (tiny.VOCAB - 1,)
    run = jax.jit(functools.partial(made.apply, train=True))
    out = run(variables, tiny.batch())
    assert out["caption_logits"].shape[-1] == tiny.VOCAB - 1
    variables["params"]["caption_head"]["bias"] = jnp.zeros_like(bias)
    without = run(variables, tiny.batch())["caption_logits"]
    expected = without + jnp.asarray(bias)
    np.testing.assert_allclose(out["caption_logits"], expected, atol=1e-4)
    # What losses of one part after the other take is the same product.
    logits = out["caption_features"] @ out["caption_kernel"]
    np.testing.assert_allclose(logits, out["caption_logits"], atol=1e-4)


def test_a_tied_head_has_no_bias():
    with pytest.raises(UserError, match="tie_embeddings=True takes head_bias=False"):
        tiny.variables(tiny.captioner(tie_embeddings=True, head_bias=True))
