"""The doctor's verdict on each kind of damage, in text, as JSON and as exit status."""

import gzip
import io
import json
import os
import sys
from array import array

import pytest
from PIL import Image

from big_mm import doctor
from big_mm.data import record_index
from big_mm.data import shards as shard_files
from big_mm.data.damage import DAMAGE, MEANING
from big_mm.data.examples import Schema, encode
from big_mm.data.records import TFRecordSource, TFRecordWriter


def picture(size: tuple[int, int] = (8, 8), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(file, kind)
    return file.getvalue()


def pair(i: int, **changes) -> bytes:
    features = {"image": picture(), "caption": f"a picture, number {i}", "key": f"k{i}"} | changes
    return encode({k: v for k, v in features.items() if v is not None})


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """One shard for each kind of damage, in record 3 of 8 where records are damaged."""
    monkeypatch.chdir(tmp_path)
    changes = {
        "intact": {},
        "undecodable_image": {"image": b"not a picture"},
        "missing_image": {"image": None},
        "empty_caption": {"caption": ""},
        "over_large": {"image": picture((3000, 2000), "PNG")},
        "malformed": {"caption": b"\xff"},
    }
    for name, change in changes.items():
        with TFRecordWriter(f"{name}.tfrecord") as writer:
            for i in range(8):
                writer.write(pair(i, **(change if i == 3 else {})))
    with open("intact.tfrecord", "rb") as file:
        data = file.read()
    size = 16 + len(pair(0))
    flipped = {"length_crc": 3 * size + 8, "data_crc": 3 * size + 100}
    for name, byte in flipped.items():
        with open(f"{name}.tfrecord", "wb") as file:
            file.write(data[:byte] + bytes([data[byte] ^ 0xFF]) + data[byte + 1 :])
    with open("truncated.tfrecord", "wb") as file:
        file.write(data[: 5 * size + size // 2])
    open("empty_shard.tfrecord", "wb").close()
    return size


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    status = doctor.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def run_json(capsys, *arguments: str) -> tuple[int, dict]:
    status, out, err = run(capsys, *arguments, "--json", "--max_pixels=1000000")
    assert err == ""
    return status, json.loads(out)


def test_intact(capsys, shards):
    status, report = run_json(capsys, "intact.tfrecord")
    assert status == 0
    files = {"intact.tfrecord": {"bytes": 8 * shards, "records": 8, "good": 8, "bad": 0}}
    assert report == {"good": 8, "bad": {}, "files": files, "damage": []}
    status, out, err = run(capsys, "intact.tfrecord")
    assert (status, err) == (0, "")
    assert out == "1 shard, 8 records, 2.8 kB: all good\n".replace(
        "2.8", f"{8 * shards / 1000:.1f}"
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_kind_is_counted_and_placed(capsys, shards, kind):
    file = f"{kind}.tfrecord"
    status, report = run_json(capsys, file)
    assert status == 1
    assert report["bad"] == {kind: 1}
    records = {"truncated": 6, "empty_shard": 0}.get(kind, 8)
    assert report["good"] == max(0, records - 1)
    assert report["files"] == {
        file: {
            "bytes": os.path.getsize(file),
            "records": records,
            "good": report["good"],
            "bad": 1,
        }
    }
    record = {"truncated": 5, "empty_shard": None}.get(kind, 3)
    (damage,) = report["damage"]
    assert damage.pop("detail") or kind == "empty_shard"
    assert damage == {
        "file": file,
        "record": record,
        "offset": (record or 0) * shards,
        "kind": kind,
    }


def test_many_files_at_once(capsys, shards):
    status, report = run_json(capsys, "*.tfrecord")
    assert status == 1
    assert report["bad"] == dict.fromkeys(DAMAGE, 1)
    assert report["good"] == 8 + 7 * 7 + 5
    assert list(report["files"]) == sorted(report["files"])
    assert [d["file"] for d in report["damage"]] == sorted(f"{kind}.tfrecord" for kind in DAMAGE)


def test_text_names_kind_file_and_offset(capsys, shards):
    status, out, _ = run(capsys, "data_crc.tfrecord", "empty_shard.tfrecord")
    assert status == 1
    assert "2 shards, 8 records" in out and "7 good, 2 bad" in out
    assert f"1  data_crc           {MEANING['data_crc']}" in out
    assert f"data_crc.tfrecord @ byte {3 * shards} (record 3): data_crc: the checksum" in out
    assert "\nempty_shard.tfrecord: empty_shard" in out
    _, out, _ = run(capsys, "data_crc.tfrecord", "empty_shard.tfrecord", "--list=1")
    assert "empty_shard.tfrecord" not in out
    assert "... and 1 more: --list 2 or --json shows all" in out


def test_large_records_and_large_pictures(capsys, shards):
    status, report = run_json(capsys, "intact.tfrecord", "--max_record_bytes=10")
    assert (status, report["bad"]) == (1, {"over_large": 8})
    status, out, _ = run(capsys, "over_large.tfrecord", "--max_pixels=6000000")
    assert status == 0, out


def test_nothing_is_written(capsys, shards):
    before = sorted(os.listdir())
    run(capsys, "*.tfrecord")
    assert sorted(os.listdir()) == before


def test_a_stored_index_is_not_believed(capsys, shards):
    stamp = shard_files.stat("data_crc.tfrecord")
    with open(record_index.sidecar("data_crc.tfrecord"), "wb") as file:
        file.write(record_index.pack(array("Q", [0, shards]), stamp))
    assert len(TFRecordSource("data_crc.tfrecord")) == 1
    assert run_json(capsys, "data_crc.tfrecord")[1]["good"] == 7


def test_img2dataset_shards_need_a_schema(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with TFRecordWriter("00000.tfrecord") as writer:
        for i in range(5):
            writer.write(encode({"jpg": picture(), "txt": "a cat", "key": f"{i:09d}", "width": 8}))
    status, out, err = run(capsys, "00000.tfrecord")
    assert (status, out) == (2, "")
    assert err.startswith("error: the schema reads image from the feature 'image'")
    assert err.endswith("they have jpg, key, txt, width\n")
    status, out, _ = run(capsys, "00000.tfrecord", "--schema=image=jpg,captions=txt,key=key")
    assert status == 0, out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.tfrecord"], "no shard matches 'absent.tfrecord'"),
        (["packed.gz"], "packed.gz is compressed (gzip)"),
        (["intact.tfrecord", "--schema=picture=x"], "cannot read 'picture=x' in the schema"),
        (["intact.tfrecord", "--schema=label=class"], "label from the feature 'class'"),
        (["intact.tfrecord", "intact.tfrecord"], "named twice"),
        (["nowhere://a/b"], "nowhere://a/b"),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_status_2(capsys, shards, arguments, message):
    with gzip.open("packed.gz", "wb") as file:
        file.write(b"x" * 100)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_usage_errors_are_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        doctor.main([])
    assert caught.value.code == 2
    assert "SHARDS" in capsys.readouterr().err


def test_help_explains_kinds_status_and_json(capsys):
    with pytest.raises(SystemExit) as caught:
        doctor.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for text in (*MEANING, *MEANING.values(), "exit status", '"damage"', "image=jpg"):
        assert text in out


def test_results_do_not_depend_on_threads(shards):
    source = TFRecordSource(
        tuple(f"{kind}.tfrecord" for kind in DAMAGE), Schema(), store_index=False
    )
    reports = [doctor.examine(source, num_threads=n).to_json() for n in (1, 2, 16)]
    assert len(set(reports)) == 1


def test_progress_counts_every_record(shards):
    seen = []
    source = TFRecordSource("*.tfrecord", store_index=False)
    doctor.examine(source, progress=seen.append)
    assert sum(seen) == len(source)


def test_the_progress_bar_keeps_to_a_terminal(capsys, shards, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    status, out, err = run(capsys, "intact.tfrecord")
    assert status == 0 and "all good" in out
    assert "reading" in err and "8/8" in err
