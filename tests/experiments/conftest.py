"""The embedded world that the experiments' configs name, in the size of a test."""

import os
import pathlib

import pytest

from big_mm.data import scenes, tokenizers
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from configs import quickstart

SIZES = {"train": 160}
SPLITS = ("test", "zero_shot", "retrieval")


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with runs/scenes as `make scenes` writes it, with few records."""
    folder = tmp_path_factory.mktemp("world")
    data = folder / quickstart.DATA
    sizes = SIZES | {f"{split}_{kinds}": 24 for split in SPLITS for kinds in ("seen", "unseen")}
    for split, count in sizes.items():
        easy = scenes.WORLDS["easy"]
        scenes.write(str(data), split, count, quickstart.IMAGE_SIZE, world=easy)
    source = TFRecordSource(f"{data}/train-*.tfrecord", Schema(captions="caption_short"))
    texts = [text for i in range(len(source)) for text in source[i]["captions"]]
    made = tokenizers.train(texts, quickstart.VOCABULARY, model_type="bpe", hard_vocab_limit=False)
    (data / "tokenizer.model").write_bytes(made)
    return folder


@pytest.fixture
def in_world(world, monkeypatch):
    """The same as the working directory."""
    monkeypatch.chdir(world)
    return pathlib.Path(os.curdir)
