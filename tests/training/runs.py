"""A tiny run on shards of coloured squares, as a config, and what tests do with it."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from big_mm import spec, trees
from big_mm.data import examples, pipeline, records
from big_mm.training import checkpoint, loop, optimizer, run, schedules, writers
from tests import tiny

RECORDS = 64


def shards(directory: pathlib.Path) -> str:
    """RECORDS noisy pictures whose captions say their colour; returns the pattern."""
    rng = np.random.default_rng(0)
    colours = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 220]])

    def record(i: int) -> bytes:
        pixels = colours[i % 4] + rng.integers(-20, 20, (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
        text = tiny.TEXTS[4 * (i % 4) + i // 4 % 4] + " and a ring" * (i % 3)
        return examples.encode({"image": file.getvalue(), "caption": text, "key": f"k{i}"})

    records.write_shards(map(record, range(RECORDS)), str(directory / "train@2.tfrecord"))
    return str(directory / "train*")


def config(directory: pathlib.Path, **options):
    """A run of 6 steps of 16 rows, a checkpoint every 2, in a few seconds."""
    directory.mkdir(exist_ok=True)
    made = tiny.config(directory)
    defaults = {
        "data": spec.spec(
            pipeline.Pipeline,
            sources=(spec.spec(records.TFRecordSource, shards=shards(directory)),),
            num_threads=2,
        ),
        "optimizer": spec.spec(
            optimizer.AdamW,
            learning_rate=3e-3,
            schedule=spec.spec(schedules.WarmupCosine, warmup=2),
            weight_decay=0.1,
        ),
        "steps": 6,
        "batch_size": 16,
        "log_every": 1,
        "checkpoint": spec.spec(checkpoint.Checkpoints, every=2, keep=3),
    }
    return spec.spec(
        run.Run, objective=made.objective, contract=made.contract, **(defaults | options)
    )


def train(made, workdir: pathlib.Path) -> dict[str, float]:
    return loop.train(made, workdir)


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    return [(int(line["step"]), line["loss"]) for line in writers.read_metrics(workdir)]


def digests(workdir: pathlib.Path, step: int) -> dict[str, int]:
    """The checksums of everything that a step's checkpoint holds."""
    file = workdir / "checkpoints" / str(step) / "files" / checkpoint.MANIFEST
    return {path: leaf["digest"] for path, leaf in json.loads(file.read_text())["leaves"].items()}


def params(workdir: pathlib.Path, which: str = "params") -> dict[str, np.ndarray]:
    loaded = trees.flatten(checkpoint.load_params(workdir, which))
    return {path: np.asarray(leaf) for path, leaf in loaded.items()}
