"""What `--config.steps=0` does: everything up to the first step, and a summary of it."""

import jax
import ml_collections
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

    Nothing is written. With `folder`, whether the run could continue there is checked too.

    Raises:
      UserError: whatever would stop the run before its first step.
    """
    run = spec.build(config)
    if folder is not None:
        workdir.check_same_run(epath.Path(folder), config)
    example, _ = loop.open_data(run, 0)
    prepared = prepare(run, example)
    parts = [
        states.overview(prepared.state, run.optimizer),
        "",
        f"devices   {dict(prepared.mesh.shape)}",
        f"data      {run.data.num_records:,} records, {run.batch_size:,} a step",
        *(f"batch     {key} {_show(leaf)}" for key, leaf in sorted(prepared.batch.items())),
        *(f"outputs   {key} {_show(leaf)}" for key, leaf in sorted(prepared.outputs.items())),
        *_memory(prepared),
        "the config is good; no step was taken",
    ]
    return "\n".join(parts)


def _memory(prepared: Prepared) -> list[str]:
    """Bytes a device, from the shardings and, for small models, from the compiled step."""
    state = jax.tree.map(_shard, prepared.state)
    lines = [
        f"memory    {_bytes(trees.size(state.params))} of parameters on each device",
        f"memory    {_bytes(trees.size(state))} of parameters, moments and averages",
    ]
    sharding = mesh_lib.batch_sharding(prepared.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for key, leaf in prepared.batch.items()
    }
    lowered = prepared.update.lower(prepared.state, batch)
    if trees.count(state.params) > _MAX_COMPILED:
        return [*lines, "memory    of activations: see python -m big_mm.plan"]
    analysis = lowered.compile().memory_analysis()
    if analysis is not None:
        lines.append(
            f"memory    {_bytes(analysis.temp_size_in_bytes)} of activations and gradients"
        )
    return lines


def _shard(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)


def _show(leaf: jax.ShapeDtypeStruct) -> str:
    return f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {leaf.dtype}"


def _bytes(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
