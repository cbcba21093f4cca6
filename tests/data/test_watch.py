"""Workers that die, stop or wait for ever are named, and nothing waits for them or stays behind."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import threading
import time

import pytest

from big_mm import spec
from big_mm.data import pipeline, records
from big_mm.data.watch import Stalled
from tests import tiny
from tests.training import runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return runs.shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return spec.build(tiny.config(tmp_path_factory.mktemp("contract")).contract)


def workers() -> list[int]:
    return [c.pid for c in multiprocessing.active_children() if "grain" in c.name]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stops_is_named(shards, contract, how):
    data = pipeline.Pipeline(records.TFRecordSource(shards), num_workers=2, timeout=15.0)
    batches = data.batches(contract, 16, seed=0)
    next(batches)
    first, second = sorted(workers())
    os.kill(second, how)
    with pytest.raises(Stalled) as error:
        list(itertools.islice(batches, 100))
    text = str(error.value)
    assert re.search(rf"data worker \d of 2 \(process {second}, ", text), text
    assert ("exit code -9" if how == signal.SIGKILL else "stopped") in text
    assert not workers(), "neither the others nor a zombie is left"


@dataclasses.dataclass(frozen=True, eq=False)
class Stuck:
    """A source of which one record is never there."""

    source: records.TFRecordSource
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


def test_a_read_that_hangs_is_first_warned_of_then_named_with_its_record(shards, contract, caplog):
    source = Stuck(records.TFRecordSource(shards), stuck_at=20)
    data = pipeline.Pipeline(source, num_threads=2, shuffle=False, timeout=6.0)
    batches = data.batches(contract, 8, seed=0)
    begun = time.monotonic()
    with pytest.raises(Stalled) as error:
        list(itertools.islice(batches, 10))
    source.released.set()
    assert time.monotonic() - begun < 30
    assert "the input pipeline is the limit" in caplog.text
    text = str(error.value)
    assert source.where(20) in text and "released.wait" in text


def test_what_is_only_slow_is_warned_of_and_goes_on(shards, contract, caplog):
    source = Stuck(records.TFRecordSource(shards), stuck_at=20)
    data = pipeline.Pipeline(source, num_threads=1, shuffle=False, timeout=10.0)
    batches = data.batches(contract, 8, seed=0)
    threading.Timer(2.5, source.released.set).start()
    assert len(list(itertools.islice(batches, 4))) == 4
    assert caplog.text.count("the input pipeline is the limit") == 1
    batches.close()


def test_workers_end_with_the_process_that_reads(shards, tmp_path):
    """Also when it is killed, and could not tell them."""

    def child(write):
        data = pipeline.Pipeline(records.TFRecordSource(shards), num_workers=2)
        next(data.batches(spec.build(tiny.config(tmp_path).contract), 16, seed=0))
        write.send(workers())
        os.kill(os.getpid(), signal.SIGKILL)

    read, write = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(write,))
    process.start()
    left = read.recv()
    process.join()
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)
