"""Images per second and model-FLOPs utilisation of a training step, beside open_clip's.

    python benchmarks/train_step.py --models clip:B/32,coca:B/32 --batches 8,16
    python benchmarks/train_step.py --models coca:L/14 --batches 256 --remat dots_no_batch
    python benchmarks/train_step.py --peer-python OTHER_VENV/bin/python --out step.json

Forward, backward, clipping and AdamW of a model on one batch in memory, on whatever devices JAX
has. Models are open_clip's: clip:B/32, clip:B/16, clip:L/14, coca:B/32, coca:L/14, and for CPUs
coca:tiny (64-pixel images, width 128, 4 + 2 + 2 layers). open_clip itself takes part, eager and
compiled (torch.compile, fused AdamW), if an interpreter that has it is named; both sides have the
same architecture. Contestants are processes that take turns (`interleaved.py`): medians are over
turns, ratios over pairs of the same round.

"utilisation" is model FLOPs (three forward passes' matrix products, `big_mm.flops`) against what a
large matrix product of the same type reached in the same rounds.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import platform
import sys
import time
from typing import Any

import interleaved
import jax
import jax.numpy as jnp
import numpy as np

from big_mm import allocator, flops, spec, trees
from big_mm import mesh as mesh_lib
from big_mm.losses import captioning, contrastive
from big_mm.models import variants
from big_mm.models.coca import CoCa
from big_mm.objectives.base import Weighted
from big_mm.training import optimizer as optimizers
from big_mm.training import state as states
from big_mm.training.step import Update

HERE = pathlib.Path(__file__).parent
PEERS = {"open_clip": [], "open_clip compiled": ["--compile"]}


def objective(name: str, blocks: dict[str, Any]) -> Weighted:
    """The model and losses of a name like "coca:B/32"."""
    kind, _, size = name.partition(":")
    losses: dict[str, Any] = {"contrastive": contrastive.Softmax()}
    if kind == "coca":
        losses["captioning"] = captioning.CrossEntropy()
        tiny = size == "tiny"
        config = variants.open_clip_coca("B/32" if tiny else size, blocks=blocks)
        if tiny:
            shrink(config)
    elif kind == "clip":
        config = variants.clip(size, blocks=blocks)
    else:
        sys.exit(f"--models: {name} is neither clip:SIZE nor coca:SIZE")
    return Weighted(spec.build(config), losses, {"captioning": 2.0} if kind == "coca" else {})


def shrink(config: Any) -> None:
    config.image.update({"image_size": 64, "patch_size": 8})
    config.embed_dim, config.text.vocab_size, config.text.max_len = 128, 512, 16
    config.update({"queries": 17, "pooler_heads": 4})
    for stack, depth in ((config.image.blocks, 4), (config.text.blocks, 2), (config.decoder, 2)):
        stack.update({"width": 128, "depth": depth, "heads": 4, "mlp_dim": 512})


def peer_sizes(model: Any) -> dict[str, Any]:
    """The arguments of open_clip's class for the same architecture."""
    image, text = model.image.blocks, model.text.blocks
    sizes: dict[str, Any] = {
        "kind": "clip",
        "embed_dim": model.embed_dim,
        "vision_cfg": {
            "image_size": model.image.image_size,
            "patch_size": model.image.patch_size,
            "layers": image.depth,
            "width": image.width,
            "head_width": image.width // image.heads,
            "mlp_ratio": image.mlp_dim / image.width,
        },
        "text_cfg": {
            "context_length": model.text.max_len,
            "vocab_size": model.text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
        },
    }
    if isinstance(model, CoCa):
        pooling = {"attn_pooler_heads": model.pooler_heads}
        sizes["kind"] = "coca"
        sizes["vision_cfg"] |= {
            "attentional_pool": True,
            "attn_pooler_queries": model.queries,
            "output_tokens": True,
            **pooling,
        }
        sizes["multimodal_cfg"] = {**sizes["text_cfg"], "layers": model.decoder.depth, **pooling}
        sizes["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    return sizes


def batch_of(model: Any, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    side, length = model.image.image_size, model.text.max_len
    return {
        "image": rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
        "tokens": rng.integers(5, model.text.vocab_size, (rows, length)).astype(np.int32),
        "token_mask": np.ones((rows, length), bool),
    }


def compete(arguments: argparse.Namespace) -> None:
    """The big_mm contestant: the update that training jits, on all devices."""
    allocator.keep_freed_memory()
    name, rows = arguments.models, int(arguments.batches)
    chosen = objective(name, blocks(arguments))
    devices = mesh_lib.MeshConfig(fsdp=arguments.fsdp).make()
    adamw = optimizers.AdamW(learning_rate=1e-6, weight_decay=0.01)
    batch = mesh_lib.to_global(batch_of(chosen.model, rows), devices)
    init = functools.partial(states.init_params, chosen, batch, 0)
    create = functools.partial(states.create, chosen, adamw, seed=0, ema=False)
    shapes = jax.eval_shape(create, jax.eval_shape(init))
    placed = states.shardings(shapes, devices, ())
    state = jax.jit(lambda: create(init()), out_shardings=placed)()
    update = jax.jit(
        Update(chosen, adamw, devices, seed=0, steps=1000),
        donate_argnums=0,
        out_shardings=(placed, mesh_lib.replicated(devices)),
    )
    begun = time.perf_counter()
    compiled = update.lower(state, batch).compile()
    memory = compiled.memory_analysis()

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        metrics["loss"].block_until_ready()

    step()
    facts = {
        "parameters": trees.count(state.params),
        "flops": flops.model_flops(chosen, state.params, batch),
        "version": f"jax {jax.__version__}",
        "compile_seconds": time.perf_counter() - begun,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }
    interleaved.serve(step, arguments.steps, facts)


def compete_matmul(dtype: str, steps: int) -> None:
    """A large matrix product: the rate that the rest is measured against."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    repeats = 1 if jax.default_backend() == "cpu" else 20

    @jax.jit
    def products(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, y: (x @ y) * (1 / size), x)

    products(x).block_until_ready()
    facts = {
        "flops": 2 * repeats * size**3 * jax.device_count(),
        "devices": jax.device_count(),
        "kind": jax.devices()[0].device_kind,
    }
    interleaved.serve(lambda: products(x).block_until_ready(), steps, facts)


def blocks(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "dtype": arguments.dtype,
        "remat": arguments.remat,
        "unroll": arguments.unroll,
        "implementation": arguments.attention,
    }


def measure(name: str, rows: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Races all contestants for one model and batch; prints and returns their lines."""
    own = [sys.executable, __file__, "--models", name, "--batches", str(rows)]
    for option in ("dtype", "remat", "unroll", "attention", "fsdp", "steps"):
        own += [f"--{option}", str(getattr(arguments, option))]
    # Several contestants hold memory of the same device at once.
    share = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    entrants = [
        interleaved.Contestant("matmul", [*own, "--compete", "matmul"], share),
        interleaved.Contestant("big_mm", [*own, "--compete", "step"], share),
    ]
    if arguments.peer_python:
        sizes = json.dumps(peer_sizes(objective(name, {}).model))
        peer = [arguments.peer_python, str(HERE / "train_step_open_clip.py"), sizes]
        peer += ["--batch", str(rows), "--dtype", arguments.dtype, "--steps", str(arguments.steps)]
        peer += ["--grad-checkpointing"] if arguments.remat != "none" else []
        entrants += [interleaved.Contestant(who, peer + more, {}) for who, more in PEERS.items()]
    interleaved.race(entrants, arguments.rounds)
    matmul, ours, *_ = entrants
    lines = []
    for entrant in entrants[1:]:
        wall = entrant.median("wall")
        # open_clip's poolers normalise their queries, which ours store normalised.
        if not math.isclose(entrant.facts["parameters"], ours.facts["parameters"], rel_tol=1e-3):
            sys.exit(f"{entrant.name} is another model: {entrant.facts}, {ours.facts}")
        line = {
            "model": name,
            "batch": rows,
            "name": entrant.name,
            **entrant.facts,
            "images_per_second": rows / wall,
            "images_per_cpu_second": rows / entrant.median("cpu"),
            "utilisation": ours.facts["flops"]
            / matmul.facts["flops"]
            / matmul.ratio(entrant, "wall"),
            "times_as_long": ours.ratio(entrant, "wall"),
            "matmul_flops_per_second": matmul.facts["flops"] / matmul.median("wall"),
            "device": f"{matmul.facts['devices']} x {matmul.facts['kind']}",
        }
        lines.append(line)
        print(
            f"{name:11}{rows:7}  {entrant.name:20}{line['images_per_second']:10.1f}"
            f"{line['images_per_cpu_second']:14.2f}{line['utilisation']:13.0%}"
            f"{line['times_as_long']:11.2f}x{line['matmul_flops_per_second'] / 1e12:14.2f}",
            flush=True,
        )
    for entrant in entrants:
        entrant.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="coca:tiny", metavar="NAME,...")
    parser.add_argument("--batches", default="128", metavar="ROWS,...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="bfloat16 but on a CPU")
    parser.add_argument("--remat", default="none", help="also turns on the peer's checkpointing")
    parser.add_argument("--unroll", type=int, default=1)
    parser.add_argument("--attention", default="xla", help="`implementation` of the layers")
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--peer-python", metavar="PYTHON", help="an interpreter with open_clip")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    parser.add_argument("--compete", choices=("matmul", "step"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or jax.default_backend() == "cpu"
    arguments.dtype = arguments.dtype or ("float32" if on_cpu else "bfloat16")
    if arguments.compete == "matmul":
        return compete_matmul(arguments.dtype, arguments.steps)
    if arguments.compete:
        return compete(arguments)
    print(
        f"{'model':11}{'batch':>7}  {'':20}{'images/s':>10}{'images/CPU s':>14}{'utilisation':>13}"
        f"{'big_mm is':>12}{'matmul TFLOP/s':>16}"
    )
    lines = [
        line
        for name in arguments.models.split(",")
        for rows in arguments.batches.split(",")
        for line in measure(name, int(rows), arguments)
    ]
    if arguments.out:
        machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        settings = {k: getattr(arguments, k) for k in ("dtype", "remat", "unroll", "attention")}
        arguments.out.write_text(json.dumps(machine | settings | {"rows": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
