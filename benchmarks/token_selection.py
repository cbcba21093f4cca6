"""What FILIP's selection of tokens saves in its loss: value and gradients, compiled and not run.

    python -m benchmarks.token_selection
    python -m benchmarks.token_selection --batch 1024 --patches 64 --words 32 --tile 16

"memory" is what the compiled program takes on one of the fake CPU devices beside its arguments and
results, by the compiler's own account; "operations" are those of all its matrix products, and
"sent" is what one device sends to others, both a step and a device. The encoders are not counted.
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from big_mm import flops
from big_mm import mesh as mesh_lib
from big_mm.losses.contrastive import Softmax
from big_mm.losses.selection import Selected
from big_mm.planning.collectives import collectives
from big_mm.planning.hlo import Module
from experiments.filip.similarity import LateInteraction


def cost(name: str, loss: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """A row of the table."""
    mesh = mesh_lib.MeshConfig().make()
    split, whole = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    outputs = {
        key: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split if shape else whole)
        for key, shape in shapes.items()
    }

    def function(outputs: Any) -> Any:
        with mesh_lib.using(mesh):
            return jax.value_and_grad(lambda outputs: loss(outputs, {})[0].compute())(outputs)

    compiled = jax.jit(function).lower(outputs).compile()
    sent = sum(one.runs * one.sent for one in collectives(Module(compiled.as_text(), "cpu")))
    return {
        "loss": name,
        "memory_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "operations": sum(flops.executed_flops(function, outputs).values()) / mesh.size,
        "sent_bytes": sent,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4096, metavar="B")
    parser.add_argument("--patches", type=int, default=196)
    parser.add_argument("--words", type=int, default=76, help="slots of a text")
    parser.add_argument("--dim", type=int, default=256, metavar="D")
    parser.add_argument("--devices", type=int, default=8, metavar="N")
    parser.add_argument("--tile", type=int, default=32, help="rows a side of a tile, in the ring")
    parser.add_argument("--share", type=float, default=0.25, help="of the patches and of the slots")
    parser.add_argument(
        "--groups", nargs="+", type=int, help="rows that score one another; default: 32, a device's"
    )
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    asked = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", asked.devices)
    shapes = {
        "image_token_embeddings": (asked.batch, asked.patches, asked.dim),
        "text_token_embeddings": (asked.batch, asked.words, asked.dim),
        "text_token_mask": (asked.batch, asked.words),
        "logit_scale": (),
    }
    every = Softmax(LateInteraction(), exchange="ring", tile=asked.tile)
    losses = {"all tokens": every}
    for group in asked.groups or (32, asked.batch // asked.devices):
        name = f"{asked.share:.0%}, groups of {group}"
        losses[name] = Selected(every, asked.share, asked.share, group)
    rows = [cost(name, loss, shapes) for name, loss in losses.items()]
    print(f"{'':24}{'memory':>12}{'operations':>14}{'sent':>12}")
    for row in rows:
        memory, sent = (f"{row[key] / 1e6:.0f} MB" for key in ("memory_bytes", "sent_bytes"))
        print(f"{row['loss']:24}{memory:>12}{row['operations'] / 1e12:>12.2f} T{sent:>12}")
    if asked.out:
        asked.out.write_text(json.dumps({"rows": rows, "shapes": shapes}, indent=1))


if __name__ == "__main__":
    main()
