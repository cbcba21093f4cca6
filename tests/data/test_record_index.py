"""The sidecar index: what it says of sound and of damaged shards, and that it is never stale."""

import gzip
import itertools
import os
import random
import struct
import threading
import zlib

import fsspec
import google_crc32c
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tfrecords

from big_mm.data import record_index, shards
from big_mm.spec import UserError

PAYLOADS = [b"first", b"", b"third one", bytes(100), b"last"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory / "big_mm" / "index"


def scan(tmp_path, data: bytes) -> list[tuple[int, int, str | None]]:
    """The entries that a scan of these bytes gives."""
    path = str(tmp_path / "scanned")
    with open(path, "wb") as file:
        file.write(data)
    return list(record_index.build_index(path, shards.stat(path)))


def starts(payloads: list[bytes]) -> list[int]:
    return list(itertools.accumulate((16 + len(p) for p in payloads), initial=0))


def test_checksum_is_castagnolis_masked():
    # The check value of RFC 3720, and a header as other writers store it.
    assert tfrecords.crc32c(b"123456789") == 0xE3069283
    assert record_index.masked_crc(b"123456789").to_bytes(4, "little") == tfrecords.masked(
        b"123456789"
    )


def test_sound_shard(tmp_path):
    edges = starts(PAYLOADS)
    entries = [(a, b, None) for a, b in itertools.pairwise(edges)]
    assert scan(tmp_path, tfrecords.shard(PAYLOADS)) == entries
    assert scan(tmp_path, b"") == []


def test_every_truncation_keeps_what_is_whole(tmp_path):
    data, edges = tfrecords.shard(PAYLOADS), starts(PAYLOADS)
    for size in range(len(data)):
        whole = [(a, b, None) for a, b in itertools.pairwise(edges) if b <= size]
        cut = [] if size in edges else [(whole[-1][1] if whole else 0, size, "truncated")]
        assert scan(tmp_path, data[:size]) == whole + cut


def test_a_damaged_header_costs_one_record(tmp_path):
    data, edges = tfrecords.shard(PAYLOADS), starts(PAYLOADS)
    for i, begin in enumerate(edges[:-1]):
        expected = [(a, b, None) for a, b in itertools.pairwise(edges)]
        expected[i] = (*expected[i][:2], "length_crc")
        for byte, bit in itertools.product(range(12), range(8)):
            assert scan(tmp_path, tfrecords.flip(data, begin + byte, bit)) == expected


def test_lengths_without_checksum_are_not_believed(tmp_path):
    for length in (2**64 - 1, 2**63, 2**40, 10**6):
        header = struct.pack("<Q", length) + b"\0\0\0\0"
        data = tfrecords.record(b"a") + header + b"junk" + tfrecords.record(b"b")
        edges = [0, 17, len(data) - 17, len(data)]
        kinds = [None, "length_crc", None]
        assert scan(tmp_path, data) == [
            (a, b, k) for (a, b), k in zip(itertools.pairwise(edges), kinds, strict=True)
        ]


def test_lengths_with_checksum_beyond_the_file_are_truncation(tmp_path):
    for length in (2**64 - 1, 2**63, 2**40, 10**6):
        header = struct.pack("<Q", length)
        data = tfrecords.record(b"a") + header + tfrecords.masked(header) + b"rest"
        assert scan(tmp_path, data) == [(0, 17, None), (17, len(data), "truncated")]


def test_the_search_finds_a_header_at_every_distance(tmp_path):
    for distance in (1, 11, 12, 13, 4095, 4096, 4097, 12_299, 3_000_000):
        for fill in (b"\xff", b"\0"):
            data = fill * distance + tfrecords.record(b"found") + tfrecords.record(b"next")
            assert scan(tmp_path, data) == [
                (0, distance, "length_crc"),
                (distance, distance + 21, None),
                (distance + 21, distance + 41, None),
            ]


def test_nothing_to_find_is_one_damaged_stretch(tmp_path):
    noise = random.Random(0).randbytes(100_000)
    assert scan(tmp_path, noise) == [(0, 100_000, "length_crc")]
    # A whole shard of a writer that stores no checksums.
    data = b"".join(struct.pack("<QI", 5, 0) + b"12345" + bytes(4) for _ in range(100))
    assert scan(tmp_path, data) == [(0, len(data), "length_crc")]


def test_a_damaged_record_before_a_truncated_one(tmp_path):
    data = tfrecords.shard([b"one", b"two", b"three"])[:-1]
    assert scan(tmp_path, tfrecords.flip(data, 19 + 8)) == [
        (0, 19, None),
        (19, 38, "length_crc"),
        (38, 58, "truncated"),
    ]


@hypothesis.given(
    payloads=st.lists(st.binary(max_size=40), max_size=8),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=30))),
)
def test_whatever_happens_to_the_bytes_entries_divide_the_file(tmp_path_factory, payloads, edits):
    data = tfrecords.shard(payloads)
    for place, removed, inserted in edits:
        at = int(place * len(data))
        data = data[:at] + inserted + data[at + removed :]
    entries = scan(tmp_path_factory.getbasetemp(), data)
    edges = [begin for begin, _, _ in entries] + [len(data)]
    assert [end for _, end, _ in entries] == edges[1:]
    assert edges == sorted(set(edges)) and edges[0] == 0
    for begin, end, kind in entries:
        if kind is None:
            assert data[begin : begin + 8] == struct.pack("<Q", end - begin - 16)
            assert data[begin + 8 : begin + 12] == tfrecords.masked(data[begin : begin + 8])


