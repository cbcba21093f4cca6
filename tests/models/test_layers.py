"""What the stack's options may and may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import trees
from big_mm.models import layers
from big_mm.spec import UserError
from tests.models import tiny_models as tiny

X = jax.random.normal(jax.random.key(0), (2, 5, tiny.WIDTH))
CONTEXT = jax.random.normal(jax.random.key(1), (2, 7, 6))


@functools.cache
def gradient(**options):
    """Value and gradient of a stack with the same parameters whatever the options."""
    stack = tiny.blocks(cross_attention=True, **options)
    params = tiny.blocks(cross_attention=True).init(jax.random.key(2), X, context=CONTEXT)

    def loss(params):
        return (stack.apply(params, X, context=CONTEXT, train=True) ** 2).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    "options",
    [{"remat": name} for name in layers.REMAT if name != "none"]
    + [{"unroll": 2}, {"unroll": 2, "remat": "full"}],
    ids=str,
)
def test_options_that_change_no_number(options):
    for a, b in zip(jax.tree.leaves(gradient()), jax.tree.leaves(gradient(**options)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_remat_recomputes():
    def matmuls(name):
        stack = tiny.blocks(remat=name)
        params = stack.init(jax.random.key(0), X)
        loss = jax.grad(lambda p: stack.apply(p, X).sum())
        return str(jax.make_jaxpr(loss)(params)).count("dot_general")

    assert matmuls("full") > matmuls("dots_no_batch") > matmuls("dots") == matmuls("none")
    assert matmuls("full") > matmuls("context") == matmuls("hidden") > matmuls("attention")


def test_a_masked_context_is_not_there():
    stack = tiny.blocks(cross_attention=True)
    params = jax.jit(stack.init)(jax.random.key(2), X, context=CONTEXT)
    run = jax.jit(stack.apply)
    mask = (jnp.arange(7) < 4)[None, None, None]
    found = run(params, X, context=CONTEXT, context_mask=mask)
    np.testing.assert_allclose(found, run(params, X, context=CONTEXT[:, :4]), atol=1e-5)
    assert np.abs(found - run(params, X, context=CONTEXT)).max() > 1e-3


def test_parameters_are_stacked_by_layer():
    params = tiny.blocks(depth=3).init(jax.random.key(0), X)["params"]
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(params))
    kernel = params["layers"]["mlp"]["up"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])


def test_layers_run_in_order():
    stack, one = tiny.blocks(depth=2), tiny.blocks(depth=1)
    params = stack.init(jax.random.key(0), X)
    y = X
    for i in range(2):
        y = one.apply(jax.tree.map(lambda p, i=i: p[i : i + 1], params), y)
    np.testing.assert_allclose(stack.apply(params, X), y, atol=1e-5)


def test_dropout_only_while_training():
    stack = tiny.blocks(dropout=0.5)
    params = stack.init(jax.random.key(0), X)
    run = functools.partial(stack.apply, params, X)
    first, second = (run(train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(run(), run())


def test_layer_scale_is_of_each_branch():
    made = tiny.blocks(layer_scale=0.5, cross_attention=True, self_mlp=True)
    x, context = jax.random.normal(jax.random.key(0), (2, 2, 5, tiny.WIDTH))
    params = jax.jit(made.init)(jax.random.key(1), x, None, context)["params"]["layers"]
    scales = {name for name in params if name.endswith("_layer_scale")}
    branches = ("attention", "self_mlp", "cross_attention", "mlp")
    assert scales == {f"{name}_layer_scale" for name in branches}
    assert all(np.all(params[name] == 0.5) for name in scales)
    none = params | {name: jnp.zeros_like(params[name]) for name in scales}
    run = jax.jit(made.apply)
    np.testing.assert_array_equal(run({"params": {"layers": none}}, x, None, context), x)
    for name in scales:
        one = none | {name: params[name]}
        assert np.abs(run({"params": {"layers": one}}, x, None, context) - x).max() > 1e-3, name


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"qkv_bias": False}, {"attention/qkv"}),
        ({"out_bias": False}, {"attention/out"}),
        ({"norm_bias": False}, {"attention_norm", "mlp_norm"}),
        ({"use_bias": False, "out_bias": True}, {"attention/qkv", "mlp/up", "mlp/down"}),
    ],
)
def test_biases_apart(options, without):
    x = jnp.zeros((1, 2, tiny.WIDTH))
    init = functools.partial(tiny.blocks(**options).init, jax.random.key(0))
    paths = trees.flatten(jax.eval_shape(init, x)["params"]["layers"])
    biased = {path.removesuffix("/bias") for path in paths if path.endswith("/bias")}
    everything = {path.rpartition("/")[0] for path in paths}
    assert everything - biased == without


def test_no_bias():
    params = tiny.blocks(use_bias=False).init(jax.random.key(0), X)["params"]
    biases = [path for path in trees.flatten(params) if path.endswith("bias")]
    assert biases and all("norm" in path for path in biases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width=16 is not a multiple of heads=3"),
        ({"remat": "some"}, "'some' is none of none, full, dots"),
        ({"activation": "relu"}, "'relu' is none of gelu"),
        ({"implementation": "flash"}, "'flash' is none of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        tiny.blocks(**options)


def test_a_closed_gate_shuts_the_context_out():
    made = tiny.blocks(cross_attention=True, cross_gate=True)
    params = jax.jit(made.init)(jax.random.key(2), X, context=CONTEXT)["params"]["layers"]
    np.testing.assert_array_equal(params["gate"], np.zeros(2))
    run = jax.jit(
        lambda gate, context: made.apply(
            {"params": {"layers": params | {"gate": gate}}}, X, context=context
        )
    )
    closed, half = jnp.zeros(2), jnp.array([0.3, -0.2])
    np.testing.assert_array_equal(run(closed, CONTEXT), run(closed, 2 * CONTEXT))
    assert np.abs(run(half, CONTEXT) - run(half, 2 * CONTEXT)).max() > 1e-3
    # An open gate is an ungated stack whose output projection is as much smaller.
    attention = params["cross_attention"]
    out = jax.tree.map(
        lambda x: jnp.tanh(half).reshape(2, *[1] * (x.ndim - 1)) * x, attention["out"]
    )
    plain = {k: v for k, v in params.items() if k != "gate"}
    plain["cross_attention"] = attention | {"out": out}
    stack = tiny.blocks(cross_attention=True)
    expected = jax.jit(stack.apply)({"params": {"layers": plain}}, X, context=CONTEXT)
    np.testing.assert_allclose(run(half, CONTEXT), expected, atol=1e-5)


def test_a_target_that_sees_no_context_gets_nothing_from_it():
    stack = tiny.blocks(depth=1, cross_attention=True)
    params = jax.jit(stack.init)(jax.random.key(2), X, context=CONTEXT)
    run = jax.jit(stack.apply)
    mask = (jnp.arange(5) > 1)[None, None, :, None]
    found = [run(params, X, context=factor * CONTEXT, context_mask=mask) for factor in (1, 2)]
    differ = np.abs(found[0] - found[1]).max(axis=(0, 2)) > 1e-6
    assert differ.tolist() == [False, False, True, True, True]


def test_inserted_tokens_have_layers_to_stand_in():
    deep = jnp.zeros((2, 1, tiny.WIDTH))
    with pytest.raises(UserError, match="each of 2 layers, but a stack of depth=2 has 1"):
        tiny.blocks().init(jax.random.key(0), X, inserted=deep)
