"""A queue of rows that outlive their batch, as part of `extra`: more negatives than a batch holds.

A teacher's embeddings change slowly enough to be compared with steps later (arXiv:1911.05722). The
queue is a dict of arrays [size, ...]: sharded, checkpointed and resumed like everything in `extra`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from big_mm.spec import UserError

Queue = dict[str, Array]
VALID, POINTER = "valid", "pointer"


def init(size: int, rows: Mapping[str, Any]) -> Queue:
    """An empty queue: no row is `valid` [size], and the next goes to `pointer` [].

    Args:
      rows: a row of each kind by name; anything with .shape and .dtype.
    """
    if size < 1:
        raise UserError(f"a queue of {size} rows: its size must be at least 1")
    queue = {name: jnp.zeros((size, *row.shape), row.dtype) for name, row in rows.items()}
    return queue | {VALID: jnp.zeros(size, bool), POINTER: jnp.zeros((), jnp.int32)}


def push(
    queue: Queue, rows: Mapping[str, Shaped[Array, "batch ..."]], valid: Bool[Array, " batch"]
) -> Queue:
    """The queue with a batch in place of its oldest rows; what is not `valid` is padding there too.

    Raises:
      UserError: the batch is larger than the queue, or its rows are of other kinds.
    """
    kinds = sorted(set(queue) - {VALID, POINTER})
    if sorted(rows) != kinds:
        raise UserError(f"a queue of {kinds} is given {sorted(rows)}")
    size, count = len(queue[VALID]), len(valid)
    if count > size:
        raise UserError(f"a queue of {size} rows does not hold a batch of {count}")
    at = (queue[POINTER] + jnp.arange(count)) % size
    new = {name: queue[name].at[at].set(row) for name, row in (*rows.items(), (VALID, valid))}
    return new | {POINTER: (queue[POINTER] + count) % size}
