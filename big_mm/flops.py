"""Floating-point operations of a program, counted in its trace, whatever will run it.

Only matrix products, convolutions and attention kernels count, a multiplication and an addition
each; elementwise work, softmaxes and the optimizer do not. Masked attention counts in full. What
no output needs is not counted, what runs in a loop is counted as often as it runs, and what runs on
every device of a `shard_map` is counted for each of them: figures are of the global program.
"""

import collections
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.interpreters import partial_eval

from big_mm.spec import UserError

# cuDNN's fused attention: products of [batch, target, heads, dim] by [batch, source, heads, dim].
_CUDNN_PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_fwd": 2,
    "dot_product_attention_bwd_wrapper": 5,  # the scores are computed again
    "dot_product_attention_bwd": 5,
}


def model_flops(objective: Any, params: Any, batch: Mapping[str, Any]) -> int:
    """Operations that one training step needs: three times those of the forward pass (the backward
    pass has two products for each of its own). Rematerialisation and accumulation, which repeat
    work to save memory, do not count.

    Args:
      params, batch: arrays or their shapes.
    """
    return sum(forward_flops(objective, params, batch).values()) * 3


def forward_flops(objective: Any, params: Any, batch: Mapping[str, Any]) -> dict[str, int]:
    """Operations of the objective's forward pass by scope: modules joined by "/"."""

    def forward(params: Any, batch: Any, rng: Any) -> Any:
        return objective.loss(params, {}, batch, rng)[0]

    rng = jax.eval_shape(lambda: jax.random.key(0))
    return executed_flops(forward, params, dict(batch), rng)


def executed_flops(function: Callable[..., Any], *args: Any) -> dict[str, int]:
    """Operations of a function by scope, rematerialisation included.

    Args:
      function: traced, not run.
      args: arrays or their shapes.

    Raises:
      UserError: a loop holds products and its number of turns is not known before it runs.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    found: collections.Counter[str] = collections.Counter()
    for scope, flops in _products(live, ""):
        found[scope] += flops
    return dict(found)


def _products(jaxpr: Any, outer: str) -> Iterator[tuple[str, int]]:
    """(scope, operations) of every product in the program."""
    for equation in jaxpr.eqns:
        scope = f"{outer}/{equation.source_info.name_stack}"
        if own := _own(equation):
            yield module_path(scope), own
            continue
        inner = [list(_products(j, scope)) for j in _inner(equation)]
        if not any(inner):
            continue
        repeats = _repeats(equation)
        if equation.primitive.name == "cond":  # one branch runs; the costliest may
            inner = [max(inner, key=lambda found: sum(flops for _, flops in found))]
        for found in inner:
            yield from ((path, repeats * flops) for path, flops in found)


def module_path(scope: str) -> str:
    """A scope without what transformations add to it: "jvp(CoCa)/image/checkpoint/layers"
    becomes "CoCa/image/layers".
    """
    parts = re.split(r"[/()]+", scope)
    added = {"", "jvp", "transpose", "vmap", "checkpoint", "rematted_computation", "remat", "jit"}
    return "/".join(part for part in parts if part not in added and not part.startswith("jit"))


def _own(equation: Any) -> int:
    """Operations of one equation by itself."""
    name, shapes = equation.primitive.name, [v.aval.shape for v in equation.invars]
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.params["dimension_numbers"].rhs_spec  # (out, in, *spatial)
        return 2 * out * math.prod(shapes[1][axis] for axis in kernel[1:])
    if name in _CUDNN_PRODUCTS:
        return 2 * _CUDNN_PRODUCTS[name] * math.prod(shapes[0]) * shapes[1][1]
    return 0


def _inner(equation: Any) -> list[Any]:
    """The programs that an equation calls."""
    leaves = (leaf for value in equation.params.values() for leaf in jax.tree.leaves(value))
    programs = (getattr(leaf, "jaxpr", leaf) for leaf in leaves)
    return [program for program in programs if hasattr(program, "eqns")]


def _repeats(equation: Any) -> int:
    """How often an equation runs the programs that it calls."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        axes = params.get("newly_manual_axes") or params["manual_axes"]  # JAX 0.10.2 has the first
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        grid = params["grid_mapping"].grid
        if all(isinstance(size, int) for size in grid):
            return math.prod(grid)
    if name in ("while", "pallas_call"):
        raise UserError(
            "matrix products in a while loop cannot be counted, the number of its turns is not "
            "known before it runs: write it as jax.lax.scan, or fori_loop with constant bounds"
        )
    return 1
