"""Optimizers against their papers' formulas in NumPy; rules by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import trees
from big_mm.spec import UserError
from big_mm.training import optimizer

PARAMS = {
    "tower": {"kernel": np.ones((2, 3, 4)), "bias": np.ones((2, 4)), "scale": np.ones((2, 4))},
    "embedding": np.full((5, 4), 2.0),
    "position_embedding": np.ones((6, 4)),
    "log_scale": np.array(1.5),
}


def params():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)


def gradients(seed):
    rng = np.random.default_rng(seed)
    return {p: rng.normal(size=leaf.shape) for p, leaf in trees.flatten(PARAMS).items()}


def run(chosen, steps=4):
    """The parameters by path after some steps at a constant rate, as NumPy."""
    flat = trees.flatten(params())
    transform = chosen.transform(params())
    state = transform.init(flat)
    for step in range(steps):
        grads = {p: jnp.asarray(g, jnp.float32) for p, g in gradients(step).items()}
        direction, state = transform.update(grads, state, flat)
        flat = optimizer.apply(flat, direction, chosen.rate(step, steps))
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


def reference(path_rates, path_decays, direction, steps=4, clip=None):
    """Decoupled decay around `direction(gradient, memory, step) -> (direction, memory)`."""
    values = {p: np.array(leaf, float) for p, leaf in trees.flatten(PARAMS).items()}
    memory = {path: None for path in values}
    for step in range(steps):
        grads = gradients(step)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        for path, value in values.items():
            move, memory[path] = direction(factor * grads[path], memory[path], step)
            values[path] = value - path_rates(path) * (move + path_decays(path) * value)
    return values


def decayed(path):
    return 0.1 if path in ("tower/kernel", "embedding") else 0.0


def adam(b1, b2, eps):
    def direction(g, memory, step):
        m, v = (0.0, 0.0) if memory is None else memory
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        mean, var = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        return mean / (np.sqrt(var) + eps), (m, v)

    return direction


def assert_close(found, expected):
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_adamw():
    chosen = optimizer.AdamW(learning_rate=0.01, weight_decay=0.1, clip_norm=0.5)
    expected = reference(lambda path: 0.01, decayed, adam(0.9, 0.98, 1e-8), clip=0.5)
    assert_close(run(chosen), expected)


def test_rules_by_path():
    chosen = optimizer.AdamW(
        learning_rate=0.01,
        weight_decay=0.1,
        clip_norm=None,
        multipliers=(("tower/bias", 3.0), ("tower/.*", 0.5)),
        decays=((".*bias", 2.0),),
    )
    expected = reference(
        lambda path: 0.01 * (3 if path == "tower/bias" else 0.5 if "tower" in path else 1),
        lambda path: 0.2 if path == "tower/bias" else 0.0,
        adam(0.9, 0.98, 1e-8),
    )
    assert_close(run(chosen), expected)


def test_lion():
    def direction(g, memory, step):
        m = 0.0 if memory is None else memory
        return np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g

    chosen = optimizer.Lion(
        learning_rate=0.01, weight_decay=0.1, clip_norm=None, moment_dtype="float32"
    )
    assert_close(run(chosen), reference(lambda path: 0.01, decayed, direction))


def test_adafactor_factors_the_second_moment():
    chosen = optimizer.Adafactor(learning_rate=0.01, min_factored=4, clip_norm=None)
    shapes = {"layers/kernel": jnp.ones((3, 8, 16)), "bias": jnp.ones((16,))}
    state = trees.flatten(chosen.transform(trees.unflatten(shapes)).init(shapes))
    sizes = {path: leaf.shape for path, leaf in state.items() if path.endswith("layers/kernel")}
    assert (3, 8) in sizes.values() and (3, 16) in sizes.values()
    full = [leaf for leaf in state.values() if leaf.shape == (3, 8, 16)]
    assert [leaf.dtype for leaf in full] == [jnp.bfloat16], "the momentum only"


def test_adafactor_follows_its_formula_where_it_does_not_factor():
    def direction(g, memory, step):
        v, m = (0.0, 0.0) if memory is None else memory
        decay = 1 - (step + 1) ** -0.8
        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        move = g / np.sqrt(v)
        move /= max(1.0, np.sqrt((move**2).mean()))
        m = 0.9 * m + 0.1 * move
        return m, (v, m)

    chosen = optimizer.Adafactor(
        learning_rate=0.01, weight_decay=0.1, clip_norm=None, moment_dtype="float32"
    )
    assert_close(run(chosen), reference(lambda path: 0.01, decayed, direction))


def test_first_moment_in_bfloat16():
    chosen = optimizer.AdamW(learning_rate=0.01, moment_dtype="bfloat16")
    flat = trees.flatten(params())
    state = trees.flatten(chosen.transform(params()).init(flat))
    dtypes = {path: leaf.dtype for path, leaf in state.items() if path.endswith("tower/kernel")}
    assert sorted(map(str, dtypes.values())) == ["bfloat16", "float32"]


@pytest.mark.parametrize("field", ["multipliers", "decays", "frozen"])
def test_a_rule_that_matches_nothing_lists_the_paths(field):
    chosen = optimizer.AdamW(learning_rate=0.01, **{field: (("towr/.*", True),)})
    with pytest.raises(UserError, match=r"towr(.|\n)*tower/kernel"):
        chosen.trainable(params())
        chosen.transform(params())


def test_everything_frozen_is_an_error():
    with pytest.raises(UserError, match="freeze every parameter"):
        optimizer.AdamW(learning_rate=0.01, frozen=((".*", True),)).trainable(params())


def test_the_parameter_table_says_what_the_rules_say():
    chosen = optimizer.AdamW(
        learning_rate=1.0,
        weight_decay=0.1,
        frozen=(("embedding", True),),
        multipliers=((".*s", 2.0),),
    )
    notes = chosen.describe(params())
    assert notes["embedding"] == "frozen"
    assert notes["tower/kernel"] == "lr x1, decay 0.1"
    assert notes["tower/bias"] == "lr x2, decay 0"
