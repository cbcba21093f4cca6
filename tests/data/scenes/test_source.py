"""Scenes as they are read are those that are written."""

import pytest

from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.data.scenes import SceneSource, World, write
from big_mm.data.shots import Shots
from big_mm.spec import UserError

WORLD = World(tones=("dark",))


def test_the_records_are_those_of_the_writer(tmp_path):
    write(str(tmp_path), "zero_shot_seen", 3, 32, seed=4, world=WORLD)
    schema = Schema(captions="caption_short", label="label")
    written = TFRecordSource(f"{tmp_path}/*.tfrecord", schema)
    read = SceneSource("zero_shot_seen", 3, 32, seed=4, world=WORLD)
    assert len(read) == len(written) == 3
    for index in range(3):
        for key, value in written[index].items():
            assert read[index][key] == value
    assert read.where(2) == "scene zero_shot_seen/4/00000002"
    assert [item["key"] for item in read] == [read[i]["key"] for i in range(3)]


def test_labels_need_no_pictures():
    source = SceneSource("zero_shot_seen", 12, 32, world=WORLD)
    labels = [source.class_number(i) for i in range(len(source))]
    assert labels == [source[i]["label"] for i in range(len(source))]
    shots = Shots(source, None, classes=(labels[3],))
    own = [i for i, label in enumerate(labels) if label == labels[3]]
    assert [shots[i]["key"] for i in range(len(shots))] == [source[i]["key"] for i in own]


def test_bad_options():
    with pytest.raises(UserError, match="no split 'zero' of scenes"):
        SceneSource("zero", 3, 32)
    with pytest.raises(UserError, match="count=0 must be at least 1"):
        SceneSource("train", 0, 32)
    with pytest.raises(UserError, match="'train' has no captions='caption_held_out'"):
        SceneSource("train", 3, 32, captions="caption_held_out")
