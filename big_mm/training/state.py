"""What a run carries from step to step, where it lies on the mesh, and its sharded creation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from big_mm import mesh as mesh_lib
from big_mm import trees
from big_mm.training import guard
from big_mm.training.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything that is checkpointed and resumed: arrays, or shapes, shardings, whatever a map
    over the tree puts in their place.

    Attributes:
      step: int32; updates made or refused, so the seed of the next one.
      params: all parameters, nested.
      opt_state: of the trainable parameters, which it names by flat paths.
      ema: {path: running average of a trainable parameter}, or {} when off.
      extra: the objective's own (teacher, queue, ...).
      skipped: int32; updates that the guard refused.
      bad: int32; damaged records replaced so far.
      jumped: int32; batches left out by rollbacks. The position in the data is step + jumped.
      guard: what the guard remembers, see `guard.init`.
    """

    step: Any
    params: Any
    opt_state: Any
    ema: Any
    extra: Any
    skipped: Any
    bad: Any
    jumped: Any
    guard: Any

    def averaged_params(self) -> Any:
        """The parameters to evaluate: the running average where there is one."""
        return trees.unflatten(trees.flatten(self.params) | self.ema)


def init_params(objective: Any, batch: Any, seed: int) -> Any:
    """Fresh parameters; pure, so that they can be traced for shapes or jitted with shardings.

    `batch` holds shapes (anything with .shape and .dtype).
    """
    zeros = {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in batch.items()}
    return objective.init(_rng(seed, 0), zeros)


def create(objective: Any, optimizer: Optimizer, params: Any, *, seed: int, ema: bool) -> State:
    """The state of step 0 around `params`; pure."""
    trainable, _ = trees.split(params, optimizer.trainable(params))
    zero = jnp.zeros((), jnp.int32)
    return State(
        step=zero,
        params=params,
        opt_state=optimizer.transform(params).init(trainable),
        ema=trainable if ema else {},
        extra=objective.init_extra(_rng(seed, 1), params),
        skipped=zero,
        bad=zero,
        jumped=zero,
        guard=guard.init(),
    )


def step_rng(seed: int, step: Int[Array, ""]) -> Array:
    """The generator of a step, whatever happened before it."""
    return jax.random.fold_in(_rng(seed, 2), step)


def _rng(seed: int, purpose: int) -> Array:
    return jax.random.fold_in(jax.random.key(seed), purpose)


def shardings(state: State, mesh: mesh_lib.AnyMesh, rules: trees.Rules) -> State:
    """The state's tree of shardings; rules are over parameter paths.

    Moments, averages and teachers lie as the parameter whose path their own path ends with.
    """
    params = trees.flatten(mesh_lib.shardings(state.params, mesh, rules))
    shapes = {path: leaf.shape for path, leaf in trees.flatten(state.params).items()}

    def place(path: str, leaf: Any) -> NamedSharding:
        keys = path.split("/")
        suffixes = ("/".join(keys[i:]) for i in range(1, len(keys)))
        like = next((s for s in suffixes if shapes.get(s) == leaf.shape), None)
        return mesh_lib.fully_sharded(leaf.shape, mesh) if like is None else params[like]

    placed = [place(path, leaf) for path, leaf in trees.flatten(state).items()]
    return jax.tree.unflatten(jax.tree.structure(state), placed)


def with_shardings(state: State, placed: State) -> State:
    """Shapes that also say where each leaf lies: what a restore is told."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        placed,
    )


_COUNTERS = ("step", "skipped", "bad", "jumped")


def to_items(state: State) -> dict[str, dict[str, Any]]:
    """{item: {path: leaf}}: the state, or its shapes, as a checkpoint stores it."""
    return {
        "params": trees.flatten(state.params),
        "ema": trees.flatten(state.ema),
        "optimizer": trees.flatten(state.opt_state),
        "extra": trees.flatten(state.extra),
        "progress": {name: getattr(state, name) for name in _COUNTERS},
        "guard": dict(state.guard),
    }


def from_items(like: State, items: dict[str, dict[str, Any]]) -> State:
    """The inverse of `to_items`, with the structure of `like`; empty items may be absent."""

    def rebuilt(tree: Any, name: str) -> Any:
        leaves = [items[name][path] for path in trees.flatten(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), leaves)

    return State(
        params=rebuilt(like.params, "params"),
        ema=rebuilt(like.ema, "ema"),
        opt_state=rebuilt(like.opt_state, "optimizer"),
        extra=rebuilt(like.extra, "extra"),
        guard=dict(items["guard"]),
        **items["progress"],
    )


def with_counters(state: State, *, jumped: int, rollbacks: int) -> State:
    """A state that lies further on in the data than its step says, see `guard`."""

    def set_to(leaf: Any, value: int) -> Any:
        return jax.device_put(np.asarray(value, leaf.dtype), leaf.sharding)

    kept = state.guard | {"rollbacks": set_to(state.guard["rollbacks"], rollbacks)}
    return dataclasses.replace(state, jumped=set_to(state.jumped, jumped), guard=kept)


def overview(state: State, optimizer: Optimizer) -> str:
    """The parameter table, with what the optimizer's rules say of each."""
    notes = optimizer.describe(state.params)
    return trees.overview(state.params, lambda path, leaf: notes[path])
