"""Plans without a compiler: parameters, operations and activations by module, from shapes and the
trace alone.

The activations are what the forward pass leaves for the backward pass, as the rematerialisation
policy has it: the residuals of JAX's own linearisation, attributed to the module that made them.
What a compiler adds (the recomputed block, buffers of collectives, padding) is not in them.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from big_mm import flops, trees
from big_mm import mesh as mesh_lib
from big_mm.planning import plans
from big_mm.training import run as runs
from big_mm.training.run import Run
from big_mm.training.state import State


@dataclasses.dataclass(frozen=True)
class Row:
    """One module; figures of the global batch.

    Attributes:
      parameters: their number.
      flops: operations of the forward pass.
      saved_bytes: activations kept for the backward pass.
    """

    module: str
    parameters: int
    flops: int
    saved_bytes: int


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The rows, and for one chip: what is held all the time, the gradients and the activations of a
    microbatch.

    Attributes:
      memory: {kind: bytes}, all modelled.
    """

    rows: tuple[Row, ...]
    memory: dict[str, int]

    @property
    def bytes(self) -> int:
        """Of one chip, in all."""
        return sum(self.memory.values())


def analyse(run: Run, batch: Mapping[str, Any], state: State) -> Analysis:
    """The table of a run, and its memory on each chip of the mesh on which `state` lies."""
    params, held = state.params, batch
    batch = runs.inputs(batch)
    counts: collections.Counter[str] = collections.Counter()
    for path, leaf in trees.flatten(params).items():
        counts[module_of(path)] += math.prod(leaf.shape)
    operations: collections.Counter[str] = collections.Counter()
    for scope, amount in flops.forward_flops(run.objective, params, batch).items():
        operations[module_of(_below_model(scope))] += amount
    saved: collections.Counter[str] = collections.Counter()
    for scope, amount in residuals(run.objective, params, batch).items():
        saved[module_of(_below_model(scope))] += amount
    names = dict.fromkeys([*counts, *operations, *saved])
    rows = tuple(Row(name, counts[name], operations[name], saved[name]) for name in names)
    pieces = mesh_lib.batch_devices(state.step.sharding.mesh)
    memory = plans.held(state, held, pieces)
    memory["gradients"] = memory["parameters"]
    memory["activations"] = sum(saved.values()) // (pieces * run.accumulate)
    return Analysis(rows, memory)


def residuals(objective: Any, params: Any, batch: Mapping[str, Any]) -> dict[str, int]:
    """{scope: bytes} of what the forward pass keeps for the backward pass; parameters and the batch
    themselves, which are there anyway, do not count.
    """

    def linearised(params: Any, batch: Any, rng: Any) -> Any:
        return jax.vjp(lambda p: objective.loss(p, {}, batch, rng)[0], params)

    rng = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(linearised)(params, dict(batch), rng).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    scopes = {}
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            scopes[variable] = flops.module_path(str(equation.source_info.name_stack))
    found: collections.Counter[str] = collections.Counter()
    kept = (v for v in jaxpr.outvars[1:] if not hasattr(v, "val"))  # a literal is not kept
    for variable in dict.fromkeys(kept):
        if variable in scopes and hasattr(variable.aval.dtype, "itemsize"):
            aval = variable.aval
            found[scopes[variable]] += math.prod(aval.shape) * aval.dtype.itemsize
    return dict(found)


def module_of(path: str) -> str:
    """The part of the model that a parameter or a scope belongs to: its first module, with the
    layers of a tower ("image/blocks") apart. What no module holds is of the losses.
    """
    parts = [part for part in path.split("/") if part and "." not in part]
    if not parts:
        return "losses"
    return "/".join(parts[: 2 if parts[1:2] == ["blocks"] else 1])


def _below_model(scope: str) -> str:
    """A scope without the model's own name in front."""
    return "/".join(scope.split("/")[1:])
