"""The model that open_clip is asked to run is one that it can express."""

import importlib
import pathlib

import numpy as np
import pytest

from big_mm import spec
from big_mm.interop import open_clip, open_clip_export

BENCHMARKS = pathlib.Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("open_clip_coca")


def test_the_config_is_a_run_of_a_model_that_open_clip_expresses(benchmark):
    config = benchmark.get_config("DIR")
    model = spec.build(config.objective.model)
    written = open_clip_export.config_of(model)
    assert written["embed_dim"] == written["multimodal_cfg"]["width"] == benchmark.WIDTH
    read = spec.build(open_clip.model_spec(written, "config"))
    assert (read.queries, read.legacy, read.pooling) == (model.queries, True, "shared")
    assert config.contract.tokenizer.path == "DIR/tokenizer.model"


def test_captions_are_compared_up_to_their_end(benchmark):
    eos = 2
    ours = np.array([[1, 7, 8, eos, 0], [1, 7, 8, 9, 5]])
    theirs = np.array([[1, 7, 8, eos, eos], [1, 7, 8, 9, eos]])
    assert benchmark.words(ours, eos) == benchmark.words(theirs, eos) == [[1, 7, 8], [1, 7, 8, 9]]
    assert benchmark.words(ours, eos) != benchmark.words(theirs + (theirs == 8), eos)
