"""The real compilers without the hardware: `tpu` and `cuda` describe chips that are not here to
them.

A result is kept as JSON in the user's private cache, by the hash of all that it depends on (the
program, the slice, the options, the versions): a program is compiled once.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from big_mm import mesh as mesh_lib
from big_mm.planning import collectives, cuda, hlo, tpu, traffic
from big_mm.planning.chips import GIB, Topology
from big_mm.planning.collectives import Collective
from big_mm.training.run import Prepared
from big_mm.training.workdir import private_cache

_BACKENDS = {"tpu": tpu, "cuda": cuda}
EFFORTS = {"low": -1.0, "default": 0.0}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of one program, for one chip.

    Attributes:
      refusal: why it does not fit; empty if it does.
      peak_bytes: of HBM, as the compiler schedules it; 0 where it does not fit.
      argument_bytes, code_bytes: of these, what is there all the time.
      hbm_bytes: read and written in a step (`traffic.hbm_bytes`).
      cycles: its own estimate of a step, without communication; of TPUs, with the default effort.
      collectives: of a step.
      costliest: (cycles, runs, instruction, place in the program) of the slowest instructions.
      seconds, cpu_seconds: that the compilation took.
    """

    refusal: str = ""
    peak_bytes: int = 0
    argument_bytes: int = 0
    code_bytes: int = 0
    hbm_bytes: int = 0
    cycles: int = 0
    collectives: tuple[Collective, ...] = ()
    costliest: tuple[tuple[int, int, str, str], ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def require(topologies: Sequence[Topology]) -> None:
    """Raises a UserError unless the compilers of these slices are installed."""
    for platform in dict.fromkeys(topology.platform for topology in topologies):
        _BACKENDS[platform].require()


def devices(topology: Topology) -> list[Any]:
    """The chips of a slice, as devices that programs can be compiled for."""
    require([topology])
    with _effort("default"):
        return _BACKENDS[topology.platform].devices(topology)


def lower(prepared: Prepared, platform: str) -> Any:
    """The update of a run, lowered for the devices of its mesh."""
    sharding = mesh_lib.batch_sharding(prepared.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for key, leaf in prepared.batch.items()
    }
    traced = prepared.update.trace(prepared.state, batch)
    return traced.lower(lowering_platforms=(platform,))


def compile(
    lowered: Any,
    topology: Topology,
    effort: str = "low",
    keep: pathlib.Path | None = None,
    wait: Callable[[float], None] = lambda seconds: None,
) -> Compiled:
    """Compiles, or finds what was said last time.

    Args:
      effort: "low" for memory and communication; cycles need "default", several times as long.
      keep: a file for the optimised program's text; what is in the cache is then not used.
      wait: called about once a second with the seconds passed.
    """
    file = _cache_file(lowered, topology, effort)
    if file is not None and file.exists() and keep is None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            return from_json(json.loads(file.read_text()))
    start, pool = time.monotonic(), concurrent.futures.ThreadPoolExecutor(1)
    try:
        with _effort(effort):
            future = pool.submit(_compile, lowered, topology, effort, keep)
            while not future.done():
                concurrent.futures.wait([future], timeout=1.0)
                wait(time.monotonic() - start)
        compiled = future.result()
    finally:
        pool.shutdown(wait=False)  # Ctrl-C does not wait for the compiler, which does not hear it
    if file is not None:
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(to_json(compiled)))
        temporary.replace(file)
    return compiled


def _compile(lowered: Any, topology: Topology, effort: str, keep: pathlib.Path | None) -> Compiled:
    wall, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    refusal, executable, backend = "", None, _BACKENDS[topology.platform]
    try:
        executable = lowered.compile(backend.OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = condense(str(error))
    taken = {
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime - cpu, 1),
    }
    if executable is None:
        return Compiled(refusal=refusal, **taken)
    text, memory = executable.as_text(), executable.memory_analysis()
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(text)
    peak, limit = memory.peak_memory_in_bytes / GIB, topology.chip.hbm / GIB
    if not backend.REFUSES and peak > limit:
        return Compiled(refusal=f"the program takes {peak:.2f} GiB of {limit:.2f}", **taken)
    module = hlo.Module(text, topology.platform)
    return Compiled(
        peak_bytes=memory.peak_memory_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        hbm_bytes=traffic.hbm_bytes(module),
        cycles=module.cycles() if effort == "default" else 0,
        collectives=tuple(collectives.collectives(module)),
        costliest=tuple(
            (cycles, runs, instruction.name, instruction.op_name)
            for cycles, runs, instruction in (module.costliest(20) if effort == "default" else ())
        ),
        **taken,
    )


def condense(message: str) -> str:
    """The sentence of an out-of-memory message that says how much is missing."""
    sentences = re.split(r"(?<=[.:])\s+", message.replace("\n", " "))
    telling = [s for s in sentences if re.search(r"\d(\.\d+)?[GMK]\b", s)]
    return (telling or sentences)[0].removeprefix("RESOURCE_EXHAUSTED:").strip()[:300]


def to_json(compiled: Compiled) -> dict[str, Any]:
    """As plain data."""
    return dataclasses.asdict(compiled)


def from_json(data: dict[str, Any]) -> Compiled:
    """The inverse of `to_json`."""
    collectives = tuple(
        Collective(**{**one, "devices": tuple(one["devices"])}) for one in data["collectives"]
    )
    costliest = tuple(tuple(row) for row in data["costliest"])
    return Compiled(**{**data, "collectives": collectives, "costliest": costliest})


def versions(platform: str) -> dict[str, str]:
    """Of what the estimates depend on."""
    return {"jax": importlib.metadata.version("jax"), **_BACKENDS[platform].versions()}


@contextlib.contextmanager
def _effort(effort: str) -> Iterator[None]:
    options = {
        "jax_exec_time_optimization_effort": EFFORTS[effort],
        "jax_memory_fitting_effort": EFFORTS[effort],
        # JAX writes programs for chips that are not here to its cache, but cannot read them.
        "jax_enable_compilation_cache": False,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # whether it is used is asked once
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _cache_file(lowered: Any, topology: Topology, effort: str) -> pathlib.Path | None:
    folder = private_cache("plans")
    if folder is None:
        return None
    sources = (hlo, collectives, traffic, _compile, _BACKENDS[topology.platform])
    reader = "".join(map(inspect.getsource, sources))
    said = json.dumps(versions(topology.platform))
    parts = (lowered.as_text(), repr(topology), effort, said, reader)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return folder / f"{digest}.json"
