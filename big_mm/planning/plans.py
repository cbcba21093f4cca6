"""A plan: one run on one slice, what the compiler says of it and what follows from that."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from big_mm import flops, trees
from big_mm import mesh as mesh_lib
from big_mm.planning import compiler, example
from big_mm.planning.chips import Topology
from big_mm.planning.compiler import Compiled
from big_mm.spec import UserError
from big_mm.training import run as runs
from big_mm.training.run import Prepared
from big_mm.training.state import State


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one run on one slice needs, of one step and, unless said otherwise, of one chip.

    From the compiler: `fits`, `refusal`, `peak_hbm_bytes`, the "program" and "temporaries" of
    `memory`, `collectives`, `hbm_bytes` (counted in its program) and `estimated_seconds` (its own
    cycles; None at low effort and for GPUs). From the trace: `flops`, `model_flops`. From shapes
    and shardings: the rest of `memory`. Modelled, from these and the chip's peaks: `seconds`,
    `step_seconds_bound` and `mfu_bound`, which no run can beat.

    Attributes:
      settings: what a sweep has set.
      memory: {kind: bytes}.
      flops, model_flops: operations executed, and those that the model itself needs.
      collectives: {kind@group size: {"runs", "bytes"}}, bytes as sent to neighbours in a ring.
      seconds: {"compute", "hbm", "ici"}: what each would take alone at its peak.
      step_seconds_bound: the longest of them.
      mfu_bound: share of the peak that the model's operations reach if a step takes just that.
      estimated_mfu: the same for `estimated_seconds`.
      dollars_per_million: of samples, at the bound and the price given.
    """

    topology: str
    chips: int
    mesh: dict[str, int]
    settings: dict[str, Any]
    batch_size: int
    fits: bool
    refusal: str
    hbm_limit_bytes: int
    peak_hbm_bytes: int
    memory: dict[str, int]
    flops: float
    model_flops: float
    hbm_bytes: int
    collectives: dict[str, dict[str, int]]
    collective_bytes: int
    seconds: dict[str, float]
    step_seconds_bound: float | None
    mfu_bound: float | None
    estimated_seconds: float | None
    estimated_mfu: float | None
    dollars_per_million: float | None
    effort: str
    compile_seconds: float
    compile_cpu_seconds: float
    costliest: tuple[tuple[int, int, str, str], ...]

    @property
    def label(self) -> str:
        """The slice, the mesh and the settings in a few words."""
        sizes = "x".join(str(self.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
        return " ".join([self.topology, sizes, *(f"{k}={v}" for k, v in self.settings.items())])


def lay_out(
    config: ml_collections.ConfigDict, topology: Topology, batch: Mapping[str, np.ndarray]
) -> Prepared:
    """The run of a config on the chips of a slice.

    Raises:
      UserError: it cannot be laid out there: sizes that do not divide.
    """
    run = example.build(config)
    runs.check_divisible(run, run.mesh.abstract(topology.chips))
    return runs.lay_out(run, dict(batch), run.mesh.make(compiler.devices(topology)))


def refused(config: ml_collections.ConfigDict, topology: Topology, settings: Any, why: str) -> Plan:
    """The plan of a run that cannot be laid out or whose state alone is too large."""
    sizes = {axis: config.mesh.get(axis, 1) for axis in ("data", "fsdp", "tensor")}
    return _plan(
        topology, sizes, settings, config.batch_size, "", Compiled(refusal=why), {}, 0.0, 0.0
    )


def make(
    prepared: Prepared,
    topology: Topology,
    settings: Mapping[str, Any],
    *,
    effort: str = "low",
    price: float | None = None,
    keep: pathlib.Path | None = None,
    wait: Callable[[float], None] = lambda seconds: None,
) -> Plan:
    """Compiles a run that is laid out.

    Args:
      price: dollars for a chip and an hour.
      keep, wait: as of `compiler.compile`.
    """
    chips, mesh = topology.chips, dict(prepared.mesh.shape)
    if topology.platform == "cuda":
        effort = "default"  # that compiler has no other
    memory = held(prepared.state, prepared.batch, mesh_lib.batch_devices(prepared.mesh))
    size = prepared.run.batch_size
    if sum(memory.values()) > topology.chip.hbm:
        why = f"the state and the batch alone take {sum(memory.values()) / 2**30:.2f} GiB"
        return _plan(
            topology, mesh, settings, size, effort, Compiled(refusal=why), memory, 0.0, 0.0
        )
    params = prepared.state.params
    needed = flops.model_flops(prepared.run.objective, params, runs.inputs(prepared.batch)) / chips
    update = prepared.update.__wrapped__
    executed = flops.executed_flops(update, prepared.state, prepared.batch)
    lowered = compiler.lower(prepared, topology.platform)
    compiled = compiler.compile(lowered, topology, effort, keep, wait)
    if not compiled.refusal:
        held_bytes = compiled.argument_bytes + compiled.code_bytes
        memory["program"] = compiled.code_bytes
        memory["temporaries"] = max(compiled.peak_bytes - held_bytes, 0)
    places = [tuple(device.coords) for device in prepared.mesh.devices.flat]
    return _plan(
        topology,
        mesh,
        settings,
        size,
        effort,
        compiled,
        memory,
        sum(executed.values()) / chips,
        needed,
        places,
        price,
    )


def held(state: State, batch: Mapping[str, Any], pieces: int) -> dict[str, int]:
    """Bytes on each chip of what stays there from step to step, by kind, and of the batch, which
    is cut into `pieces`.
    """
    kinds = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "average": state.ema,
        "extra": state.extra,
    }
    out = {kind: trees.size(jax.tree.map(_shard, tree)) for kind, tree in kinds.items()}
    out["batch"] = trees.size(batch) // pieces
    return {kind: size for kind, size in out.items() if size}


def _shard(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def _plan(
    topology: Topology,
    mesh: Mapping[str, int],
    settings: Mapping[str, Any],
    batch_size: int,
    effort: str,
    compiled: Compiled,
    memory: Mapping[str, int],
    executed: float,
    needed: float,
    places: list[tuple[int, ...]] | None = None,
    price: float | None = None,
) -> Plan:
    chip = topology.chip
    collectives: dict[str, dict[str, int]] = {}
    ici = 0.0
    for one in compiled.collectives:
        total = collectives.setdefault(f"{one.kind}@{one.group}", {"runs": 0, "bytes": 0})
        total["runs"] += one.runs
        total["bytes"] += one.runs * one.sent
        group = [places[device] for device in one.devices] if places else []
        ici += one.runs * one.sent / topology.bandwidth(group)
    fits = not compiled.refusal
    seconds, bound, estimate = {}, None, None
    if fits:
        seconds = {
            "compute": executed / chip.peak,
            "hbm": compiled.hbm_bytes / chip.hbm_bandwidth,
            "ici": ici,
        }
        bound = max(seconds.values())
        estimate = compiled.cycles / chip.clock if compiled.cycles else None
    hours = bound * topology.chips / 3600 if bound else None
    return Plan(
        topology=topology.name,
        chips=topology.chips,
        mesh=dict(mesh),
        settings=dict(settings),
        batch_size=batch_size,
        fits=fits,
        refusal=compiled.refusal,
        hbm_limit_bytes=int(chip.hbm),
        peak_hbm_bytes=compiled.peak_bytes,
        memory=dict(memory),
        flops=executed,
        model_flops=needed,
        hbm_bytes=compiled.hbm_bytes,
        collectives=dict(sorted(collectives.items())),
        collective_bytes=sum(total["bytes"] for total in collectives.values()),
        seconds=seconds,
        step_seconds_bound=bound,
        mfu_bound=needed / (chip.peak * bound) if bound else None,
        estimated_seconds=estimate,
        estimated_mfu=needed / (chip.peak * estimate) if estimate else None,
        dollars_per_million=price * hours * 1e6 / batch_size if price and hours else None,
        effort=effort,
        compile_seconds=compiled.seconds,
        compile_cpu_seconds=compiled.cpu_seconds,
        costliest=compiled.costliest,
    )


def best(plans: list[Plan]) -> Plan | None:
    """The plan to choose: of those that fit, the one with the least chip time for a sample (or the
    least dollars, if all are priced), by the compiler's estimate where all have one, else by the
    bound; of equals (within 1 %) the one that leaves most memory free.
    """
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        return None
    by_estimate = all(plan.estimated_seconds for plan in fitting)
    priced = all(plan.dollars_per_million for plan in fitting)

    def cost(plan: Plan) -> float:
        bound = plan.step_seconds_bound
        unit = plan.dollars_per_million if priced else bound * plan.chips / plan.batch_size
        return unit * (plan.estimated_seconds / bound if by_estimate else 1.0)

    least = min(map(cost, fitting))
    near = [plan for plan in fitting if cost(plan) <= 1.01 * least]
    return min(near, key=lambda plan: plan.peak_hbm_bytes / plan.hbm_limit_bytes)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError unless the config is of a run."""
    missing = [key for key in ("objective", "data", "contract", "optimizer") if key not in config]
    if missing:
        raise UserError(f"the config has no {', '.join(missing)}: a plan is of a whole run")
