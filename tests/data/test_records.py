"""TFRecord shards as a source: what is read is what was written, or a BadRecord says why."""

import functools
import itertools
import os
import pickle
import random
import subprocess
import sys
import threading

import fsspec
import grain
import hypothesis
import hypothesis.strategies as st
import pytest
import tfrecords

from big_mm.data import record_index, records, shards
from big_mm.data.damage import DAMAGE, MEANING, BadRecord
from big_mm.data.examples import Schema, encode
from big_mm.data.records import TFRecordSource, TFRecordWriter, write_shards
from big_mm.spec import UserError, build, from_json, spec, to_json

ANY = Schema(image=None, captions=None, key=None)
Unstored = functools.partial(TFRecordSource, schema=ANY, store_index=False)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def pair(i: int, **changes) -> bytes:
    features = {"image": f"image {i}".encode(), "caption": f"caption {i}", "key": f"k{i}"} | changes
    return encode({k: v for k, v in features.items() if v is not None})


def outcomes(source: TFRecordSource) -> list[bytes | str]:
    """For every record its bytes, or the kind of its damage."""

    def outcome(i: int) -> bytes | str:
        try:
            return source.read(i)
        except BadRecord as error:
            return error.kind

    return [outcome(i) for i in range(len(source))]


def outcomes_of(tmp_path, data: bytes) -> list[bytes | str]:
    path = str(tmp_path / "shard")
    with open(path, "wb") as file:
        file.write(data)
    return outcomes(Unstored(path))


# Writing.


def test_golden_bytes(tmp_path):
    # Length 3, its masked CRC32C, "abc", its masked CRC32C, by hand from the format's description.
    with TFRecordWriter(tmp_path / "x") as writer:
        writer.write(b"abc")
    golden = bytes.fromhex("0300000000000000") + tfrecords.masked(b"\3" + bytes(7))
    golden += b"abc" + tfrecords.masked(b"abc")
    assert (tmp_path / "x").read_bytes() == golden
    assert golden.hex() == "0300000000000000b099490e6162636e57f121"


@hypothesis.settings(max_examples=20)
@hypothesis.given(st.lists(st.binary(max_size=50), max_size=20))
def test_round_trip(tmp_path_factory, payloads):
    path = str(tmp_path_factory.getbasetemp() / "round_trip")
    with TFRecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    with open(path, "rb") as file:
        assert file.read() == tfrecords.shard(payloads)
    assert outcomes(TFRecordSource(path, ANY)) == payloads


def test_grain_reads_what_we_write(tmp_path):
    payloads = [bytes([i]) * i * 100 for i in range(1, 20)]
    with TFRecordWriter(tmp_path / "x") as writer:
        for payload in payloads:
            writer.write(payload)
    assert list(grain.experimental.TFRecordIterDataset(str(tmp_path / "x"))) == payloads


def test_the_writer_stores_the_index_that_a_scan_gives(tmp_path, monkeypatch):
    with TFRecordWriter(tmp_path / "new" / "x") as writer:
        for i in range(100):
            writer.write(bytes(i))
    path = str(tmp_path / "new" / "x")
    scanned = record_index.build_index(path, shards.stat(path)).to_bytes()
    assert (tmp_path / "new" / ".x.index").read_bytes() == scanned
    monkeypatch.setattr(record_index, "scan", None)
    assert len(TFRecordSource(path, ANY)) == 100


def test_nothing_is_left_of_a_shard_whose_writing_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), TFRecordWriter(tmp_path / "x") as writer:
        writer.write(b"a")
        _ = 1 / 0
    assert os.listdir(tmp_path) == []

    def failing():
        yield from (b"a", b"b", b"c")
        _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        write_shards(failing(), f"{tmp_path}/x@2")
    assert os.listdir(tmp_path) == []


def test_records_are_dealt_over_shards(tmp_path):
    payloads = [bytes([i]) for i in range(10)]
    names = write_shards(iter(payloads), f"{tmp_path}/x@3.tfrecord")
    assert [os.path.basename(name) for name in names] == [
        f"x-0000{i}-of-00003.tfrecord" for i in range(3)
    ]
    expected = payloads[0::3] + payloads[1::3] + payloads[2::3]
    assert outcomes(TFRecordSource(f"{tmp_path}/x@3.tfrecord", ANY)) == expected


# Reading.


