"""A tiny run on shards of coloured squares, as a config, and what tests look at afterwards."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np
from PIL import Image

from big_mm import spec, trees
from big_mm.data import examples, pipeline, records
from big_mm.losses import captioning, contrastive
from big_mm.objectives.base import Weighted
from big_mm.training import checkpoint, loop, optimizer, run, schedules, writers
from tests import tiny
from tests.training import toy

RECORDS = 64
STEPS = 6


def shards(directory: pathlib.Path, damaged: int = 0) -> str:
    """RECORDS noisy pictures whose captions say their colour; returns the pattern."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 220]])

    def record(i: int) -> bytes:
        pixels = colours[i % 4] + rng.integers(-20, 20, (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
        image = b"no picture" if i < damaged else file.getvalue()
        text = tiny.TEXTS[4 * (i % 4) + i // 4 % 4] + " and a ring" * (i % 3)
        return examples.encode({"image": image, "caption": text, "key": f"k{i}"})

    records.write_shards(map(record, range(RECORDS)), str(directory / "train@2.tfrecord"))
    return str(directory / "train*")


@dataclasses.dataclass(frozen=True, eq=False)
class Faulty(Weighted):
    """Before step `at` + 1, and only while the file `marker` does not exist, something happens.

    `poison`: ((number of a batch, factor as text), ...); the loss of that batch is multiplied.
    """

    at: int = 0
    marker: str = ""
    signal: int = signal.SIGKILL
    poison: tuple[tuple[int, str], ...] = ()

    def prepare(self, state, batch):
        marker = pathlib.Path(self.marker)
        if int(state.step) == self.at and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), self.signal)
        factor = dict(self.poison).get(loop.position(state) + 1, "1")
        return batch | {"poison": np.full(len(batch["tokens"]), float(factor), np.float32)}

    def loss(self, params, extra, batch, rng):
        batch = dict(batch)
        factor = batch.pop("poison")[0] if "poison" in batch else 1.0
        value, aux = super().loss(params, extra, batch, rng)
        return value * factor, aux


@dataclasses.dataclass(frozen=True, eq=False)
class Stuck:
    """A source of which one record is never there."""

    source: Any
    stuck_at: int
    released: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index == self.stuck_at:
            self.released.wait(60)
        return self.source[index]

    def where(self, index):
        return self.source.where(index)


def config(directory: pathlib.Path, model=None, fault=None, damaged=0, poison=(), **options):
    """A run of STEPS steps of 16 rows, with a checkpoint every 2, in a few seconds.

    Args:
      model: from a vocabulary to a model's spec; the toy by default.
      fault: arguments of `Faulty`.
    """
    directory.mkdir(exist_ok=True, parents=True)
    made = tiny.config(directory, model or (lambda size: spec.spec(toy.Model, vocab_size=size)))
    objective = spec.spec(
        Faulty,
        model=made.objective.model,
        losses={
            "contrastive": spec.spec(contrastive.Softmax),
            "captioning": spec.spec(captioning.CrossEntropy),
        },
        poison=poison,
        **({"signal": int(fault.pop("signal"))} | fault if fault else {"at": -1}),
    )
    defaults = {
        "data": spec.spec(
            pipeline.Pipeline,
            sources=(spec.spec(records.TFRecordSource, shards=shards(directory, damaged)),),
            num_threads=2,
        ),
        "optimizer": spec.spec(
            optimizer.AdamW,
            learning_rate=3e-3,
            schedule=spec.spec(schedules.WarmupCosine, warmup=2),
            weight_decay=0.1,
        ),
        "steps": STEPS,
        "batch_size": 16,
        "log_every": 1,
        "ema": 0.9,
        "checkpoint": spec.spec(checkpoint.Checkpoints, every=2, keep=3),
    }
    return spec.spec(run.Run, objective=objective, contract=made.contract, **(defaults | options))


def train(made, workdir: pathlib.Path) -> dict[str, float] | None:
    return loop.train(made, workdir)


def incidents(workdir: pathlib.Path) -> list[dict]:
    """The lines of incidents.jsonl."""
    return [json.loads(line) for line in (workdir / writers.INCIDENTS).read_text().splitlines()]


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    lines = writers.read_metrics(workdir)
    return [(int(line["step"]), line["loss"]) for line in lines if "loss" in line]


def digests(workdir: pathlib.Path, step: int = STEPS) -> dict[str, int]:
    """The checksums of everything that a step's checkpoint holds."""
    file = workdir / "checkpoints" / str(step) / "files" / checkpoint.MANIFEST
    return {path: leaf["digest"] for path, leaf in json.loads(file.read_text())["leaves"].items()}


def params(workdir: pathlib.Path, which: str = "params") -> dict[str, np.ndarray]:
    loaded = trees.flatten(checkpoint.load_params(workdir, which))
    return {path: np.asarray(leaf) for path, leaf in loaded.items()}


PROGRAM = """
import pathlib, sys
from big_mm import distributed, spec
from big_mm.training import loop
distributed.init()
text = pathlib.Path(sys.argv[1]).read_text()
loop.train(spec.from_json(text, trusted=("big_mm", "tests")), sys.argv[2])
"""


def in_processes(directory: pathlib.Path, *environments) -> list[tuple[int, str]]:
    """Trains directory/config.json into directory/run, in one process for each environment.

    Returns the exit codes and what was written to stderr.
    """
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory / "config.json"), str(directory / "run")],
            cwd=pathlib.Path(__file__).resolve().parents[2],
            env=os.environ | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for environment in environments
    ]
    errors = [process.communicate(timeout=300)[1] for process in begun]
    return [(process.returncode, error) for process, error in zip(begun, errors, strict=True)]


def two_processes() -> list[dict[str, str]]:
    """The environments of two processes that are one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [common | {"JAX_PROCESS_ID": str(index)} for index in range(2)]
