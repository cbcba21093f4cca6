"""What `--config.steps=0` does: everything up to the first step, and a summary of it."""

from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from etils import epath

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.training import loop, workdir
from big_mm.training import state as states
from big_mm.training.run import Prepared, prepare

# Above this a compilation for its memory figures takes minutes: `python -m big_mm.plan` does that.
_MAX_COMPILED = 100_000_000


def check(config: ml_collections.ConfigDict, folder: str | None = None) -> str:
    """Builds the run, reads a batch, traces a step; the parameter table, shapes and memory.

    A model that fits is also initialised (from `init_from` too) and its step compiled. Nothing is
    written. With `folder`, whether the run could continue there is checked as well.

    Raises:
      UserError: whatever would stop the run before its first step.
    """
    run = spec.build(config)
    if folder is not None:
        workdir.check_same_run(epath.Path(folder), config)
    example, batches = loop.open_data(run, 0)
    prepared = prepare(run, example)
    parts = [
        states.overview(prepared.state, run.optimizer),
        "",
        f"devices   {dict(prepared.mesh.shape)}",
        f"data      {run.data.num_records:,} records, {run.batch_size:,} a step",
        *(f"batch     {key} {_show(leaf)}" for key, leaf in sorted(prepared.batch.items())),
        *(f"outputs   {key} {_show(leaf)}" for key, leaf in sorted(prepared.outputs.items())),
        *(f"memory    {line} on each device" for line in _memory(prepared, batches)),
        "the config is good; no step was taken",
    ]
    return "\n".join(parts)


def _memory(prepared: Prepared, batches: Iterator[dict[str, np.ndarray]]) -> list[str]:
    """Bytes by the shardings and, for a model that compiles soon, by the compiler."""
    run, shard = prepared.run, jax.tree.map(_shard, prepared.state)
    lines = [
        f"{_bytes(trees.size(shard.params))} of parameters",
        f"{_bytes(trees.size(shard))} of parameters, moments and averages",
    ]
    if trees.count(prepared.state.params) > _MAX_COMPILED:
        sharding = mesh_lib.batch_sharding(prepared.mesh)
        prepared.update.lower(
            prepared.state,
            {
                key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                for key, leaf in prepared.batch.items()
            },
        )
        return [*lines, "(python -m big_mm.plan tells that of activations)"]
    state = prepared.create()
    batch, _ = next(loop.device_batches(run, prepared.mesh, batches))
    lowered = prepared.update.lower(state, run.objective.prepare(state, batch))
    analysis = lowered.compile().memory_analysis()
    if analysis is not None:
        lines.append(f"{_bytes(analysis.temp_size_in_bytes)} of activations and gradients")
    return lines


def _shard(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def _show(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"


def _bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
