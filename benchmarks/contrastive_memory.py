"""Memory and time of the contrastive losses by batch size, layout and tile.

    python benchmarks/contrastive_memory.py
    python benchmarks/contrastive_memory.py --devices 8 --batch 8192 65536 --dim 512
    python benchmarks/contrastive_memory.py --loss sigmoid --tile 4096 --out contrastive.json

Value, metrics and gradients with respect to both embeddings, scale and bias, on whatever devices
there are, or on N fake CPU devices (--devices N). Implementations: "whole" holds the matrix of
logits and is differentiated by JAX; "gather" and "ring" hold a tile of it (big_mm/losses).

"memory" is what the compiled program takes on one device beside its arguments and results, which
are the embeddings and their gradients: the compiler's own account. "measured" is the peak of
all memory in use, where the device reports it. "of matmul" is the time relative to 8 B^2 D
floating-point operations at the rate that a plain float32 matmul of the same precision reached in
the same rounds: what values and gradients take if the logits are computed twice ("whole" computes
them once, and its own limit is 6 B^2 D, or 0.75). All run in turns, in one process, since an
accelerator belongs to one; figures are medians over rounds. What would run longer than --seconds or
does not fit is compiled only, and says so. Exits 1 if implementations differ.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from big_mm import mesh as mesh_lib
from big_mm.losses.contrastive import Sigmoid, Softmax

LOSSES = {"softmax": Softmax, "sigmoid": Sigmoid}
EMBEDDINGS = ("image_embedding", "text_embedding")
MATMUL = 2048
AGREE = 1e-4


@dataclasses.dataclass
class Program:
    """One implementation at one batch size: compiled, and perhaps run."""

    loss: str
    batch: int
    name: str
    compiled: Any
    seconds: list[float] = dataclasses.field(default_factory=list)
    limits: list[float] = dataclasses.field(default_factory=list)  # of the matmul in the same round
    value: float | None = None
    measured_bytes: int | None = None

    @property
    def memory(self) -> int:
        """Bytes beside arguments and results, on one device."""
        return self.compiled.memory_analysis().temp_size_in_bytes

    @property
    def total(self) -> int:
        """Bytes on one device."""
        analysis = self.compiled.memory_analysis()
        return self.memory + analysis.argument_size_in_bytes + analysis.output_size_in_bytes

    def run(self, inputs: Any) -> float:
        """Seconds until everything is computed."""
        start = time.perf_counter()
        (value, _), _ = jax.block_until_ready(self.compiled(*inputs))
        self.value = float(value)
        return time.perf_counter() - start


def shapes(rows: int, dim: int, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and batch as the losses read them, in shapes."""

    def array(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    split, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    outputs = dict.fromkeys(EMBEDDINGS, array((rows, dim), jnp.float32, split))
    outputs |= dict.fromkeys(("logit_scale", "logit_bias"), array((), jnp.float32, whole))
    return outputs, {"id": array((rows,), jnp.int32, split)}


def inputs(rows: int, dim: int, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """Random unit vectors; one row in eight shares its id with another."""

    def make(key: Any) -> Any:
        image, text = jax.random.normal(key, (2, rows, dim))
        units = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text + image / 8)]
        scalars = {"logit_scale": jnp.float32(14.3), "logit_bias": jnp.float32(-10)}
        ids = jnp.arange(rows, dtype=jnp.int32) % max(1, rows - rows // 16)
        return dict(zip(EMBEDDINGS, units, strict=True)) | scalars, {"id": ids}

    placed = jax.tree.map(lambda x: x.sharding, shapes(rows, dim, mesh))
    return jax.jit(make, out_shardings=placed)(jax.random.key(0))


def prepare(loss: str, rows: int, dim: int, exchange: str, tile: int, mesh: Mesh) -> Program:
    """Compiles value and gradients."""
    term = LOSSES[loss](positives="id", exchange=exchange, tile=tile)

    def value(outputs: Any, batch: Any) -> Any:
        mean, metrics = term(outputs, batch)
        return mean.compute(), metrics

    def function(outputs: Any, batch: Any) -> Any:
        with mesh_lib.using(mesh):
            return jax.value_and_grad(value, has_aux=True)(outputs, batch)

    compiled = jax.jit(function).lower(*shapes(rows, dim, mesh)).compile()
    return Program(loss, rows, exchange if tile else "whole", compiled)


def matmul(mesh: Mesh) -> tuple[Callable[[], float], int]:
    """A plain float32 matmul on every device: (seconds of one run, its operations)."""
    rows = MATMUL * mesh.size
    split, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    left = jax.device_put(np.ones((rows, MATMUL), np.float32), split)
    right = jax.device_put(np.ones((MATMUL, MATMUL), np.float32), whole)
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST))

    def run() -> float:
        start = time.perf_counter()
        product(left, right).block_until_ready()
        return time.perf_counter() - start

    run()
    return run, 2 * rows * MATMUL**2


