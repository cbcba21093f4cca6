"""Images per second of a training step, beside the same CoCa in PyTorch on the same cores.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --config FILE.py[:ARG] [--config.KEY=VALUE ...] --out step.json
    python benchmarks/train_step.py --peer-python OTHER_VENV/bin/python

Forward, backward, clipping and AdamW of the config's CoCa in float32 on one random batch. Both
frameworks get the same weights and batch, and the loss of the first step must agree. Contestants
are processes that take turns (`interleaved.py`); medians are over turns, ratios over pairs of the
same round. PyTorch takes part if the peer interpreter has torch (pip install -e .[peers]). "heap
kept" is `big_mm.allocator`, which every big_mm program uses and PyTorch's by default does not.

"of matmul rate" is model FLOPs (`big_mm.flops`) against the rate that a plain float32 matmul
reached in the same rounds.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

import interleaved
import jax
import jax.numpy as jnp
import numpy as np

from big_mm import allocator, mesh, spec, trees
from big_mm.flops import model_flops
from big_mm.models.coca import CoCa
from big_mm.objectives.base import Weighted
from big_mm.training import optimizer as optimizers
from big_mm.training import state as states
from big_mm.training.step import Update

HERE = pathlib.Path(__file__).parent
MATMUL = 2048
TERMS = ("contrastive", "captioning")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What both sides train: made from the config, the same in every process."""

    objective: Weighted
    batch: dict[str, np.ndarray]

    @classmethod
    def load(cls, config: str, overrides: list[str]) -> "Problem":
        run = spec.load_config(config)
        spec.override(run, overrides)
        objective = spec.build(run.objective)
        model, rng, rows = objective.model, np.random.default_rng(0), run.batch_size
        if not isinstance(model, CoCa) or model.legacy or model.embed_dim or model.tie_embeddings:
            sys.exit("the peer is a plain CoCa: not legacy, no projections, no tied embeddings")
        side, length = model.image.image_size, model.text.max_len
        lengths = rng.integers(length // 2, length + 1, rows)
        batch = {
            "image": rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
            "tokens": rng.integers(5, model.text.vocab_size, (rows, length)).astype(np.int32),
            "token_mask": np.arange(length) < lengths[:, None],
        }
        ids = {getattr(loss, "positives", "") for loss in objective.losses.values()} - {""}
        batch |= {key: np.arange(rows, dtype=np.int32) for key in ids}  # no two are the same
        return cls(objective, batch)

    def sizes(self) -> dict[str, Any]:
        """What the peer needs to know."""
        model = self.objective.model
        stacks = {"image": model.image.blocks, "text": model.text.blocks, "decoder": model.decoder}
        return {
            **{
                name: {
                    "width": blocks.width,
                    "depth": blocks.depth,
                    "heads": blocks.heads,
                    "mlp_dim": blocks.mlp_dim,
                    "eps": blocks.norm_eps,
                }
                for name, blocks in stacks.items()
            },
            "image_size": model.image.image_size,
            "patch_size": model.image.patch_size,
            "vocab_size": model.text.vocab_size,
            "max_len": model.text.max_len,
            "queries": model.queries,
            "pooling": model.pooling,
            "weights": {name: self.objective.weights.get(name, 1.0) for name in TERMS},
        }

    def params(self) -> Any:
        """Initial parameters and some noise, so that a comparison of losses sees biases too."""
        params = jax.jit(lambda: states.init_params(self.objective, self.batch, 0))()
        rng = np.random.default_rng(1)
        return jax.tree.map(
            lambda leaf: np.asarray(leaf) + 0.02 * rng.normal(size=leaf.shape).astype(np.float32),
            params,
        )


def compete(problem: Problem, keep_heap: bool, steps: int) -> None:
    """The big_mm contestant."""
    if keep_heap:
        allocator.keep_freed_memory()
    devices = mesh.single_device_mesh()
    optimizer = optimizers.AdamW(learning_rate=1e-6, weight_decay=0.01)
    update = Update(problem.objective, optimizer, devices, seed=0, steps=1000)
    params = jax.device_put(problem.params())
    flops = model_flops(problem.objective, params, problem.batch)
    create = functools.partial(states.create, problem.objective, optimizer, seed=0, ema=False)
    state = jax.jit(create)(params)
    jitted = jax.jit(update, donate_argnums=0)
    batch = jax.device_put(problem.batch)

    def step() -> float:
        nonlocal state
        state, metrics = jitted(state, batch)
        return float(metrics["loss"])

    facts = {
        "loss": step(),
        "parameters": trees.count(params),
        "flops": flops,
        "version": f"jax {jax.__version__}",
        "threads": len(os.sched_getaffinity(0)),
    }
    interleaved.serve(step, steps, facts)


def compete_matmul(steps: int) -> None:
    """A float32 matmul: the rate that the rest is measured against."""
    x = jnp.ones((MATMUL, MATMUL))
    matmul = jax.jit(jnp.dot)
    interleaved.serve(lambda: matmul(x, x).block_until_ready(), steps, {"flops": 2 * MATMUL**3})


def enter(arguments: argparse.Namespace, overrides: list[str], folder: str) -> list[Any]:
    """Starts the contestants: the matmul, ours, and the peer's variants if it is there."""
    ours = [sys.executable, __file__, "--config", arguments.config, *overrides]
    turns = ["--steps", str(arguments.steps)]
    on_cpu = {"JAX_PLATFORMS": "cpu"}
    entrants = [
        interleaved.Contestant("matmul", [*ours, *turns, "--compete", "matmul"], on_cpu),
        interleaved.Contestant("big_mm", [*ours, *turns, "--compete", "keep"], on_cpu),
    ]
    has_torch = [arguments.peer_python, "-c", "import torch"]
    if subprocess.run(has_torch, capture_output=True, check=False).returncode:
        print(f"no torch in {arguments.peer_python}: PyTorch does not take part")
        return entrants
    torch = [arguments.peer_python, str(HERE / "train_step_torch.py"), folder, *turns]
    variants = {
        "PyTorch": [],
        "PyTorch, heap kept": ["--keep-heap"],
        "PyTorch compiled, heap kept": ["--keep-heap", "--compile"],
    }
    for name, options in variants.items():
        entrants.append(interleaved.Contestant(name, torch + options, {}))
    return entrants


def report(entrants: list[Any], rows: int) -> dict[str, Any]:
    """Prints the table; returns what it says as data."""
    matmul, ours, *_ = entrants
    rate = matmul.facts["flops"] / matmul.median("wall")
    print(f"float32 matmul {rate / 1e9:.0f} GFLOP/s; {ours.facts['flops'] / 1e9:.1f} GFLOP a step")
    header = ("", "images/s", "images/CPU s", "of matmul rate", "big_mm is", "(CPU)", "loss")
    lines, data = [header], {}
    for entrant in entrants[1:]:
        wall, cpu = entrant.median("wall"), entrant.median("cpu")
        row = {
            "version": entrant.facts["version"],
            "threads": entrant.facts["threads"],
            "parameters": entrant.facts["parameters"],
            "loss": entrant.facts["loss"],
            "images_per_second": rows / wall,
            "images_per_cpu_second": rows / cpu,
            "of_matmul_rate": ours.facts["flops"]
            / matmul.facts["flops"]
            / matmul.ratio(entrant, "wall"),
            "times_as_long": ours.ratio(entrant, "wall"),
            "times_the_cpu": ours.ratio(entrant, "cpu"),
        }
        data[entrant.name] = row
        lines.append(
            (
                entrant.name,
                f"{row['images_per_second']:.1f}",
                f"{row['images_per_cpu_second']:.1f}",
                f"{row['of_matmul_rate']:.0%}",
                f"{row['times_as_long']:.2f}x",
                f"{row['times_the_cpu']:.2f}x",
                f"{row['loss']:.5f}",
            )
        )
    for line in lines:
        print(line[0].ljust(30) + "".join(cell.rjust(16) for cell in line[1:]))
    return {"matmul_gflops": rate / 1e9, "step_gflop": ours.facts["flops"] / 1e9, "rows": data}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py", metavar="FILE.py[:ARG]")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    parser.add_argument("--compete", choices=("matmul", "keep", "default"), help=argparse.SUPPRESS)
    arguments, overrides = parser.parse_known_args()
    if arguments.compete == "matmul":
        return compete_matmul(arguments.steps)
    problem = Problem.load(arguments.config, overrides)
    if arguments.compete:
        return compete(problem, arguments.compete == "keep", arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "sizes.json").write_text(json.dumps(problem.sizes()))
        np.savez(path / "batch.npz", **problem.batch)
        np.savez(path / "params.npz", **trees.flatten(problem.params()))
        entrants = enter(arguments, overrides, folder)
    interleaved.race(entrants, arguments.rounds)
    data = report(entrants, len(problem.batch["tokens"]))
    for entrant in entrants:
        entrant.close()
    losses = [entrant.facts["loss"] for entrant in entrants[1:]]
    if not np.allclose(losses, losses[0], rtol=1e-4):
        sys.exit(f"the losses of the first step differ: {losses}")
    if arguments.out:
        machine = {"machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
        arguments.out.write_text(json.dumps(machine | data, indent=1) + "\n")


if __name__ == "__main__":
    main()
