"""Records hold what the scene graph says, and bytes depend on nothing but the arguments."""

import collections
import hashlib
import json
import pathlib

import cv2
import numpy as np
import pytest
import simplejpeg

from big_mm.data import examples, records, scenes
from big_mm.data.records import TFRecordSource
from big_mm.data.scenes import __main__ as command
from big_mm.spec import UserError


def contents(paths) -> str:
    return hashlib.sha256(b"".join(pathlib.Path(p).read_bytes() for p in paths)).hexdigest()


def test_same_arguments_same_bytes_whatever_the_workers(tmp_path):
    def write(name, **options):
        return scenes.write(str(tmp_path / name), "train", 250, 32, seed=3, **options)

    alone = contents(write("a"))
    assert contents(write("b", num_workers=2)) == alone
    # Records are framed one by one, so shards are cuts of the same byte sequence.
    assert contents(write("c", num_shards=3, num_workers=1)) == alone
    assert contents(scenes.write(str(tmp_path / "d"), "train", 250, 32, seed=4)) != alone


def test_record_agrees_with_its_scene():
    for index in range(20):
        record = scenes.features("test_seen", 0, index, 64)
        scene = scenes.Scene.from_json(record["scene"])
        painted = scenes.render(scene, 64)
        decoded = simplejpeg.decode_jpeg(record["image"]).astype(float)
        assert np.abs(decoded - painted.image).mean() < 4
        mask = cv2.imdecode(np.frombuffer(record["mask"], np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask, painted.labels)
        boxes = np.reshape(record["boxes"], (-1, 4))
        assert len(boxes) == len(scene.objects)
        np.testing.assert_allclose(boxes, painted.boxes(len(scene.objects)))
        assert record["label"] == scene.label
        assert record["caption"] == record["caption_short"] + record["caption_long"]
        assert json.loads(record["scene"])["objects"][0]["shape"] in scenes.SHAPES


def test_shards_are_read_back(tmp_path):
    paths = scenes.write(str(tmp_path), "zero_shot_unseen", 25, 32, num_shards=2)
    assert [pathlib.Path(p).name for p in paths] == [
        "zero_shot_unseen-00000-of-00002.tfrecord",
        "zero_shot_unseen-00001-of-00002.tfrecord",
    ]
    schema = records.Schema(label="label", extra=("scene",))
    source = records.TFRecordSource(str(tmp_path / "*.tfrecord"), schema)
    assert len(source) == 25
    assert [source[i]["key"] for i in range(25)] == [
        f"zero_shot_unseen/0/{i:08d}" for i in range(25)
    ]
    unseen = {scenes.class_index(kind) for kind in scenes.UNSEEN_KINDS}
    assert collections.Counter(source[i]["label"] in unseen for i in range(25)) == {True: 25}


def test_records_pass_through_the_example_encoding():
    record = scenes.features("train", 0, 5, 48)
    decoded = examples.decode(examples.encode(record))
    assert set(decoded) == set(record)
    assert decoded["image"] == [record["image"]]
    assert [caption.decode() for caption in decoded["caption"]] == record["caption"]
    assert decoded["label"] == [record["label"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "no split 'valid'"),
        ({"image_size": 5}, "image_size"),
        ({"num": 2, "num_shards": 3}, "3 shards"),
        ({"num": 0}, "0 scenes"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        scenes.write(**{"out": str(tmp_path), "split": "train", "num": 4} | options)


def test_command_writes_and_reports(tmp_path, capsys):
    splits = ["--splits", "train=10", "zero_shot_seen=3"]
    arguments = ["--out", str(tmp_path), "--image_size", "32", *splits]
    assert command.main([*arguments, "--max_objects", "1"]) == 0
    assert "13 scenes in 2 shards" in capsys.readouterr().out
    assert len(TFRecordSource(f"{tmp_path}/zero_shot_seen-*.tfrecord")) == 3
    assert command.main([*arguments, "--max_objects", "0"]) == 2
    error = capsys.readouterr().err
    assert "count_weights" in error and error.strip().count("\n") == 0