def peak_in_use() -> int | None:
    """Bytes that the first device has used at most; None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def capacity(mesh: Mesh) -> float:
    """Bytes that a device can have; of a host's memory, half is for others."""
    if limit := (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"):
        return limit
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 / mesh.size


def race(programs: list[Program], dim: int, mesh: Mesh, rounds: int, seconds: float) -> None:
    """Runs what can be run, in turns, and notes what came of it."""
    reference, operations = matmul(mesh)
    rate = operations / min(reference() for _ in range(3))
    # The peak only ever rises: in this order a rise is the program's own.
    programs.sort(key=lambda program: program.total)
    for rows in sorted({program.batch for program in programs}):
        expected = 8 * rows**2 * dim / rate
        able = [p for p in programs if p.batch == rows and p.total < capacity(mesh)]
        if expected > seconds or not able:
            continue
        data = inputs(rows, dim, mesh)
        for program in able:
            before = peak_in_use()
            program.run(data)
            after = peak_in_use()
            program.measured_bytes = after if after != before else None
        for _ in range(rounds):
            unit = reference() / operations * 8 * rows**2 * dim
            for program in able:
                program.seconds.append(program.run(data))
                program.limits.append(unit)
        jax.tree.map(lambda x: x.delete(), data)


def row_of(program: Program) -> dict[str, Any]:
    """What the table says of a program, as data."""
    ran = bool(program.seconds)
    ratios = [a / b for a, b in zip(program.seconds, program.limits, strict=True)]
    return {
        "loss": program.loss,
        "batch": program.batch,
        "implementation": program.name,
        "memory_bytes": program.memory,
        "measured_peak_bytes": program.measured_bytes,
        "seconds": statistics.median(program.seconds) if ran else None,
        "of_matmul": statistics.median(ratios) if ran else None,
        "value": program.value,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    header = ("loss", "batch", "", "memory", "measured", "seconds", "of matmul")
    lines = [header]
    for row in rows:
        peak = row["measured_peak_bytes"]
        ran = row["seconds"] is not None
        lines.append(
            (
                row["loss"],
                str(row["batch"]),
                row["implementation"],
                f"{row['memory_bytes'] / 1e6:.1f} MB",
                f"{peak / 1e6:.0f} MB" if peak else "-",
                f"{row['seconds']:.3f}" if ran else "compiled",
                f"{row['of_matmul']:.2f}" if ran else "-",
            )
        )
    for line in lines:
        print(line[0].ljust(10) + "".join(cell.rjust(14) for cell in line[1:]))


def disagreeing(rows: list[dict[str, Any]]) -> list[str]:
    """Losses and batches whose implementations gave different values."""
    values: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            values.setdefault((row["loss"], row["batch"]), []).append(row["value"])
    return [
        f"{loss} at {batch}: {found}"
        for (loss, batch), found in values.items()
        if not np.allclose(found, found[0], rtol=AGREE)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument(
        "--batch", nargs="+", type=int, default=[1024, 4096, 16384, 65536, 262144], metavar="B"
    )
    parser.add_argument("--dim", type=int, default=1024, metavar="D")
    parser.add_argument("--tile", type=int, default=1024, help="side of a tile of the logits")
    parser.add_argument("--devices", type=int, metavar="N", help="fake CPU devices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=20, help="the longest run that is worth it"
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args()
    if arguments.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    mesh = mesh_lib.MeshConfig().make()
    ways = [("gather", 0), ("gather", arguments.tile)]
    if mesh.size > 1:  # alone, a device has no one to pass blocks to
        ways.append(("ring", arguments.tile))
    programs = [
        prepare(loss, rows, arguments.dim, exchange, tile, mesh)
        for loss in arguments.loss
        for rows in arguments.batch
        for exchange, tile in ways
    ]
    order = list(programs)
    race(programs, arguments.dim, mesh, arguments.rounds, arguments.seconds)
    rows = [row_of(program) for program in order]
    device = jax.devices()[0]
    print(
        f"{mesh.size} x {device.device_kind}, D = {arguments.dim}, tiles of {arguments.tile}, "
        f"jax {jax.__version__}"
    )
    show(rows)
    if arguments.out:
        facts = {"devices": mesh.size, "device": device.device_kind, "jax": jax.__version__}
        facts |= {"dim": arguments.dim, "tile": arguments.tile, "rows": rows}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    if different := disagreeing(rows):
        sys.exit(f"implementations differ: {different}")


if __name__ == "__main__":
    main()
