"""Images per second from TFRecord shards to training batches, beside bare decoding and resizing.

    python benchmarks/input_pipeline.py --shards 'photos/*.tfrecord' --out input_pipeline.json

Any shards of pictures serve: they are encoded again as JPEG of quality 90 in two sizes, 500 x 375
(what web pairs look like) and 64 x 64. Rows are measured in turns and the best turn of each counts,
since the machine may have other work. "per CPU s" is images for each second of CPU time, worker
processes included; "of bare" is that against decoding and resizing alone, of bytes in memory, in
the same run. A pipeline row includes reading, both CRCs, parsing, cropping, tokenizing, batching.
"""

import argparse
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from big_mm.data import examples, images, records, tokenizers, transforms
from big_mm.data.contract import Contract
from big_mm.data.pipeline import Pipeline

CAPTION = "a photo of a red fox that sits in the snow at the edge of a forest and looks at us"
RECORDS = 3000
CORPORA = {"500x375": ((375, 500), 224, 64), "64x64": ((64, 64), 64, 128)}


@dataclasses.dataclass
class Row:
    """A line of the table; `start` gives an endless generator that does work and yields counts."""

    corpus: str
    kernel: str
    name: str
    start: Callable[[], Iterator[int]]
    warm: int = 3
    wall: float = 0.0
    cpu: float = 0.0
    of_bare: float = 0.0

    def measure(self, seconds: float) -> None:
        counts = self.start()
        for _ in range(self.warm):
            next(counts)
        wall, cpu, done = time.perf_counter(), cpu_seconds(), 0
        while (passed := time.perf_counter() - wall) < seconds:
            done += next(counts)
        self.wall = max(self.wall, done / passed)
        self.cpu = max(self.cpu, done / (cpu_seconds() - cpu))
        counts.close()


def cpu_seconds() -> float:
    """CPU time of this process and of its live worker processes (Linux)."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def write_corpus(source: records.TFRecordSource, path: str, size: tuple[int, int]) -> list[bytes]:
    """Encodes the source's pictures again as `size` and writes them to a shard."""
    jpegs = []
    with records.TFRecordWriter(path) as writer:
        for i in range(len(source)):
            picture = images.resize(images.decode(source[i]["image"]), size, "area")
            jpegs.append(simplejpeg.encode_jpeg(picture, quality=90, colorsubsampling="420"))
        # Several times over: Grain's shuffle of a few hundred records takes 10 times as long.
        for i in range(RECORDS):
            jpeg = jpegs[i % len(jpegs)]
            features = {"image": jpeg, "caption": [CAPTION, CAPTION[:30]], "key": str(i)}
            writer.write(examples.encode(features))
    return jpegs


def decode_with_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def bare(jpegs: list[bytes], decode: Callable, size: int | None, kernel: str) -> Iterator[int]:
    """Decoding, and resizing if `size` is given, in one thread."""
    stream = itertools.cycle(jpegs)
    while True:
        for data in itertools.islice(stream, 16):
            picture = decode(data)
            if size is not None:
                images.resize(picture, (size, size), kernel)
        yield 16


def batches(pipeline: Pipeline, contract: Contract, batch_size: int) -> Iterator[int]:
    stream = pipeline.batches(contract, batch_size, seed=0)
    try:
        for batch in stream:
            yield len(batch["image"])
    finally:
        stream.close()


def rows_of(corpus: str, jpegs: list[bytes], path: str, tokenizer: str) -> list[Row]:
    _, size, batch_size = CORPORA[corpus]
    source = records.TFRecordSource(path, examples.Schema())
    whole = transforms.DEFAULT
    crop = (whole[0], transforms.RandomResizedCrop(), *whole[2:])
    rows = [
        Row(corpus, "", "bare decode", lambda: bare(jpegs, simplejpeg.decode_jpeg, None, "area"))
    ]
    for kernel in ("bilinear", "supersample", "area", "bicubic"):
        contract = Contract(tokenizers.SentencePiece(tokenizer), image_size=size, kernel=kernel)

        def add(name: str, start: Callable, kernel: str = kernel) -> None:
            rows.append(Row(corpus, kernel, name, start))

        def add_pipeline(name: str, steps: tuple, contract: Contract = contract, **options) -> None:
            pipeline = Pipeline(source, transforms=steps, **options)
            add(name, lambda: batches(pipeline, contract, batch_size))

        add("bare", lambda k=kernel: bare(jpegs, simplejpeg.decode_jpeg, size, k))
        if kernel == "bicubic":
            add("bare, Pillow", lambda k=kernel: bare(jpegs, decode_with_pillow, size, k))
        add_pipeline("whole, 1 thread", whole, num_threads=1)
        add_pipeline("crop, 1 thread", crop, num_threads=1)
        if kernel == "bicubic":
            continue
        add_pipeline("crop, 2 threads", crop, num_threads=2)
        add_pipeline("crop, 1 worker", crop, num_workers=1)
        add_pipeline("crop, 2 workers", crop, num_workers=2)
        if corpus == "64x64":
            add_pipeline("crop, 1 thread, cache", crop, num_threads=1, cache=True)
            rows[-1].warm = 2 + RECORDS // batch_size
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="TFRecord shards with pictures")
    parser.add_argument("--schema", default="", help="of the shards, e.g. image=jpg,captions=")
    parser.add_argument("--corpus", choices=tuple(CORPORA), nargs="*", default=tuple(CORPORA))
    parser.add_argument("--only", default="", help="rows whose kernel and name contain this")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn of one row")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the figures")
    args = parser.parse_args()
    source = records.TFRecordSource(args.shards, examples.Schema.parse(args.schema))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = os.path.join(folder, "tokenizer.model")
        text = pathlib.Path(folder, "captions.txt")
        text.write_text("\n".join(CAPTION.split() * 100))
        tokenizers.main(
            ["--text", str(text), "--vocab_size=300", "--no-hard_vocab_limit", "--out", tokenizer]
        )
        rows: list[Row] = []
        for corpus in args.corpus:
            path = os.path.join(folder, f"{corpus}.tfrecord")
            jpegs = write_corpus(source, path, CORPORA[corpus][0])
            print(f"{corpus}: {len(jpegs)} pictures, {np.mean(list(map(len, jpegs))):.0f} bytes")
            rows += rows_of(corpus, jpegs, path, tokenizer)
        rows = [r for r in rows if r.name == "bare" or args.only in f"{r.kernel} {r.name}"]
        for _ in range(args.turns):
            for row in rows:
                row.measure(args.seconds)
    report(rows, args.out)


def report(rows: list[Row], out: str | None) -> None:
    """Prints the table and writes it as JSON."""
    bare_rate = {(r.corpus, r.kernel): r.cpu for r in rows if r.name == "bare"}
    print(f"{'corpus':8} {'kernel':9} {'':22} {'images/s':>9} {'per CPU s':>10} {'of bare':>8}")
    for row in rows:
        row.of_bare = row.cpu / bare_rate.get((row.corpus, row.kernel), row.cpu)
        print(
            f"{row.corpus:8} {row.kernel:9} {row.name:22} {row.wall:9.0f} {row.cpu:10.0f} "
            f"{row.of_bare:8.2f}"
        )
    if out:
        figures = [
            {k: v for k, v in vars(row).items() if k not in ("start", "warm")} for row in rows
        ]
        machine = {"cpus": len(os.sched_getaffinity(0)), "processor": platform.processor()}
        pathlib.Path(out).write_text(
            json.dumps({"machine": machine, "date": time.strftime("%F"), "rows": figures}, indent=1)
        )


if __name__ == "__main__":
    main()
