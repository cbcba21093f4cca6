"""Late interaction is its loop; with one token it is CLIP; padding and layouts do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm.data import scenes
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.evaluators.pointing import _objects
from big_mm.losses.contrastive import Softmax
from experiments.filip.similarity import LateInteraction

ROWS, PATCHES, LENGTH, WIDTH = 6, 5, 4, 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def case(patches=PATCHES, length=LENGTH, rows=ROWS):
    rng = np.random.default_rng(0)
    lengths = 1 + rng.integers(0, length, size=rows)
    return {
        "image_token_embeddings": unit(rng.normal(size=(rows, patches, WIDTH))),
        "text_token_embeddings": unit(rng.normal(size=(rows, length, WIDTH))),
        "text_token_mask": (np.arange(length) < lengths[:, None]).astype(np.float64),
        "logit_scale": np.float64(7.0),
    }


def loops(outputs):
    """Equations 4 and 5, token by token."""
    rows = len(outputs["image_token_embeddings"])
    to_text, to_image = np.zeros((2, rows, rows))
    for i, patches in enumerate(outputs["image_token_embeddings"]):
        for j, words in enumerate(outputs["text_token_embeddings"]):
            words = words[outputs["text_token_mask"][j] > 0]
            to_text[i, j] = np.mean([max(p @ w for w in words) for p in patches])
            to_image[i, j] = np.mean([max(p @ w for p in patches) for w in words])
    return to_text, to_image


def as_jax(outputs):
    return {key: jnp.asarray(value, jnp.float32) for key, value in outputs.items()}


def test_similarity_is_its_loop():
    outputs = case()
    for found, expected in zip(
        LateInteraction()(as_jax(outputs), as_jax(outputs)), loops(outputs), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_loss_is_the_cross_entropy_of_both_directions():
    outputs = case()
    to_text, to_image = (7.0 * scores for scores in loops(outputs))
    own = (to_text - np.log(np.exp(to_text).sum(1, keepdims=True))).diagonal()
    back = (to_image - np.log(np.exp(to_image).sum(0, keepdims=True))).diagonal()
    mean, metrics = Softmax(similarity=LateInteraction())(as_jax(outputs), {})
    np.testing.assert_allclose(mean.compute(), -(own.mean() + back.mean()) / 2, rtol=1e-6)
    right = (to_image.argmax(0) == np.arange(ROWS)).mean()
    np.testing.assert_allclose(metrics["text_to_image_accuracy"].compute(), right, rtol=1e-6)


def test_with_one_token_it_is_clip():
    outputs = as_jax(case(patches=1, length=1))
    pooled = outputs | {
        "image_embedding": outputs["image_token_embeddings"][:, 0],
        "text_embedding": outputs["text_token_embeddings"][:, 0],
    }
    ours, _ = Softmax(similarity=LateInteraction())(outputs, {})
    clips, _ = Softmax()(pooled, {})
    np.testing.assert_allclose(ours.compute(), clips.compute(), rtol=1e-6)


@pytest.mark.parametrize("exchange, tile", [("gather", 3), ("ring", 2)])
def test_tiles_and_devices_change_neither_value_nor_gradient(exchange, tile):
    mesh = mesh_lib.MeshConfig().make(jax.devices()[:4])
    outputs = jax.device_put(as_jax(case(rows=8)), mesh_lib.replicated(mesh))

    def value(outputs, **layout):
        with mesh_lib.using(mesh):
            return Softmax(LateInteraction(), **layout)(outputs, {})[0].compute()

    whole, tiled = (
        jax.jit(jax.value_and_grad(lambda o, layout=layout: value(o, **layout)))(outputs)
        for layout in ({}, {"exchange": exchange, "tile": tile})
    )
    for a, b in zip(jax.tree.leaves(tiled), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_object_is_shown_by_the_patches_it_fills(in_world):
    source = TFRecordSource(
        "runs/scenes/test_seen-*.tfrecord", Schema(extra=("scene", "mask", "boxes"))
    )
    found = 0
    for record in (source[i] for i in range(len(source))):
        scene = scenes.Scene.from_json(record["scene"][0].decode())
        boxes = np.reshape(record["boxes"], (-1, 4))
        kinds = [item.kind for item in scene.objects]
        for label, shown in _objects(record, 4):
            found += 1
            kind = scenes.class_kind(label)
            assert len(kinds) > 1 and kinds.count(kind) == 1
            x0, y0, x1, y1 = boxes[kinds.index(kind)] * 4
            rows, columns = np.divmod(np.flatnonzero(shown), 4)
            assert (columns + 1 > x0).all() and (columns < x1).all()
            assert (rows + 1 > y0).all() and (rows < y1).all()
    assert found > 10