def test_records_of_several_shards_with_their_places(tmp_path):
    counts = [3, 0, 1, 5]
    numbers = iter(range(9))
    for shard, count in enumerate(counts):
        with TFRecordWriter(tmp_path / f"x{shard}") as writer:
            for i in itertools.islice(numbers, count):
                writer.write(pair(i))
    source = TFRecordSource(f"{tmp_path}/x*")
    assert len(source) == 9
    for i, record in enumerate(source):
        assert record == {"image": b"image %d" % i, "captions": [f"caption {i}"], "key": f"k{i}"}
    assert source[-1]["key"] == "k8"
    size = 16 + len(pair(0))
    assert source.where(2) == f"{tmp_path}/x0 @ byte {2 * size} (record 2)"
    assert source.where(5) == f"{tmp_path}/x3 @ byte {size} (record 1)"
    assert source.locate(4) == (f"{tmp_path}/x3", 0, 0)
    for i in (9, -10):
        with pytest.raises(IndexError, match=f"record {i} of 9"):
            source[i]


def test_records_without_key_are_named_by_their_place(tmp_path):
    write_shards((pair(i) for i in range(4)), f"{tmp_path}/x@2")
    source = TFRecordSource(f"{tmp_path}/x@2", Schema(key=None))
    assert source[3]["key"] == "x-00001-of-00002/1"


def test_remote_shards(tmp_path):
    fsspec.filesystem("memory").store.clear()
    write_shards((pair(i) for i in range(10)), "memory://bucket/x@2")
    source = TFRecordSource("memory://bucket/x-*")
    assert sorted(record["key"] for record in source) == [f"k{i}" for i in range(10)]
    assert source.where(5) == "memory:///bucket/x-00001-of-00002 @ byte 0 (record 0)"


def test_a_config_names_a_source_without_the_data_being_there():
    config = spec(TFRecordSource, shards="gs://nowhere/x", schema=spec(Schema, image="jpg"))
    source = build(from_json(to_json(config)))
    assert source == TFRecordSource("gs://nowhere/x", Schema(image="jpg"))


def test_a_worker_imports_little_and_neither_lists_nor_indexes_again(tmp_path):
    write_shards((pair(i) for i in range(10)), f"{tmp_path}/x@2")
    program = """
import pickle, sys
from big_mm.data import record_index, shards
shards.expand = record_index.scan = None
for source in pickle.load(sys.stdin.buffer):
    print([source[i]["key"] for i in range(len(source))])
print({"jax", "grain", "tensorflow_datasets"} & set(sys.modules))
"""
    sources = [
        TFRecordSource(f"{tmp_path}/x*", store_index=store).open() for store in (True, False)
    ]
    worker = [sys.executable, "-c", program]
    run = subprocess.run(worker, input=pickle.dumps(sources), capture_output=True)
    keys = [record["key"] for record in sources[0]]
    assert run.stdout.decode().splitlines() == [str(keys), str(keys), "set()"], run.stderr


def test_many_threads_read_more_shards_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_reader", functools.lru_cache(maxsize=2)(records._Reader))
    payloads = [random.Random(i).randbytes(200) for i in range(400)]
    write_shards(payloads, f"{tmp_path}/x@8")
    source = TFRecordSource(f"{tmp_path}/x@8", ANY)
    expected = [payload for shard in range(8) for payload in payloads[shard::8]]
    wrong = []

    def read(seed: int) -> None:
        for i in random.Random(seed).sample(range(400), 400):
            if source.read(i) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Damage.


def test_kinds_have_a_fixed_order():
    # Stored in indexes and logged by number: only ever append.
    assert DAMAGE[:5] == (
        "truncated",
        "length_crc",
        "data_crc",
        "undecodable_image",
        "missing_image",
    )
    assert DAMAGE[5:] == ("empty_caption", "empty_shard", "over_large", "malformed")
    assert tuple(MEANING) == DAMAGE


def test_bad_record_says_what_and_where_and_travels():
    error = BadRecord("data_crc", detail="why").at("file")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.kind, copy.detail, copy.where) == ("data_crc", "why", "file")
    assert str(copy) == "file: data_crc: why"
    assert str(BadRecord(kind="over_large")) == "over_large"
    with pytest.raises(ValueError, match="'broken' is not a kind of damage"):
        BadRecord("broken")


def test_every_flipped_bit_is_found(tmp_path):
    payloads = [b"first", b"", b"the third"]
    data = tfrecords.shard(payloads)
    begin = 0
    for i, payload in enumerate(payloads):
        for byte in range(16 + len(payload)):
            kind = "length_crc" if byte < 12 else "data_crc"
            expected = [*payloads[:i], kind, *payloads[i + 1 :]]
            for bit in range(8):
                assert outcomes_of(tmp_path, tfrecords.flip(data, begin + byte, bit)) == expected
        begin += 16 + len(payload)


def test_every_truncation_is_found(tmp_path):
    payloads = [b"first", b"", b"the third"]
    data = tfrecords.shard(payloads)
    edges = [0, 21, 37, len(data)]
    for size in range(len(data)):
        whole = sum(edge <= size for edge in edges) - 1
        cut = [] if size in edges else ["truncated"]
        assert outcomes_of(tmp_path, data[:size]) == payloads[:whole] + cut


