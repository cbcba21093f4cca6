"""Scenes as TFRecord shards: the features of a record, and the parallel writer."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from big_mm.data import examples
from big_mm.data.records import TFRecordWriter
from big_mm.data.scenes.language import DEFAULT_GRAMMAR, Grammar
from big_mm.data.scenes.rendering import render
from big_mm.data.scenes.sampling import DEFAULT_WORLD, World
from big_mm.data.scenes.splits import restrict, sample
from big_mm.data.shards import is_remote
from big_mm.spec import UserError

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 1024
_JPEG_QUALITY = 92
_CHUNK = 200


def features(
    split: str,
    seed: int,
    index: int,
    image_size: int,
    world: World = DEFAULT_WORLD,
    grammar: Grammar = DEFAULT_GRAMMAR,
) -> dict:
    """The features of one record; equal arguments (and library versions) give equal bytes.

    image: JPEG. caption: all captions of the training phrasings, which `caption_short` and
    `caption_long` hold apart; caption_held_out: other phrasings (not in the train split).
    label: colour * 8 + shape of a single object, or -1. scene: the scene graph as JSON.
    boxes: x0, y0, x1, y1 of what is visible of each object, as fractions of the image's side.
    mask: PNG, one byte a pixel: 0, or 1 + the index of the object seen there. key.
    """
    item = sample(split, seed, index, world, grammar)
    painted = render(item.scene, image_size)
    record = {
        "image": to_jpeg(painted.image),
        "caption": item.short + item.long,
        "caption_short": item.short,
        "caption_long": item.long,
        "key": item.key,
        "label": item.scene.label,
        "scene": item.scene.to_json(),
        "boxes": painted.boxes(len(item.scene.objects)).ravel().tolist(),
        "mask": cv2.imencode(".png", painted.labels)[1].tobytes(),
    }
    if item.held_out:
        record["caption_held_out"] = item.held_out
    return record


def to_jpeg(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A picture as records hold it."""
    return simplejpeg.encode_jpeg(
        image, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    """What a worker process needs to make any record of a data set."""

    split: str
    seed: int
    image_size: int
    world: World
    grammar: Grammar

    def encode(self, indices: range) -> list[bytes]:
        make = functools.partial(
            features,
            self.split,
            self.seed,
            image_size=self.image_size,
            world=self.world,
            grammar=self.grammar,
        )
        return [examples.encode(make(index)) for index in indices]


def write(
    out: str,
    split: str,
    num: int,
    image_size: int = 64,
    seed: int = 0,
    num_shards: int = 1,
    num_workers: int = 0,
    world: World = DEFAULT_WORLD,
    grammar: Grammar = DEFAULT_GRAMMAR,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Writes records 0 to `num` of a split to `out`/SPLIT-00000-of-0000N.tfrecord; returns paths.

    The bytes depend on neither `num_workers` (0: in this process) nor `num_shards`, which only
    cuts the same sequence elsewhere. `progress` is called with the number of records done.
    """
    restrict(world, split)
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"image_size must be {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, not {image_size}"
        )
    if not 1 <= num_shards <= num:
        raise UserError(f"cannot cut {num} scenes into {num_shards} shards of at least one")
    if num_workers < 0 or seed < 0:
        raise UserError(f"num_workers ({num_workers}) and seed ({seed}) must not be negative")
    if not is_remote(out):
        os.makedirs(out, exist_ok=True)
    edges = [num * i // num_shards for i in range(num_shards + 1)]
    paths = [
        f"{out.rstrip('/')}/{split}-{i:05d}-of-{num_shards:05d}.tfrecord" for i in range(num_shards)
    ]
    job = _Job(split, seed, image_size, world, grammar)
    chunks = [range(i, min(i + _CHUNK, num)) for i in range(0, num, _CHUNK)]
    done = 0
    with contextlib.closing(_encoded(job, chunks, num_workers)) as encoded:
        for path, first, last in zip(paths, edges[:-1], edges[1:], strict=True):
            with TFRecordWriter(path) as writer:
                for _ in range(first, last):
                    writer.write(next(encoded))
                    done += 1
                    if progress and (done % _CHUNK == 0 or done == num):
                        progress(done)
    return paths


def _encoded(job: _Job, chunks: list[range], num_workers: int) -> Iterator[bytes]:
    """The encoded records in order, from this process or from spawned ones."""
    if not num_workers:
        for chunk in chunks:
            yield from job.encode(chunk)
        return
    # OpenCV's own threads would only fight over the cores with the processes.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    )
    with pool:
        try:
            for records in pool.map(job.encode, chunks):
                yield from records
        except BaseException:
            # Whether stopped or failed: do not finish the rest first.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
