"""The selection of tokens is its loop; all of them are the loss itself; layouts do not show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm.losses.contrastive import Softmax
from big_mm.losses.selection import Selected
from big_mm.spec import UserError
from experiments.filip.similarity import LateInteraction
from tests.experiments.test_filip import as_jax, case

LOSS = Softmax(LateInteraction())


def chosen(outputs, shares, group, valid):
    """Which patches and which words stay, row by row."""
    image, text = outputs["image_token_embeddings"], outputs["text_token_embeddings"]
    words = [x[m > 0] for x, m in zip(text, outputs["text_token_mask"], strict=True)]
    patches, kept = [], []
    for row in range(len(image)):
        start = row // group * group
        near = [i for i in range(start, start + group) if valid[i]]
        sides = (image, words, patches, image.shape[1]), (words, image, kept, text.shape[1])
        for (own, others, out, length), share in zip(sides, shares, strict=True):
            scores = [max((x @ others[i].T).max() for i in near) for x in own[row]]
            out.append(sorted(np.argsort(scores)[::-1][: round(share * length)]))
    return patches, kept


def value(loss, outputs, batch):
    return loss(outputs, batch)[0].compute()


graded = jax.jit(jax.value_and_grad(value, argnums=1), static_argnums=0)


def test_the_chosen_tokens_and_their_gradients_are_those_of_the_loop():
    outputs, valid = case(rows=8), np.array([1, 1, 0, 1, 1, 1, 1, 0])
    batch = {"mask": jnp.asarray(valid)}
    found, gradient = graded(Selected(LOSS, 0.4, 0.5, group=4), as_jax(outputs), batch)
    patches, words = chosen(outputs, (0.4, 0.5), 4, valid)
    assert {len(row) for row in patches} == {2} and {len(row) for row in words} == {1, 2}
    # The same by a mask of words, and by patches cut out.
    mask = np.zeros_like(outputs["text_token_mask"])
    for row, places in zip(mask, words, strict=True):
        row[places] = 1
    index = np.array(patches)[..., None]
    cut = np.take_along_axis(outputs["image_token_embeddings"], index, axis=1)
    few = as_jax(outputs | {"image_token_embeddings": cut, "text_token_mask": mask})
    expected, slopes = graded(LOSS, few, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(
        gradient["text_token_embeddings"], slopes["text_token_embeddings"], atol=1e-6
    )
    at = np.zeros_like(outputs["image_token_embeddings"])
    np.put_along_axis(at, index, slopes["image_token_embeddings"], axis=1)
    np.testing.assert_allclose(gradient["image_token_embeddings"], at, atol=1e-6)


def test_all_tokens_are_the_loss_itself():
    outputs = as_jax(case())
    every = Selected(LOSS, 1.0, 1.0, group=3)
    assert graded(every, outputs, {})[0] == graded(LOSS, outputs, {})[0]
    assert every.couples == LOSS.couples


def test_tiles_and_devices_change_neither_value_nor_gradient():
    mesh = mesh_lib.MeshConfig().make(jax.devices()[:4])
    alone = as_jax(case(rows=8))
    split = {
        name: jax.device_put(x, mesh_lib.batch_sharding(mesh) if x.ndim else None)
        for name, x in alone.items()
    }
    whole = graded(Selected(LOSS, 0.4, 0.5, group=4), alone, {})
    with mesh_lib.using(mesh):  # groups of two devices each
        tiled = Softmax(LateInteraction(), exchange="ring", tile=2)
        parts = graded(Selected(tiled, 0.4, 0.5, group=4), split, {})
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_what_makes_no_sense():
    with pytest.raises(UserError, match="does not compare the tokens"):
        Selected(Softmax())
    with pytest.raises(UserError, match="text_share=1.5 must be above 0 and at most 1"):
        Selected(LOSS, text_share=1.5)
    with pytest.raises(UserError, match="group=4 does not divide the batch of 6 rows"):
        Selected(LOSS, group=4)(as_jax(case()), {})