@hypothesis.given(
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6, unique=True),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 9), st.binary(max_size=9)), max_size=4),
)
def test_only_what_was_written_is_ever_read(tmp_path_factory, payloads, edits):
    data = tfrecords.shard(payloads)
    for place, removed, inserted in edits:
        at = int(place * len(data))
        data = data[:at] + inserted + data[at + removed :]
    found = outcomes_of(tmp_path_factory.getbasetemp(), data)
    read = [outcome for outcome in found if isinstance(outcome, bytes)]
    rest = iter(payloads)
    assert all(payload in rest for payload in read), "not a subsequence of what was written"
    assert set(found) - set(read) <= {"truncated", "length_crc", "data_crc"}


def test_damage_is_placed(tmp_path):
    path = str(tmp_path / "x")
    data = tfrecords.shard([b"a", b"b", b"c"])
    with open(path, "wb") as file:
        file.write(tfrecords.flip(tfrecords.flip(data, 12), 17 + 8)[:-1])
    source = Unstored(path)
    expected = [
        (f"{path} @ byte 0 (record 0)", "checksum of the 1 bytes does not fit"),
        (f"{path} @ byte 17 (record 1)", "checksum of the length does not fit; the length does"),
        (f"{path} @ byte 34 (record 2)", "the file ends 16 bytes into the record"),
    ]
    for i, (where, detail) in enumerate(expected):
        with pytest.raises(BadRecord, match=detail) as caught:
            source[i]
        assert caught.value.where == where == source.where(i)


def test_lost_stretches_say_how_much_is_lost(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff" * 1000 + tfrecords.record(b"a"))
    source = Unstored(str(tmp_path / "x"))
    with pytest.raises(BadRecord, match="the 1000 bytes up to the next record .* are lost"):
        source.read(0)
    assert source.read(1) == b"a"


def test_large_records_are_not_read(tmp_path):
    (tmp_path / "x").write_bytes(tfrecords.shard([bytes(100), bytes(101)]))
    source = Unstored(str(tmp_path / "x"), max_record_bytes=100)
    assert source.read(0) == bytes(100)
    with pytest.raises(BadRecord, match="over_large: 101 bytes, limit 100"):
        source.read(1)


def test_empty_shards_are_logged(tmp_path, caplog):
    (tmp_path / "x").touch()
    assert len(Unstored(str(tmp_path / "x"))) == 0
    assert f"{tmp_path}/x: the shard has no records" in caplog.text


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"image": None}, "missing_image"), ({"caption": ""}, "empty_caption")],
)
@pytest.mark.parametrize("place", [0, 3])
def test_damage_of_one_example_is_no_error_of_the_schema(tmp_path, changes, kind, place):
    write_shards((pair(i, **(changes if i == place else {})) for i in range(5)), f"{tmp_path}/x")
    source = TFRecordSource(f"{tmp_path}/x")
    assert [source[i]["key"] for i in range(5) if i != place]
    with pytest.raises(BadRecord) as caught:
        source[place]
    assert caught.value.kind == kind
    assert caught.value.where == source.where(place)


# The user's mistakes.


def test_a_schema_that_names_an_absent_feature(tmp_path):
    write_shards((pair(i) for i in range(3)), f"{tmp_path}/x")
    source = TFRecordSource(f"{tmp_path}/x", Schema(image="jpg"))
    message = f"image from the feature 'jpg'.* {tmp_path}/x do not have.* caption, image, key"
    with pytest.raises(UserError, match=message):
        len(source)


def test_missing_shards(tmp_path):
    with pytest.raises(UserError, match="no shard matches '.*/x-\\*'"):
        TFRecordSource(f"{tmp_path}/x-*").open()


def test_a_shard_that_changes_under_the_reader(tmp_path):
    path = tmp_path / "x"
    write_shards([b"a", b"b"], str(path))
    source = TFRecordSource(str(path), ANY).open()
    write_shards([b"a", b"b", b"c"], str(path))
    records._reader.cache_clear()  # As in a process that has not opened the shard yet.
    with pytest.raises(UserError, match="x has changed since it was indexed: start again"):
        source.read(0)
    # Overwritten in place behind an open reader: the bytes tell.
    source = TFRecordSource(str(path), ANY)
    assert source.read(0) == b"a"
    with open(path, "r+b") as file:
        file.write(tfrecords.shard([b"aaaa"]))
    with pytest.raises(UserError, match="has changed since"):
        source.read(0)
    with open(path, "r+b") as file:
        file.truncate(20)
    with pytest.raises(BadRecord, match="truncated: 3 of 17 bytes are there"):
        source.read(1)
