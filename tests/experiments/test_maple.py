"""MaPLe: prompts by layer and tower as its public code has them, and the gradient's one path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.prompted import PromptedDualEncoder
from tests.experiments.test_coop import narrow, prompted, texts, towers
from tests.models import tiny_models as tiny

IMAGE = tiny.batch()["image"]


def by_layer(blocks, params, x, deep, start, mask=None):
    """The stack as a loop that cuts and joins, as the paper's code does it."""
    for i in range(blocks.depth):
        if 0 < i <= len(deep):
            new = jnp.broadcast_to(deep[i - 1], (len(x), *deep[i - 1].shape))
            x = jnp.concatenate([x[:, :start], new, x[:, start + new.shape[1] :]], axis=1)
        one = tiny.blocks(depth=1)
        layer = {"params": jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params)}
        length = x.shape[1]
        x = jax.jit(one.apply)(layer, x, mask)
        assert x.shape[1] == length
    return x


def test_each_layer_has_its_own_prompts_in_place_of_the_last_ones():
    stack, start = tiny.blocks(depth=3), 1
    x = jax.random.normal(jax.random.key(0), (2, 6, tiny.WIDTH))
    deep = jax.random.normal(jax.random.key(1), (1, 2, tiny.WIDTH))
    params = jax.jit(stack.init)(jax.random.key(2), x)["params"]
    mask = jnp.tril(jnp.ones((6, 6), bool))[None, None]
    run = jax.jit(lambda deep: stack.apply({"params": params}, x, mask, inserted=deep, insert_at=1))
    expected = by_layer(stack, params, x, deep, start, mask)
    np.testing.assert_allclose(run(deep), expected, atol=1e-5)
    assert np.abs(run(deep) - run(2 * deep)).max() > 1e-3
    # None behind the first layer: nothing is replaced.
    np.testing.assert_array_equal(run(deep[:0]), jax.jit(stack.apply)({"params": params}, x, mask))


def test_image_prompts_stand_behind_the_patches():
    tower = tiny.vision("gap", pre_norm=True)
    params = tiny.variables(DualEncoder(**towers() | {"image": tower}))["params"]["image"]
    prompts = jax.random.normal(jax.random.key(0), (2, 2, tiny.WIDTH))
    run = jax.jit(lambda prompts: tower.apply({"params": params}, IMAGE, prompts=prompts))
    found = run(prompts)
    assert found["tokens"].shape == found["patches"].shape == (3, 4, tiny.WIDTH)
    np.testing.assert_allclose(found["pooled"], found["patches"].mean(axis=1), atol=1e-5)
    assert np.abs(found["pooled"] - run(-prompts)["pooled"]).max() > 1e-3
    other = prompts.at[1].set(prompts[0])  # in the second layer alone
    assert np.abs(run(other)["pooled"] - found["pooled"]).max() > 1e-4


@pytest.mark.parametrize("name", ["text", "image"])
def test_each_row_can_have_prompts_of_its_own(name):
    tower = towers()[name]
    params = tiny.variables(DualEncoder(**towers()))["params"][name]
    inputs = narrow(texts([5], [6, 8], [10])) if name == "text" else (IMAGE,)
    own = jax.random.normal(jax.random.key(0), (3, 2, 2, tiny.WIDTH))  # of three rows, two layers
    run = jax.jit(lambda prompts: tower.apply({"params": params}, *inputs, prompts=prompts))
    found = run(own)
    for row in range(3):
        np.testing.assert_allclose(found["pooled"][row], run(own[row])["pooled"][row], atol=1e-5)


def test_depth_1_without_image_prompts_is_coop():
    coop, variables, _ = prompted(length=2)
    maple, other, _ = prompted(length=2, depth=2, image_prompts=True)
    shallow = PromptedDualEncoder(**towers(), length=2, depth=1, image_prompts=False)
    tokens = narrow(texts([5], [6, 8]))
    first = {
        "params": other["params"] | {"prompts": {"first": other["params"]["prompts"]["first"]}}
    }
    assert shallow == coop and set(variables["params"]["prompts"]) == {"first"}
    run = tiny.method(coop, "encode_text")
    deep = tiny.method(maple, "encode_text")(other, *tokens)["text_embedding"]
    assert np.abs(run(first, *tokens)["text_embedding"] - deep).max() > 1e-4


def test_image_prompts_get_their_gradient_through_the_coupling():
    maple, variables, _ = prompted(length=2, depth=2, image_prompts=True)
    prompts = variables["params"]["prompts"]

    def loss(prompts):
        params = {"params": variables["params"] | {"prompts": prompts}}
        return maple.apply(params, IMAGE, method="encode_image")["image_embedding"].sum()

    grads = jax.jit(jax.grad(loss))(prompts)
    assert all(np.abs(grads[name]).max() > 0 for name in ("first", "deep", "kernel", "bias"))
    uncoupled = prompts | {"kernel": jnp.zeros_like(prompts["kernel"])}
    grads = jax.jit(jax.grad(loss))(uncoupled)
    assert not np.any(grads["first"]) and not np.any(grads["deep"])


@pytest.mark.parametrize("layer", [0, 1])
def test_the_coupling_is_a_linear_layer_each(layer):
    maple, variables, _ = prompted(length=2, depth=2, image_prompts=True)
    prompts = variables["params"]["prompts"]
    text = jnp.concatenate([prompts["first"][None], prompts["deep"]])

    def image_prompts(model):
        return model.prompts.image(model._text_prompts())

    found = jax.jit(lambda: maple.apply(variables, method=image_prompts))()
    expected = text[layer] @ prompts["kernel"][layer] + prompts["bias"][layer]
    np.testing.assert_allclose(found[layer], expected, atol=1e-6)
