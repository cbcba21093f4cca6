"""SyCoCa: which patches are masked, the loss of their pixels, and CoCa where it weighs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_mm.losses import captioning, contrastive
from big_mm.models.vision import patchify
from big_mm.objectives.base import Weighted
from big_mm.spec import UserError
from experiments.sycoca import objective as sycoca
from experiments.sycoca.model import SyCoCa
from tests.models import tiny_models as tiny

BATCH = tiny.batch()
TERMS = {"contrastive": contrastive.Softmax(), "captioning": captioning.CrossEntropy()}
RNG = jax.random.key(0)


def model(pooling="parallel"):
    return SyCoCa(
        image=tiny.vision(mask_token=True),
        text=tiny.text(),
        decoder=tiny.blocks(cross_attention=True),
        queries=3,
        pooling=pooling,
        image_decoder=tiny.blocks(depth=1, cross_attention=True),
    )


def objective(weight=1.0, **options):
    terms = TERMS | {"reconstruction": sycoca.MaskedPixels()}
    weights = {"captioning": 2.0, "reconstruction": weight}
    return sycoca.Symmetric(model(), terms, weights, **options)


@functools.cache
def params():
    return jax.jit(model().init)(jax.random.key(1), BATCH)["params"]


@pytest.mark.parametrize(
    ("patches", "expected"),
    [("relevant", [0, 1, 0, 1, 0, 0]), ("irrelevant", [1, 0, 0, 0, 1, 0]), ("random", None)],
)
def test_the_mask_takes_its_share_of_the_patches_asked_for(patches, expected):
    relevance = jnp.array([[0.1, 0.9, 0.5, 0.8, -0.2, 0.4]] * 3)
    found = sycoca.Mask(patches, 1 / 3)(relevance, RNG)
    assert found.sum(axis=1).tolist() == [2, 2, 2]
    if expected:
        np.testing.assert_array_equal(found[0], expected)
    # Equal patches: still no more than the share.
    assert sycoca.Mask(patches, 0.5)(jnp.zeros((2, 6)), RNG).sum(axis=1).tolist() == [3, 3]


def test_masks_that_make_no_sense():
    with pytest.raises(UserError, match="ratio=1.0 must be between 0 and 1"):
        sycoca.Mask(ratio=1.0)
    with pytest.raises(UserError, match="patches='best' is none of relevant, irrelevant, random"):
        sycoca.Mask("best")


def test_the_loss_is_the_loop_over_masked_patches():
    rng = np.random.default_rng(0)
    pixels, true = rng.normal(size=(2, 3, 4, 12)).astype(np.float32)
    mask = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    outputs = {"pixels": pixels, "true_pixels": true, "patch_mask": mask}
    outputs = jax.tree.map(jnp.asarray, outputs)
    errors = []
    for row, patch in [(0, 0), (0, 3)]:
        errors.append(np.mean((pixels[row, patch] - true[row, patch]) ** 2))
    found, _ = sycoca.MaskedPixels()(outputs, {"mask": jnp.array([1, 1, 0])})
    np.testing.assert_allclose(float(found.compute()), np.mean(errors), rtol=1e-6)
    # What stands elsewhere does not count.
    outputs["pixels"] = jnp.where(mask[..., None], pixels, 1e6)
    again, _ = sycoca.MaskedPixels()(outputs, {"mask": jnp.array([1, 1, 0])})
    assert float(again.total) == float(found.total)


def test_true_pixels_are_what_the_tower_sees():
    tower = tiny.vision(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    found = sycoca.true_pixels(tower, BATCH["image"])
    back = found.reshape(-1, 4, 8, 8, 3) * np.array([0.5, 0.25, 0.125]) + np.array([0.1, 0.2, 0.3])
    expected = patchify(BATCH["image"].astype(jnp.float32), 8).reshape(back.shape)
    np.testing.assert_allclose(back * 255, expected, atol=1e-3)


@functools.cache
def outputs(**options):
    return jax.jit(objective(**options).forward)(params(), {}, BATCH, RNG)


def test_at_weight_zero_the_loss_is_cocas():
    mine, coca = objective(weight=0.0), Weighted(model(), TERMS, {"captioning": 2.0})
    terms, _ = mine.terms(outputs(), BATCH, mine.losses)
    value, _ = jax.jit(coca.loss)(params(), {}, BATCH, RNG)
    np.testing.assert_allclose(float(mine.scalar(terms)), float(value), rtol=1e-6)
    assert float(terms["reconstruction"].compute()) > 0


def test_the_caption_helps_to_reconstruct():
    """Images whose colour only the caption tells: swapping captions raises the loss."""
    colours = jnp.array([[250, 10, 10], [10, 10, 250]], jnp.uint8)
    image = jnp.broadcast_to(colours[:, None, None], (2, 16, 16, 3))
    tokens = jnp.array([[1, 5, 2, 0, 0, 0, 0, 0], [1, 6, 2, 0, 0, 0, 0, 0]])
    batch = {"image": image, "tokens": tokens, "token_mask": tokens > 0}
    mask, made = jnp.ones((2, 4), bool), model()  # no patch is seen
    optimizer = optax.adam(1e-2)

    def loss(params, batch):
        out = made.apply({"params": params}, batch)
        inputs = batch["image"], mask, out["text_tokens"], batch["token_mask"]
        pixels = made.apply({"params": params}, *inputs, method="reconstruct")
        true = sycoca.true_pixels(made.image, batch["image"])
        outputs = {"pixels": pixels, "true_pixels": true, "patch_mask": mask}
        return sycoca.MaskedPixels()(outputs, batch)[0].compute()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), value

    start = params(), optimizer.init(params())
    (trained, _), values = jax.jit(lambda c: jax.lax.scan(step, c, length=60))(start)
    swapped = batch | {"tokens": tokens[::-1]}
    assert float(values[-1]) < 0.1 * float(values[0])
    assert float(jax.jit(loss)(trained, swapped)) > 5 * float(values[-1])


def test_captions_from_the_patches_that_they_are_about():
    one, other = outputs(), outputs(caption_mask=sycoca.Mask("irrelevant"))
    assert np.abs(one["caption_logits"] - other["caption_logits"]).max() > 1e-4
    np.testing.assert_array_equal(one["image_embedding"], other["image_embedding"])
    # Two halves: what is hidden from the caption is shown to the reconstruction.
    assert one["patch_mask"].sum(axis=1).tolist() == [2, 2, 2]
    assert one.keys() == other.keys()


@pytest.mark.parametrize("pooling", ["parallel", "cascade"])
def test_a_patch_is_embedded_as_an_image_of_one_patch(pooling):
    made = model(pooling)
    patches = jax.random.normal(RNG, (2, 4, tiny.WIDTH))
    variables = jax.jit(made.init)(jax.random.key(1), BATCH)
    found = made.apply(variables, patches, method="patch_embeddings")
    alone = made.apply(variables, patches[1, 2][None, None], method="pool")["image_embedding"]
    np.testing.assert_allclose(found[1, 2], alone[0], atol=1e-6)
