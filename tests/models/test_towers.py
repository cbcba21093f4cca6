"""Vision and text towers, and the attentional pooler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.models import text, vision
from big_mm.models.pooling import AttentionalPooler
from big_mm.spec import UserError
from tests.models import tiny_models as tiny

IMAGE, TOKENS, TOKEN_MASK = tiny.batch().values()


def apply(model, *args, **options):
    variables = init(model, *args)
    return jax.jit(functools.partial(model.apply, **options))(variables, *args)


def init(model, *args):
    return jax.jit(model.init)(jax.random.key(0), *args)


def test_patches_are_the_convolutions():
    pixels = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    convolved = jax.lax.conv_general_dilated(
        pixels, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    patches = vision.patchify(pixels, 4) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(patches, convolved.reshape(2, 9, 5), atol=1e-4)


def test_images_are_normalised_inside():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    raw, normalised = tiny.vision(mean=mean, std=std), tiny.vision(mean=(0.0,) * 3, std=(1.0,) * 3)
    variables = init(raw, IMAGE)
    by_hand = 255 * (IMAGE / 255 - jnp.array(mean)) / jnp.array(std)
    for image in (IMAGE, IMAGE.astype(jnp.float32)):
        np.testing.assert_allclose(
            raw.apply(variables, image)["tokens"],
            normalised.apply(variables, by_hand)["tokens"],
            atol=1e-4,
        )


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"pool": "gap"}, 4), ({"pool": "map"}, 4), ({"pool": "cls"}, 5), ({"cls_token": True}, 5)],
)
@pytest.mark.parametrize("position", vision.POSITIONS)
def test_vision_shapes(options, tokens, position):
    made = tiny.vision(**options, position=position, pre_norm=True, patch_bias=False)
    out = jax.eval_shape(lambda: made.init_with_output(jax.random.key(0), IMAGE))[0]
    assert out["tokens"].shape == (3, tokens, tiny.WIDTH)
    if "pool" in options:
        assert out["pooled"].shape == (3, tiny.WIDTH)


def test_image_pooling():
    cls, gap = (apply(tiny.vision(pool), IMAGE) for pool in ("cls", "gap"))
    np.testing.assert_allclose(cls["pooled"], cls["tokens"][:, 0], atol=1e-5)
    np.testing.assert_allclose(gap["pooled"], gap["tokens"].mean(axis=1), atol=1e-5)
    patches_only = apply(tiny.vision("gap", cls_token=True), IMAGE)
    tokens = patches_only["tokens"][:, 1:]
    np.testing.assert_allclose(patches_only["pooled"], tokens.mean(axis=1), atol=1e-5)


def test_registers_are_read_and_not_given():
    made = tiny.vision("cls", registers=3)
    variables = init(made, IMAGE)
    out = jax.jit(made.apply)(variables, IMAGE)
    assert out["tokens"].shape == (3, 5, tiny.WIDTH)
    assert variables["params"]["position_embedding"].shape == (5, tiny.WIDTH)
    variables["params"]["registers"] = jax.random.normal(jax.random.key(1), (3, tiny.WIDTH))
    assert np.abs(jax.jit(made.apply)(variables, IMAGE)["pooled"] - out["pooled"]).max() > 1e-3


def test_a_cls_token_without_position():
    made = tiny.vision("cls", cls_position=False)
    params = init(made, IMAGE)["params"]
    assert params["position_embedding"].shape == (4, tiny.WIDTH)
    zero = jnp.zeros((1, tiny.WIDTH))
    same = {**params, "position_embedding": jnp.concatenate([zero, params["position_embedding"]])}
    np.testing.assert_allclose(
        jax.jit(made.apply)({"params": params}, IMAGE)["pooled"],
        jax.jit(tiny.vision("cls").apply)({"params": same}, IMAGE)["pooled"],
        atol=1e-6,
    )


def test_two_cls_tokens():
    made = tiny.vision("cls", cls_tokens=2, registers=1)
    variables = init(made, IMAGE)
    assert variables["params"]["position_embedding"].shape == (2 + 4, tiny.WIDTH)
    out = jax.jit(made.apply)(variables, IMAGE)
    assert out["tokens"].shape == (3, 6, tiny.WIDTH)
    np.testing.assert_array_equal(out["cls"], out["tokens"][:, :2])
    np.testing.assert_array_equal(out["patches"], out["tokens"][:, 2:])
    np.testing.assert_array_equal(out["pooled"], out["cls"][:, 0])
    assert np.abs(out["cls"][:, 0] - out["cls"][:, 1]).max() > 1e-3
    with pytest.raises(UserError, match="cls_tokens=0 must be at least 1"):
        tiny.vision("cls", cls_tokens=0)


def test_masked_patches_are_not_seen():
    made = tiny.vision(mask_token=True)
    variables = init(made, IMAGE)
    run = jax.jit(made.apply)
    mask = jnp.array([[True, False, False, True]] * 3)
    hidden = IMAGE.at[:, :8, :8].set(7).at[:, 8:, 8:].set(200)
    np.testing.assert_array_equal(
        run(variables, IMAGE, mask)["tokens"], run(variables, hidden, mask)["tokens"]
    )
    plain, seen = jax.jit(tiny.vision().apply), jnp.zeros_like(mask)
    for found in (run(variables, IMAGE), run(variables, IMAGE, seen)):
        np.testing.assert_array_equal(found["tokens"], plain(variables, IMAGE)["tokens"])
    token = jax.random.normal(jax.random.key(1), (tiny.WIDTH,))
    other = {"params": {**variables["params"], "mask_token": token}}
    changed = np.abs(run(other, IMAGE, mask)["tokens"] - run(variables, IMAGE, mask)["tokens"])
    assert changed.max() > 1e-3
    with pytest.raises(UserError, match="a patch_mask needs a tower with mask_token=True"):
        tiny.vision().apply(variables, IMAGE, mask)


def test_the_lowest_are_masked():
    scores = jnp.array([[0.1, 0.9, 0.5, -0.8], [0.0, 0.0, 0.0, 0.0]])
    expected = [[True, False, False, True], [True, True, False, False]]
    np.testing.assert_array_equal(vision.mask_lowest(scores, 0.5), expected)
    assert vision.mask_lowest(scores, 0.01).sum(axis=1).tolist() == [1, 1]
    drawn = vision.mask_lowest(jax.random.uniform(jax.random.key(0), (50, 16)), 0.75)
    assert drawn.sum(axis=1).tolist() == [12] * 50
    assert drawn.sum(axis=0).min() > 20 and len(np.unique(drawn, axis=0)) > 40


@pytest.mark.parametrize("position", vision.POSITIONS)
def test_images_of_another_size(position):
    made = tiny.vision("cls", any_size=True, position=position)
    variables = init(made, IMAGE)
    run = jax.jit(made.apply)
    plain = jax.jit(tiny.vision("cls", position=position).apply)
    np.testing.assert_array_equal(
        run(variables, IMAGE)["tokens"], plain(variables, IMAGE)["tokens"]
    )
    larger = jnp.tile(IMAGE, (1, 2, 2, 1))
    assert run(variables, larger)["patches"].shape == (3, 16, tiny.WIDTH)
    if position == "learned":
        # As a tower of that size would have it with these positions, resized once and for all.
        table = variables["params"]["position_embedding"]
        table = jnp.concatenate([table[:1], vision.resize_grid(table[1:], 16)])
        params = {**variables["params"], "position_embedding": table}
        other = vision.VisionTransformer(tiny.blocks(), image_size=32, patch_size=8, pool="cls")
        expected = jax.jit(other.apply)({"params": params}, larger)["tokens"]
        np.testing.assert_allclose(run(variables, larger)["tokens"], expected, atol=1e-5)
    for image in (IMAGE[:, :12, :12], IMAGE[:, :8]):
        with pytest.raises(UserError, match="for a model of image_size=16, any_size=True"):
            made.apply(variables, image)


def test_the_norm_after_the_pooling():
    before, after = tiny.vision("gap"), tiny.vision("gap", norm_after_pool=True)
    variables = tiny.variables(tiny.dual_encoder())["params"]["image"]
    variables = {k: v for k, v in variables.items() if k != "pooler"}
    found = jax.jit(after.apply)({"params": variables}, IMAGE)
    # The norm of a mean of tokens before their norm, which no output holds.
    plain = {**variables, "norm": jax.tree.map(jnp.zeros_like, variables["norm"])}
    assert not np.any(jax.jit(after.apply)({"params": plain}, IMAGE)["pooled"])
    scale, bias = variables["norm"]["scale"], variables["norm"]["bias"]
    normed = (found["pooled"] - bias) / scale
    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(normed.std(axis=1), 1, atol=1e-3)
    other = jax.jit(before.apply)({"params": variables}, IMAGE)
    np.testing.assert_array_equal(found["tokens"], other["tokens"])
    assert np.abs(found["pooled"] - other["pooled"]).max() > 1e-2


def test_a_ragged_border_is_not_seen():
    made = vision.VisionTransformer(tiny.blocks(), image_size=19, patch_size=8, ragged=True)
    image = jnp.pad(IMAGE, ((0, 0), (0, 3), (0, 3), (0, 0)), constant_values=200)
    variables = init(made, image)
    inner = jax.jit(tiny.vision().apply)(variables, IMAGE)
    np.testing.assert_array_equal(jax.jit(made.apply)(variables, image)["tokens"], inner["tokens"])


def test_text_read_at_a_token():
    variables = init(tiny.text("first"), TOKENS, TOKEN_MASK)
    # Of two equal tokens the first counts; without any, the first of all.
    tokens = TOKENS.at[0, 2].set(19).at[0, 5].set(19).at[1].set(3).at[2].set(3)
    places = {"first": [0, 0, 0], "last": [7, 7, 7], "argmax": [2, 0, 0], "eos": [2, 0, 0]}
    for pool, at in places.items():
        made = tiny.text(pool, eos_id=19 if pool == "eos" else None)
        out = jax.jit(made.apply)(variables, tokens, TOKEN_MASK)
        np.testing.assert_array_equal(out["pooled"], out["tokens"][np.arange(3), at])


def test_sincos_positions_tell_rows_from_columns():
    grid = vision.sincos2d(3, 4, 16)
    assert grid.shape == (12, 16)
    assert len(np.unique(grid.round(4), axis=0)) == 12
    # The first half depends on the column only, the second on the row.
    np.testing.assert_allclose(grid[0, :8], grid[4, :8])
    np.testing.assert_allclose(grid[0, 8:], grid[1, 8:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny.vision(position="rope"), "'rope' is none of learned, sincos2d"),
        (lambda: tiny.vision("max"), "'max' is none of none, gap, cls, map"),
        (lambda: tiny.text("max"), "'max' is none of none, cls, first, last, eos, argmax, mean"),
        (lambda: vision.VisionTransformer(tiny.blocks(), image_size=20, patch_size=8), "multiple"),
        (lambda: AttentionalPooler(2, 16, 3), "multiple of heads=3"),
        (lambda: tiny.text(blocks=tiny.blocks(norm="mid")), "'mid' is none of pre, post"),
        (lambda: tiny.text("none", rep_size=3), "rep_size=3 needs a pool"),
        (lambda: tiny.vision(rep_size=3), "rep_size=3 needs a pool"),
        (lambda: tiny.vision(position="sincos2d", position_grid=2), "needs position='learned'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_image_of_another_size():
    with pytest.raises(UserError, match=r"16x32 pixels.*image_size=16"):
        jax.eval_shape(tiny.vision().init, jax.random.key(0), IMAGE.repeat(2, axis=2))


@pytest.mark.parametrize("causal", [True, False])
def test_text_pooling(causal):
    lengths = np.asarray(TOKEN_MASK.sum(axis=1))
    outs = {
        pool: apply(tiny.text(pool, causal=causal), TOKENS, TOKEN_MASK)
        for pool in ("eos", "last", "mean")
    }
    for row, length in enumerate(lengths):
        tokens = outs["eos"]["tokens"][row]
        expected = {"eos": tokens[length - 1], "last": tokens[-1], "mean": tokens[:length].mean(0)}
        for pool, value in expected.items():
            np.testing.assert_allclose(outs[pool]["pooled"][row], value, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "indifferent"),
    [
        ({"pool": "eos"}, True),
        ({"pool": "mean"}, True),
        ({"pool": "cls"}, True),
        ({"pool": "cls", "causal": False}, True),
        ({"pool": "mean", "causal": False}, True),
        ({"pool": "mean", "causal": False, "mask_padding": False}, False),
        ({"pool": "last"}, False),
    ],
    ids=str,
)
def test_which_towers_read_padding(options, indifferent):
    noisy = jnp.where(TOKEN_MASK, TOKENS, TOKENS + 7)
    made = tiny.text(**options)
    variables = init(made, TOKENS, TOKEN_MASK)
    a, b = (tiny.method(made)(variables, x, TOKEN_MASK)["pooled"] for x in (TOKENS, noisy))
    np.testing.assert_allclose(a[0], b[0], atol=1e-5)  # a row without padding
    assert np.allclose(a, b, atol=1e-5) == indifferent


def test_a_bidirectional_tower_sees_the_future():
    changed = TOKENS.at[:, 2].add(1)
    for causal in (True, False):
        made = tiny.text("eos", causal=causal)
        variables = init(made, TOKENS, TOKEN_MASK)
        a, b = (tiny.method(made)(variables, x, TOKEN_MASK)["tokens"] for x in (TOKENS, changed))
        assert np.allclose(a[:, :2], b[:, :2], atol=1e-6) == causal


def test_a_mask_given_replaces_the_towers_own():
    made = tiny.text("none", causal=False)
    variables = init(made, TOKENS, TOKEN_MASK)
    run = tiny.method(made)
    given = run(variables, TOKENS, TOKEN_MASK, mask=text.causal_mask(tiny.LENGTH))
    causal = tiny.method(tiny.text("none"))(variables, TOKENS, TOKEN_MASK)
    np.testing.assert_allclose(given["tokens"], causal["tokens"], atol=1e-5)


@pytest.mark.parametrize("mlp_dim", [0, 32])
def test_pooler_reads_a_set(mlp_dim):
    x = jax.random.normal(jax.random.key(0), (2, 6, 10))
    pooler = AttentionalPooler(3, tiny.WIDTH, 2, mlp_dim=mlp_dim)
    variables = init(pooler, x)
    run = tiny.method(pooler)
    out = run(variables, x)
    assert out.shape == (2, 3, tiny.WIDTH)
    np.testing.assert_allclose(out, run(variables, x[:, ::-1]), atol=1e-5)
    assert not np.allclose(out[:, 0], out[:, 1])


def test_a_pooler_normalises_what_it_is_told():
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 6))
    for norms in ((), ("query", "context"), ("output",)):
        pooler = AttentionalPooler(queries=3, width=8, heads=2, norms=norms)
        variables = init(pooler, x)
        names = {name for name in variables["params"] if "norm" in name}
        assert names == {{"output": "norm"}.get(norm, f"{norm}_norm") for norm in norms}
        run = jax.jit(pooler.apply)
        found = run(variables, x)
        # What is normalised does not know its scale.
        same = np.allclose(run(variables, 7 * x), found, atol=1e-3)
        assert same == ("context" in norms)
        variables["params"]["query"] *= 7
        assert np.allclose(run(variables, x), found, atol=1e-3) == ("query" in norms)
        assert np.allclose(found.mean(axis=-1), 0, atol=1e-4) == ("output" in norms)
    with pytest.raises(UserError, match="norms='values' is none of query, context, output"):
        AttentionalPooler(queries=1, width=8, heads=2, norms=("values",))


def test_post_norm_blocks_are_berts():
    tower = tiny.text(
        "first",
        blocks=tiny.blocks(norm="post", depth=1, activation="gelu_exact", norm_eps=1e-12),
        causal=False,
        token_types=2,
        position_offset=2,
        rep_size=5,
    )
    variables = init(tower, TOKENS, TOKEN_MASK)
    keys = jax.random.split(jax.random.key(1), 99)
    leaves, tree = jax.tree.flatten(variables["params"])
    params = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=False)]
    params = jax.tree.unflatten(tree, params)
    p, layer = params, jax.tree.map(lambda x: x[0], params["blocks"]["layers"])

    def norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]

    def attend(x, p):
        query, key, value = (
            jnp.einsum("blw,wihd->iblhd", x, p["qkv"]["kernel"]) + (p["qkv"]["bias"][:, None, None])
        )
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / 8**0.5
        scores = jnp.where(TOKEN_MASK[:, None, None] != 0, scores, -jnp.inf)
        out = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)
        return jnp.einsum("bthd,hdw->btw", out, p["out"]["kernel"]) + p["out"]["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    x = p["embedding"][TOKENS] + p["position_embedding"][2:] + p["type_embedding"][0]
    x = norm(x, p["norm"])
    x = norm(x + attend(x, layer["attention"]), layer["attention_norm"])
    hidden = jax.nn.gelu(dense(x, layer["mlp"]["up"]), approximate=False)
    x = norm(x + dense(hidden, layer["mlp"]["down"]), layer["mlp_norm"])
    out = tower.apply({"params": params}, TOKENS, TOKEN_MASK)
    np.testing.assert_allclose(out["tokens"], x, atol=1e-5)
    np.testing.assert_allclose(out["pooled"], jnp.tanh(dense(x[:, 0], p["pre_logits"])), atol=1e-5)


def test_post_norm_layers_decode_step_by_step():
    tower = tiny.text("none", blocks=tiny.blocks(norm="post"), token_types=1, position_offset=2)
    variables = init(tower, TOKENS, TOKEN_MASK)
    whole, cache = tower.apply(variables, TOKENS, TOKEN_MASK)["tokens"], {}
    step = jax.jit(functools.partial(tower.apply, method="decode", mutable=["cache"]))
    for i in range(tiny.LENGTH):
        out, cache = step(variables | cache, TOKENS[:, i : i + 1], jnp.int32(i))
        np.testing.assert_allclose(out["tokens"][:, 0], whole[:, i], atol=1e-5)


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_positions_of_another_grid(pool):
    own, other = tiny.vision(pool), tiny.vision(pool, position_grid=3)
    params = init(other, IMAGE)["params"]
    cls = int(pool == "cls")
    table = params["position_embedding"]
    assert table.shape == (cls + 9, tiny.WIDTH)
    resized = vision.resize_grid(table[cls:], 4)
    by_hand = params | {"position_embedding": jnp.concatenate([table[:cls], resized])}
    np.testing.assert_allclose(
        other.apply({"params": params}, IMAGE)["pooled"],
        own.apply({"params": by_hand}, IMAGE)["pooled"],
        atol=1e-6,
    )


def test_a_representation_layer():
    plain, made = tiny.vision("gap"), tiny.vision("gap", rep_size=5)
    params = init(made, IMAGE)["params"]
    dense = params["pre_logits"]
    rest = {key: value for key, value in params.items() if key != "pre_logits"}
    pooled = plain.apply({"params": rest}, IMAGE)["pooled"]
    found = made.apply({"params": params}, IMAGE)["pooled"]
    np.testing.assert_allclose(found, jnp.tanh(pooled @ dense["kernel"] + dense["bias"]), atol=1e-6)
    assert found.shape[1] == made.output_width
