"""A queue keeps the last rows that were pushed, wherever its end is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.objectives import queue
from big_mm.spec import UserError

ROW = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "id": jax.ShapeDtypeStruct((), jnp.int32)}


def batch(start, rows=3):
    ids = jnp.arange(start, start + rows, dtype=jnp.int32)
    return {"id": ids, "x": jnp.stack([ids, -ids], axis=1).astype(jnp.float32)}


@pytest.mark.parametrize("size", [3, 5, 9])
def test_the_last_rows_are_there_and_each_is_whole(size):
    made, push = queue.init(size, ROW), jax.jit(queue.push)
    for step in range(5):
        made = push(made, batch(1 + 3 * step), jnp.arange(3) != (step % 3))
        pushed = np.arange(1, 4 + 3 * step)
        valid = np.array([i % 3 != (i // 3) % 3 for i in range(len(pushed))])
        last, kept = pushed[-size:], valid[-size:]
        found = np.asarray(made["id"])[np.asarray(made[queue.VALID])]
        assert sorted(found.tolist()) == last[kept].tolist()
        np.testing.assert_array_equal(made["x"], np.stack([made["id"], -made["id"]], axis=1))
        assert int(made[queue.POINTER]) == 3 * (step + 1) % size


def test_what_does_not_fit_is_refused():
    made = queue.init(2, ROW)
    with pytest.raises(UserError, match="a queue of 2 rows does not hold a batch of 3"):
        queue.push(made, batch(0), jnp.ones(3, bool))
    with pytest.raises(UserError, match=r"a queue of \['id', 'x'\] is given \['id'\]"):
        queue.push(made, {"id": batch(0)["id"]}, jnp.ones(3, bool))
    with pytest.raises(UserError, match="its size must be at least 1"):
        queue.init(0, ROW)
