"""Workers that die, stop or wait for ever are named, and nothing waits for them or stays behind."""

import itertools
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
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
    next(batches), next(batches)  # one of each worker: both have started
    _, second = sorted(workers())
    os.kill(second, how)
    with pytest.raises(Stalled) as error:
        list(itertools.islice(batches, 100))
    text = str(error.value)
    assert re.search(rf"data worker \d of 2 \(process {second}, ", text), text
    assert ("exit code -9" if how == signal.SIGKILL else "stopped") in text
    assert not workers(), "neither the others nor a zombie is left"


def test_a_read_that_hangs_is_first_warned_of_then_named_with_its_record(shards, contract, caplog):
    source = runs.Stuck(records.TFRecordSource(shards), stuck_at=20)
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
    source = runs.Stuck(records.TFRecordSource(shards), stuck_at=20)
    data = pipeline.Pipeline(source, num_threads=1, shuffle=False, timeout=10.0)
    batches = data.batches(contract, 8, seed=0)
    threading.Timer(2.5, source.released.set).start()
    assert len(list(itertools.islice(batches, 4))) == 4
    assert caplog.text.count("the input pipeline is the limit") == 1
    batches.close()


PROGRAM = """
import multiprocessing, os, pathlib, signal, sys
from big_mm import spec
from big_mm.data import pipeline, records
from tests import tiny
if __name__ == "__main__":
    contract = spec.build(tiny.config(pathlib.Path(sys.argv[2])).contract)
    data = pipeline.Pipeline(records.TFRecordSource(sys.argv[1]), num_workers=2)
    batches = data.batches(contract, 16, seed=0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_process_that_reads(shards, tmp_path):
    """Also when it is killed, and could not tell them."""
    command = [sys.executable, "-c", PROGRAM, shards, str(tmp_path)]
    root = pathlib.Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        left = [int(pid) for pid in process.stdout.readline().split()]
    assert process.returncode == -signal.SIGKILL and left
    deadline = time.monotonic() + 20
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)
