"""One config on many layouts of devices, processes and microbatches: how far do the losses differ?

    python benchmarks/layouts.py --data runs/scenes
    python benchmarks/layouts.py --data runs/scenes --only 'fsdp|processes' --out FILE.json

Each layout is a run of `python -m big_mm.train` in its own processes with as many CPU devices as
it needs; DATA is what `make quickstart` writes. The first layout, one device, is the reference. The
figures are the largest relative difference of any logged loss and gradient norm, and the largest
difference of any final parameter. `restart` layouts get SIGTERM halfway and continue on another
number of devices and processes.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np

from big_mm import trees
from big_mm.training import checkpoint, writers

# Small enough that compiling is most of the work; heads that four devices divide.
SIZES = {
    "objective.model.image.blocks.depth": 2,
    "objective.model.text.blocks.depth": 1,
    "objective.model.decoder.depth": 1,
    "objective.model.image.blocks.unroll": 1,
    "objective.model.text.blocks.unroll": 1,
    "objective.model.decoder.unroll": 1,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Devices by mesh axis, processes, and further overrides of the config; `then` continues."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    processes: int = 1
    options: tuple[tuple[str, object], ...] = ()
    then: "Layout | None" = None

    @property
    def name(self) -> str:
        parts = [f"{k} {v}" for k in ("data", "fsdp", "tensor") if (v := getattr(self, k)) > 1]
        if self.processes > 1:
            parts.append(f"in {self.processes} processes")
        parts += [f"{key.split('.')[-1]} {value}" for key, value in self.options]
        name = ", ".join(parts or ["one device"])
        return f"{name}; restart as {self.then.name}" if self.then else name


RING = (
    ("objective.losses.contrastive.exchange", "ring"),
    ("objective.losses.contrastive.tile", 5),
)
MICRO = (("accumulate", 4),)
LAYOUTS = [
    Layout(),
    Layout(data=2),
    Layout(data=4),
    Layout(data=8),
    Layout(fsdp=2),
    Layout(fsdp=4),
    Layout(fsdp=8),
    Layout(tensor=2),
    Layout(tensor=4),
    Layout(data=2, fsdp=2),
    Layout(data=2, tensor=2),
    Layout(fsdp=2, tensor=2),
    Layout(data=2, fsdp=2, tensor=2),
    Layout(options=MICRO),
    Layout(data=2, fsdp=2, tensor=2, options=MICRO),
    Layout(data=2, fsdp=2, tensor=2, options=RING),
    Layout(data=4, options=RING + MICRO),
    Layout(data=2, processes=2),
    Layout(data=2, fsdp=2, processes=2),
    Layout(data=4, then=Layout()),
    Layout(data=2, fsdp=2, processes=2, then=Layout(fsdp=8)),
]


def train(
    layout: Layout, arguments: argparse.Namespace, workdir: pathlib.Path, stop: bool = False
) -> None:
    """Runs to the end, or to a SIGTERM about halfway."""
    overrides = SIZES | dict(layout.options)
    overrides |= {f"mesh.{axis}": getattr(layout, axis) for axis in ("data", "fsdp", "tensor")}
    overrides |= {"steps": arguments.steps, "log_every": 1, "batch_size": 32, "checkpoint.every": 0}
    overrides |= {"evaluators": {}, "optimizer.schedule.warmup": 5, "data.cache": False}
    command = [
        sys.executable,
        "-m",
        "big_mm.train",
        "--config",
        f"{arguments.config}:{arguments.data}",
    ]
    command += ["--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in overrides.items())]
    devices = layout.data * layout.fsdp * layout.tensor // layout.processes
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if layout.processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment |= {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(layout.processes),
        }
    with tempfile.TemporaryFile("w+") as log:
        running = [
            subprocess.Popen(
                command, env=environment | {"JAX_PROCESS_ID": str(i)}, stdout=log, stderr=log
            )
            if layout.processes > 1
            else subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for i in range(layout.processes)
        ]
        expected = 0
        if stop:
            expected = os.EX_TEMPFAIL
            wait_for_step(workdir, arguments.steps // 2, running)
            for process in running:
                process.send_signal(signal.SIGTERM)
        if any([process.wait() != expected for process in running]):
            log.seek(0)
            sys.exit(f"{layout.name} failed:\n{log.read()[-3000:]}")


def wait_for_step(workdir: pathlib.Path, step: int, running: Sequence[subprocess.Popen]) -> None:
    """Returns when metrics of that step are there, or when the processes have ended."""
    metrics = workdir / writers.METRICS
    while any(process.poll() is None for process in running):
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py", metavar="FILE.py")
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", default="", metavar="REGEX", help="of layouts' names")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json")
    arguments = parser.parse_args()
    print(f"{'layout':66}{'loss':>10}{'grad norm':>11}{'parameter':>11}{'seconds':>9}", flush=True)
    rows, reference = [], None
    with tempfile.TemporaryDirectory() as folder:
        for number, layout in enumerate(LAYOUTS):
            if reference is not None and not re.search(arguments.only, layout.name):
                continue
            begun, workdir = time.perf_counter(), pathlib.Path(folder) / str(number)
            if layout.then is None:
                train(layout, arguments, workdir)
            else:
                train(layout, arguments, workdir, stop=True)
                train(layout.then, arguments, workdir)
            lines = writers.read_metrics(workdir)
            params = trees.flatten(checkpoint.load_params(workdir))
            found = {
                name: np.array([line[name] for line in lines]) for name in ("loss", "grad_norm")
            }
            found["params"] = {path: np.asarray(leaf) for path, leaf in params.items()}
            reference = reference or found
            row = {"layout": layout.name, "seconds": time.perf_counter() - begun}
            for name in ("loss", "grad_norm"):
                row[name] = float(np.max(np.abs(found[name] / reference[name] - 1)))
            row["parameter"] = max(
                float(np.abs(leaf - reference["params"][path]).max())
                for path, leaf in found["params"].items()
            )
            rows.append(row)
            print(
                f"{layout.name:66}{row['loss']:10.1e}{row['grad_norm']:11.1e}"
                f"{row['parameter']:11.1e}{row['seconds']:9.0f}",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