def test_large_records_are_skipped_not_read(tmp_path, monkeypatch):
    path = str(tmp_path / "x")
    with open(path, "wb") as file:
        file.write(tfrecords.shard([bytes(1000)] * 3))
        length = struct.pack("<Q", 10**10)
        file.write(length + tfrecords.masked(length))
        file.seek(10**10 + 4, os.SEEK_CUR)  # A hole: the file takes no space on the disk.
        file.write(tfrecords.record(b"after"))
    read, total = shards.LocalFile.read, 0

    def counting(self, offset, count):
        nonlocal total
        total += count
        return read(self, offset, count)

    monkeypatch.setattr(shards.LocalFile, "read", counting)
    index = record_index.build_index(path, shards.stat(path))
    assert [kind for _, _, kind in index] == [None] * 5
    assert total < 20_000


COMPRESSED = {
    "gzip": gzip.compress(tfrecords.shard(PAYLOADS)),
    "zlib": zlib.compress(tfrecords.shard(PAYLOADS)),
    "zstandard": b"\x28\xb5\x2f\xfd" + bytes(50),
    "bzip2": b"BZh91AY&SY" + bytes(50),
}


@pytest.mark.parametrize("method", COMPRESSED)
def test_compressed_files_are_refused(tmp_path, method):
    with pytest.raises(UserError, match=rf"scanned is compressed \({method}\).*uncompressed"):
        scan(tmp_path, COMPRESSED[method])


@pytest.mark.parametrize("magic", [b"\x1f\x8b\x08", b"\x78\x9c", b"\x78\x01"])
def test_a_length_that_looks_like_gzip_is_a_length(tmp_path, magic):
    payload = bytes(int.from_bytes(magic, "little"))
    length = struct.pack("<Q", len(payload))
    crc = ((google_crc32c.value(payload) >> 15) | (google_crc32c.value(payload) << 17)) + 0xA282EAD8
    data = length + tfrecords.masked(length) + payload + struct.pack("<I", crc & 0xFFFFFFFF)
    assert data.startswith(magic)
    assert scan(tmp_path, data) == [(0, len(data), None)]
    assert scan(tmp_path, tfrecords.flip(data, 8)) == [(0, len(data), "length_crc")]


def test_the_file_is_what_the_module_says(tmp_path):
    path = str(tmp_path / "x")
    with open(path, "wb") as file:
        file.write(tfrecords.flip(tfrecords.shard(PAYLOADS), starts(PAYLOADS)[2] + 8))
    index, stored = record_index.open_index(path, shards.stat(path))
    assert stored
    with open(tmp_path / ".x.index", "rb") as file:
        data = file.read()
    assert data == index.to_bytes()
    assert data[:8] == b"bigmmix1" and len(data) == 40 + 8 * 6
    size, _, count, body_crc, header_crc = struct.unpack_from("<QQQII", data, 8)
    assert (size, count) == (os.path.getsize(path), 5)
    assert (body_crc, header_crc) == (tfrecords.crc32c(data[40:]), tfrecords.crc32c(data[:36]))
    words = np.frombuffer(data[40:], "<u8")
    edges = starts(PAYLOADS)
    assert words.tolist() == edges[:2] + [edges[2] | 2 << 56] + edges[3:]


def open_new(path: str, monkeypatch) -> tuple[list, bool]:
    """Entries, and whether the shard was scanned for them."""
    scanned = []
    original = record_index.scan
    with monkeypatch.context() as patch:
        patch.setattr(record_index, "scan", lambda *args: scanned.append(1) or original(*args))
        index, _ = record_index.open_index(path, shards.stat(path))
    return list(index), bool(scanned)


