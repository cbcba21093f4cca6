"""tf.train.Example byte for byte, and what a schema makes of it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from big_mm.data import examples
from big_mm.data.damage import BadRecord
from big_mm.data.examples import Schema
from big_mm.spec import UserError, build, from_json, spec, to_json

# Worked out by hand from feature.proto and the protobuf encoding: tags 0a 12 1a are fields 1 2 3 of
# a length-prefixed type; numbers of a list are packed.
GOLDEN = [
    ({"a": 1}, "0a0c 0a0a 0a0161 1205 1a03 0a01 01"),
    ({"a": -1}, "0a15 0a13 0a0161 120e 1a0c 0a0a ffffffffffffffffff01"),
    ({"a": b"xyz"}, "0a0e 0a0c 0a0161 1207 0a05 0a03 78797a"),
    ({"a": ["x", b"y"]}, "0a0f 0a0d 0a0161 1208 0a06 0a0178 0a0179"),
    ({"a": [1.0, -2.0]}, "0a13 0a11 0a0161 120c 120a 0a08 0000803f 000000c0"),
    ({"b": 2, "a": 1}, "0a18 0a0a 0a0161 1205 1a03 0a0101 0a0a 0a0162 1205 1a03 0a0102"),
    ({"a": []}, "0a07 0a05 0a0161 1200"),
    ({}, ""),
]


@pytest.mark.parametrize(("features", "golden"), GOLDEN)
def test_golden_bytes(features, golden):
    assert examples.encode(features).hex() == golden.replace(" ", "")


def test_unpacked_numbers_are_read_too():
    assert examples.decode(bytes.fromhex("0a0d 0a0b 0a0161 1206 1a04 0801 0802")) == {"a": [1, 2]}


VALUES = st.one_of(
    st.lists(st.binary(max_size=20), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    st.just([]),
)


@hypothesis.given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES))
def test_round_trip(features):
    data = examples.encode(features)
    assert examples.decode(data) == features
    assert examples.encode(dict(reversed(features.items()))) == data
    some = set(list(features)[::2]) | {"absent"}
    assert examples.decode(data, some) == {k: v for k, v in features.items() if k in some}


def test_scalars_text_and_arrays():
    data = examples.encode(
        {
            "text": "é",
            "flag": True,
            "int": np.int32(7),
            "float": np.float32(0.5),
            "ints": np.arange(3),
            "floats": np.linspace(0, 1, 3),
            "mixed": [1, 2.5],
        }
    )
    assert examples.decode(data) == {
        "text": ["é".encode()],
        "flag": [1],
        "int": [7],
        "float": [0.5],
        "ints": [0, 1, 2],
        "floats": [0, 0.5, 1],
        "mixed": [1, 2.5],
    }


def test_what_an_example_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="'a' holds NoneType"):
        examples.encode({"a": [None]})
    with pytest.raises(TypeError, match="'a' holds int, str"):
        examples.encode({"a": [1, "x"]})
    with pytest.raises(TypeError, match="'a' holds list"):
        examples.encode({"a": np.zeros((2, 2))})
    with pytest.raises(ValueError):
        examples.encode({"a": 2**63})


@hypothesis.given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_malformed(data):
    try:
        examples.decode(data)
    except BadRecord as error:
        assert error.kind == "malformed"


PAIR = {"image": b"jpeg", "caption": ["a", "b"], "key": "k", "label": 3}


def read(schema: Schema, **features) -> dict:
    return schema.read(examples.encode(features))


def test_default_schema():
    assert read(Schema(), **PAIR) == {"image": b"jpeg", "captions": ["a", "b"], "key": "k"}


def test_img2dataset():
    features = {"jpg": b"jpeg", "txt": "a dog", "key": "000000017", "width": 256, "alt": " "}
    schema = Schema(image="jpg", captions=("txt", "alt"), extra=("w=width",))
    assert read(schema, **features) == {
        "image": b"jpeg",
        "captions": ["a dog"],
        "key": "000000017",
        "w": [256],
    }
    assert schema == Schema.parse("image=jpg,captions=txt+alt,extra=w=width")


def test_numbers_are_keys_and_absent_fields_are_absent():
    assert read(Schema(image=None, captions=None, key="label"), **PAIR) == {"key": "3"}
    assert read(Schema(key=None, captions=()), **PAIR) == {"image": b"jpeg"}
    assert read(Schema(label="label"), **PAIR)["label"] == 3
    optional = Schema(label="class", extra=("box",), optional=("label", "box"))
    assert read(optional, **PAIR).keys() == {"image", "captions", "key"}


def test_further_texts():
    schema = Schema(texts=("alt", "said=words"), optional=("said",))
    assert read(schema, **PAIR, alt=["x", " "])["alt"] == ["x"]
    assert "said" not in read(schema, **PAIR, alt="x")
    assert read(schema, **PAIR, alt="x", words="y")["said"] == ["y"]
    assert schema == Schema.parse("texts=alt+said=words,optional=said")
    with pytest.raises(BadRecord, match="alt"):
        read(schema, **PAIR)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"image": []}, "missing_image"),
        ({"image": b""}, "missing_image"),
        ({"image": None}, "missing_image"),
        ({"image": 5}, "malformed"),
        ({"caption": []}, "empty_caption"),
        ({"caption": ""}, "empty_caption"),
        ({"caption": [" ", "\n\u3000"]}, "empty_caption"),
        ({"caption": None}, "empty_caption"),
        ({"caption": b"\xff\xfe"}, "malformed"),
        ({"caption": 1.5}, "malformed"),
        ({"key": None}, "malformed"),
        ({"key": ["a", "b"]}, "malformed"),
        ({"label": None}, "malformed"),
        ({"label": "three"}, "malformed"),
        ({"label": [1, 2]}, "malformed"),
        ({"box": None}, "malformed"),
    ],
)
def test_damage_within_an_example(changes, kind):
    features = {k: v for k, v in (PAIR | {"box": 1.0} | changes).items() if v is not None}
    with pytest.raises(BadRecord) as caught:
        read(Schema(label="label", extra=("box",)), **features)
    assert caught.value.kind == kind
    feature = next(iter(changes))
    assert repr(feature) in caught.value.detail


def test_check_names_the_field_the_feature_and_what_there_is():
    present = {"jpg", "txt", "key"}
    Schema(image="jpg", captions="txt").check(present, "f")
    Schema(image="jpg", captions="txt", label="x", optional=("label",)).check(present, "f")
    message = "image from the feature 'image', which the records of f do not have; they have jpg, "
    with pytest.raises(UserError, match=message + "key, txt"):
        Schema().check({"txt", "key", "jpg"}, "f")
    with pytest.raises(UserError, match="reads captions from the feature 'alt'"):
        Schema(image="jpg", captions=("txt", "alt")).check(present, "f")


@pytest.mark.parametrize(
    "text", ["jpg", "picture=jpg", "image=a,image=b", "image jpg", "extra=image", "optional=label"]
)
def test_unreadable_schemas(text):
    with pytest.raises(UserError, match="schema"):
        Schema.parse(text)


def test_schema_texts():
    assert Schema.parse("") == Schema()
    assert Schema.parse("key=, captions=") == Schema(key=None, captions=())
    assert Schema.parse("label=cls,extra=a+b,optional=label+b") == Schema(
        label="cls", extra=("a", "b"), optional=("label", "b")
    )


def test_a_schema_travels_as_json():
    schema = Schema(image="jpg", captions=("txt", "alt"), key=None, extra=("w=width",))
    config = spec(Schema, image="jpg", captions=("txt", "alt"), key=None, extra=("w=width",))
    assert build(from_json(to_json(config))) == schema
