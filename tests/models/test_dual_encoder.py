"""CLIP, ALIGN and SigLIP are configs of one class; what their outputs depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.models import heads
from big_mm.models.dual_encoder import DualEncoder
from big_mm.spec import UserError
from tests.models import tiny_models as tiny

CLIP = {"image": tiny.vision("cls", pre_norm=True), "text": tiny.text("eos"), "embed_dim": 12}
ALIGN = {
    "image": tiny.vision("gap"),
    "text": tiny.text("cls", causal=False, blocks=tiny.blocks(width=24)),
    "embed_dim": tiny.WIDTH,
    "image_projection": False,
}
SIGLIP = {
    "image": tiny.vision("map"),
    "text": tiny.text("last", causal=False, mask_padding=False),
    "embed_dim": tiny.WIDTH,
    "image_projection": False,
    "projection_bias": True,
    "logit_bias": -10.0,
}


@pytest.mark.parametrize("options", [CLIP, ALIGN, SIGLIP], ids=["clip", "align", "siglip"])
def test_outputs(options):
    model, batch = DualEncoder(**options), tiny.batch()
    variables = tiny.variables(model)
    out = tiny.method(model)(variables, batch)
    for key in ("image_embedding", "text_embedding"):
        assert out[key].shape == (3, options["embed_dim"]) and out[key].dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(out[key], axis=1), 1, rtol=1e-5)
    assert ("logit_bias" in out) == ("logit_bias" in options)
    image = tiny.method(model, "encode_image")(variables, batch["image"])
    text = tiny.method(model, "encode_text")(variables, batch["tokens"], batch["token_mask"])
    for key, value in (image | text).items():
        np.testing.assert_allclose(value, out[key], atol=1e-5)


def test_further_texts_have_outputs_of_their_own():
    model, batch = DualEncoder(**CLIP), tiny.batch()
    other = {f"{key}_other": batch[key][::-1] for key in ("tokens", "token_mask")}
    out = tiny.method(model)(tiny.variables(model), batch | other)
    for name in ("text_embedding", "text_tokens"):
        np.testing.assert_allclose(out[f"{name}_other"], out[name][::-1], atol=1e-6)


def test_the_initial_temperature_and_bias():
    model = DualEncoder(**SIGLIP)
    out, _ = jax.jit(model.init_with_output)(jax.random.key(0), tiny.batch())
    np.testing.assert_allclose(out["logit_scale"], 1 / 0.07, rtol=1e-6)
    np.testing.assert_allclose(out["logit_bias"], -10)


def test_the_temperature_is_bounded_and_returns():
    def scale(log_scale):
        return heads.Temperature(maximum=100.0).apply({"params": {"log_scale": log_scale}})

    inside, outside = jnp.float32(4.0), jnp.float32(5.0)
    np.testing.assert_allclose(scale(inside), np.exp(4), rtol=1e-6)
    np.testing.assert_allclose(scale(outside), 100, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(scale)(inside), np.exp(4), rtol=1e-6)
    # A gradient that would raise it further is stopped; one that lowers it is not.
    assert jax.grad(lambda x: -scale(x))(outside) == 0
    np.testing.assert_allclose(jax.grad(scale)(outside), 100, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": tiny.vision()}, "image.pool is 'none'"),
        ({"text": tiny.text("none")}, "text.pool is 'none'"),
        ({"text_projection": False}, "text's width 16 to be embed_dim=12"),
        (
            {"text_projection": False, "text_projection_hidden": 9},
            "text_projection_hidden=9 needs text_projection=True",
        ),
    ],
)
def test_parts_that_do_not_fit(change, message):
    model = DualEncoder(**CLIP | change)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), tiny.batch())


@pytest.mark.parametrize("pool, cls", [("cls", True), ("map", False), ("gap", True)])
def test_features_lie_before_the_projection_and_patches_leave_the_class_token_out(pool, cls):
    made = DualEncoder(tiny.vision(pool, cls_token=cls), tiny.text("eos"), embed_dim=12)
    variables = tiny.variables(made)
    out = tiny.method(made, "encode_image")(variables, tiny.batch()["image"])
    assert out["image_features"].shape == (3, tiny.WIDTH)
    projected = out["image_features"] @ variables["params"]["image_head"]["kernel"]
    length = np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(projected / length, out["image_embedding"], atol=1e-5)
    np.testing.assert_array_equal(out["patch_tokens"], out["image_tokens"][:, int(cls) :])
    assert out["patch_tokens"].shape[1] == (tiny.SIZE // tiny.PATCH) ** 2


def test_a_hidden_layer_before_the_texts_space():
    made = DualEncoder(**CLIP | {"text_projection_hidden": 9})
    variables = tiny.variables(made)
    head = variables["params"]["text_head"]
    assert {k: v["kernel"].shape for k, v in head.items()} == {"up": (16, 9), "down": (9, 12)}
    assert not any("bias" in part for part in head.values())
    linear = DualEncoder(**CLIP | {"embed_dim": 16, "text_projection": False})
    rest = {k: v for k, v in variables["params"].items() if k != "text_head"}
    batch = tiny.batch()
    given = (batch["tokens"], batch["token_mask"])
    pooled = linear.apply({"params": rest}, *given, method=lambda m, *x: m.text(*x)["pooled"])
    hidden = jax.nn.gelu(pooled @ head["up"]["kernel"], approximate=False)
    expected = hidden @ head["down"]["kernel"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = tiny.method(made, "encode_text")(variables, *given)["text_embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
