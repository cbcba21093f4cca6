"""Path patterns over trees, and the digest that sees every flipped bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from big_mm import trees
from big_mm.spec import UserError

TREE = {"image": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}, "scale": jnp.ones(())}


def test_flatten_and_unflatten_are_inverse():
    flat = trees.flatten(TREE)
    assert list(flat) == ["image/bias", "image/kernel", "scale"]
    assert jax.tree.structure(trees.unflatten(flat)) == jax.tree.structure(TREE)


def test_the_first_rule_that_matches_all_of_a_path_wins():
    values = trees.match(TREE, ((".*/kernel", 1), ("image/.*", 2)), 0)
    assert trees.flatten(values) == {"image/bias": 2, "image/kernel": 1, "scale": 0}


def test_a_rule_that_matches_nothing_lists_the_paths():
    with pytest.raises(UserError, match="(?s)'kernel' matches no parameter.*image/kernel"):
        trees.match(TREE, (("kernel", 1),), 0)
    with pytest.raises(UserError, match="not a regular expression"):
        trees.match(TREE, (("(", 1),), 0)


def test_split_and_merge_are_inverse():
    chosen, rest = trees.split(TREE, trees.match(TREE, (("image/.*", True),), False))
    assert set(chosen) == {"image/bias", "image/kernel"} and set(rest) == {"scale"}
    assert jax.tree.structure(trees.merge(chosen, rest)) == jax.tree.structure(TREE)


def test_counts():
    assert trees.count(TREE) == 17 and trees.size(TREE) == 68
    assert trees.overview(TREE).splitlines()[-1].split() == ["total", "17"]


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8"]),
    bit=st.integers(0, 10**9),
    seed=st.integers(0, 2**31),
)
def test_the_digest_sees_any_flipped_bit(dtype, bit, seed):
    values = np.random.default_rng(seed).integers(0, 250, (5, 7)).astype(jnp.dtype(dtype))
    flipped = values.copy()
    raw = flipped.view(np.uint8).reshape(-1)
    raw[(bit // 8) % raw.size] ^= 1 << (bit % 8)
    before, after = (
        trees.digest({"x": jnp.asarray(values)}),
        trees.digest({"x": jnp.asarray(flipped)}),
    )
    assert before != after


def test_the_digest_sees_swapped_values_and_rows():
    x = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    digests = {trees.digest({"x": jnp.asarray(v)})["x"] for v in (x, x[::-1], x[:, ::-1], x.T)}
    assert len(digests) == 4