def test_an_index_is_built_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(tfrecords.shard([b"aaaa", b"b"]))
    assert open_new(str(path), monkeypatch) == ([(0, 20, None), (20, 37, None)], True)
    assert open_new(str(path), monkeypatch) == ([(0, 20, None), (20, 37, None)], False)
    # The same size, other records.
    time = path.stat().st_mtime_ns
    path.write_bytes(tfrecords.shard([b"a", b"bbbb"]))
    os.utime(path, ns=(time, time + 1))
    assert open_new(str(path), monkeypatch) == ([(0, 17, None), (17, 37, None)], True)
    # The same time, another size.
    path.write_bytes(tfrecords.shard([b"a"]))
    os.utime(path, ns=(time, time + 1))
    assert open_new(str(path), monkeypatch) == ([(0, 17, None)], True)
    assert open_new(str(path), monkeypatch) == ([(0, 17, None)], False)


def test_a_damaged_index_is_built_again(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(tfrecords.shard([b"a", b"b"]))
    good = open_new(str(path), monkeypatch)[0]
    sidecar = tmp_path / ".x.index"
    data = sidecar.read_bytes()
    damaged = [data[:size] for size in range(len(data))]
    damaged = damaged[::5] + [tfrecords.flip(data, byte, byte % 8) for byte in range(len(data))]
    damaged += [data + b"\0", b"\0" * 1000]
    for other in damaged:
        sidecar.write_bytes(other)
        assert open_new(str(path), monkeypatch) == (good, True)
        assert sidecar.read_bytes() == data


def test_read_only_directories_leave_the_index_to_a_private_cache(tmp_path, monkeypatch, cache):
    path = tmp_path / "data" / "x"
    path.parent.mkdir()
    path.write_bytes(tfrecords.shard(PAYLOADS))
    path.parent.chmod(0o555)
    try:
        entries, scanned = open_new(str(path), monkeypatch)
        assert scanned and os.listdir(path.parent) == ["x"]
        assert cache.stat().st_mode & 0o777 == 0o700 and len(os.listdir(cache)) == 1
        assert open_new(str(path), monkeypatch) == (entries, False)
        monkeypatch.chdir(path.parent)
        assert open_new("x", monkeypatch) == (entries, False)
    finally:
        path.parent.chmod(0o755)


def test_a_cache_that_others_may_enter_is_not_used(tmp_path, cache, caplog):
    path = tmp_path / "data" / "x"
    path.parent.mkdir()
    path.write_bytes(tfrecords.shard(PAYLOADS))
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    path.parent.chmod(0o555)
    try:
        index, stored = record_index.open_index(str(path), shards.stat(str(path)))
    finally:
        path.parent.chmod(0o755)
    assert len(index) == 5 and not stored and os.listdir(cache) == []
    assert "stays in memory" in caplog.text and "is not a private directory" in caplog.text


def test_a_full_disk_leaves_the_index_in_memory(tmp_path, monkeypatch):
    def full(path, sync):
        raise OSError(28, "No space left on device", path)

    path = tmp_path / "x"
    path.write_bytes(tfrecords.shard(PAYLOADS))
    monkeypatch.setattr(shards, "atomic_write", full)
    index, stored = record_index.open_index(str(path), shards.stat(str(path)))
    assert len(index) == 5 and not stored


def test_many_may_build_the_same_index_at_once(tmp_path):
    path = str(tmp_path / "x")
    with open(path, "wb") as file:
        file.write(tfrecords.shard([bytes(i % 7) for i in range(500)]))
    stamp, barrier, results = shards.stat(path), threading.Barrier(8), []

    def build() -> None:
        barrier.wait()
        results.append(record_index.open_index(path, stamp)[0].to_bytes())

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and len(set(results)) == 1
    assert sorted(os.listdir(tmp_path)) == [".x.index", "x"]


def test_remote_indexes_are_published_and_copied_to_the_cache(monkeypatch, cache):
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/x", tfrecords.shard(PAYLOADS))
    entries, scanned = open_new("memory://bucket/x", monkeypatch)
    assert scanned and len(os.listdir(cache)) == 1
    assert files.exists("/bucket/.x.index")
    assert open_new("memory://bucket/x", monkeypatch) == (entries, False)
    for name in os.listdir(cache):  # Another host.
        os.remove(cache / name)
    assert open_new("memory://bucket/x", monkeypatch) == (entries, False)
    assert len(os.listdir(cache)) == 1
    files.rm("/bucket/.x.index")  # A bucket that the user may only read.
    assert open_new("memory://bucket/x", monkeypatch) == (entries, False)
    files.pipe("/bucket/x", tfrecords.shard(PAYLOADS[::-1]))
    assert open_new("memory://bucket/x", monkeypatch)[1]
