"""Transforms change the keys they name, draw from the generator they are handed, keep bounds."""

import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import simplejpeg

from big_mm import spec
from big_mm.data import images, transforms
from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.spec import UserError

CONTRACT = Contract(image_size=32, kernel="bilinear", resize="crop", max_pixels=4000)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_what_is_left_open_is_the_contracts():
    bound = [
        t.bind(CONTRACT)
        for t in (
            transforms.Decode(),
            transforms.Resize(),
            transforms.CenterCrop(size=8),
            transforms.RandomResizedCrop(kernel="area"),
            transforms.Tokenize(),
        )
    ]
    assert bound == [
        transforms.Decode(max_pixels=4000, transparency="white"),
        transforms.Resize(32, "crop", "bilinear", rounding="torchvision", fill=0),
        transforms.CenterCrop(8, "bilinear"),
        transforms.RandomResizedCrop(32, kernel="area"),
        transforms.Tokenize(CONTRACT),
    ]


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Resize(16, "squash", "area"),
        transforms.CenterCrop(16, "area"),
        transforms.RandomResizedCrop(16, kernel="area"),
        transforms.Flip(1.0),
    ],
)
def test_other_keys_pass_and_the_input_is_untouched(transform):
    record = {"image": picture(20, 30), "key": "a", "captions": ["x"], "boxes": np.arange(4)}
    before = {k: np.copy(v) for k, v in record.items()}
    if hasattr(transform, "random_map"):
        after = transform.random_map(record, rng())
    else:
        after = transform.map(record)
    assert {k: v for k, v in after.items() if k != "image"} == {
        k: v for k, v in record.items() if k != "image"
    }
    for key, value in before.items():
        np.testing.assert_array_equal(record[key], value)
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_decode():
    data = simplejpeg.encode_jpeg(picture(50, 60), quality=90)
    decoded = transforms.Decode(3000).map({"image": data})["image"]
    np.testing.assert_array_equal(decoded, images.decode(data))
    for record, kind in (
        ({}, "missing_image"),
        ({"image": b""}, "missing_image"),
        ({"image": b"text"}, "undecodable_image"),
        ({"image": data}, "over_large"),
    ):
        with pytest.raises(BadRecord) as caught:
            transforms.Decode(2999).map(record)
        assert caught.value.kind == kind


@hypothesis.given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted).map(tuple),
    st.integers(0, 100),
)
def test_crop_box_lies_in_the_picture(height, width, scale, ratio, seed):
    crop = transforms.RandomResizedCrop(8, scale, ratio, "area")
    top, left, h, w = crop.box(height, width, rng(seed))
    assert 0 <= top and 0 <= left and 0 < h <= height - top and 0 < w <= width - left


def test_crop_has_the_area_and_ratio_asked_for():
    crop = transforms.RandomResizedCrop(8, (0.3, 0.5), (0.8, 1.25), "area")
    boxes = np.array([crop.box(400, 400, rng(i)) for i in range(500)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 400**2, boxes[:, 3] / boxes[:, 2]
    assert 0.295 < area.min() < 0.31 and 0.49 < area.max() < 0.505
    assert 0.79 < ratio.min() < 0.83 and 1.2 < ratio.max() < 1.26
    assert abs(np.log(ratio).mean()) < 0.02
    slack = 400 - boxes[:, 2:]
    assert (np.abs((boxes[:, :2] / slack).mean(0) - 0.5) < 0.05).all()


def test_crop_pixels_are_those_of_the_box():
    crop = transforms.RandomResizedCrop(16, (0.2, 0.6), kernel="bilinear")
    image = picture(70, 90)
    top, left, h, w = crop.box(70, 90, rng(5))
    expected = images.resize(
        np.ascontiguousarray(image[top : top + h, left : left + w]), (16, 16), "bilinear"
    )
    actual = crop.random_map({"image": image}, rng(5))["image"]
    np.testing.assert_array_equal(actual, expected)


def test_an_extreme_picture_falls_back_to_the_largest_legal_middle():
    crop = transforms.RandomResizedCrop(8, (0.9, 1.0), (3 / 4, 4 / 3), "area")
    assert crop.box(30, 900, rng()) == (0, 430, 30, 40)
    assert crop.box(900, 30, rng()) == (430, 0, 40, 30)


@pytest.mark.parametrize(
    "bad", [{"scale": (0.0, 1.0)}, {"scale": (0.9, 0.5)}, {"ratio": (0.0, 1.0)}]
)
def test_impossible_crops_are_refused(bad):
    with pytest.raises(UserError, match="RandomResizedCrop"):
        transforms.RandomResizedCrop(**bad)


def test_views_are_crops_beside_the_picture():
    crop = transforms.RandomResizedCrop(16, (0.05, 0.4), kernel="bilinear")
    record = {"image": picture(60, 50), "caption": "a"}
    found = transforms.Views(crop, count=3, out="local").random_map(record, rng())
    assert found.keys() == {"image", "caption", "local"} and found["image"] is record["image"]
    drawn = rng()
    for view in found["local"]:
        np.testing.assert_array_equal(view, crop.random_map(record, drawn)["image"])
    bound = transforms.Views(transforms.RandomResizedCrop(16), count=1).bind(CONTRACT)
    assert bound.crop == transforms.RandomResizedCrop(16, kernel="bilinear")
    with pytest.raises(UserError, match="count=0 must be at least 1"):
        transforms.Views(crop, count=0)
    with pytest.raises(UserError, match="out='image' would replace the picture"):
        transforms.Views(crop, count=2, out="image")


def test_center_crop_enlarges_what_is_too_small():
    crop = transforms.CenterCrop(10, "area")
    image = picture(31, 20)
    np.testing.assert_array_equal(crop.map({"image": image})["image"], image[10:20, 5:15])
    assert crop.map({"image": picture(4, 50)})["image"].shape == (10, 10, 3)


def test_flip_is_off_by_default():
    image = picture(3, 4)
    record = {"image": image}
    assert all(transforms.Flip().random_map(record, rng(i)) is record for i in range(50))
    flips = [
        not np.array_equal(transforms.Flip(0.3).random_map(record, rng(i))["image"], image)
        for i in range(1000)
    ]
    assert 0.25 < np.mean(flips) < 0.35
    np.testing.assert_array_equal(
        transforms.Flip(1.0).random_map(record, rng())["image"], image[:, ::-1]
    )


def choices(captions, n=2000, **options):
    choose = transforms.ChooseCaption(**options)
    chosen = [choose.random_map({"captions": captions}, rng(i))["caption"] for i in range(n)]
    return {c: chosen.count(c) / n for c in set(chosen)}


def test_captions_are_chosen_in_their_shares():
    shares = choices(["a", "b", " ", "c", ""])
    assert set(shares) == {"a", "b", "c"} and all(abs(s - 1 / 3) < 0.04 for s in shares.values())
    shares = choices(["a", "b", "c"], weights=(3.0, 1.0))
    assert set(shares) == {"a", "b"} and abs(shares["a"] - 0.75) < 0.04
    assert choices(["a"], weights=(0.25, 0.75)) == {"a": 1.0}
    assert choices(["", "b"], weights=(0.25, 0.75)) == {"b": 1.0}


@pytest.mark.parametrize("captions", [[], [""], [" ", "\t"]])
def test_no_caption_is_damage(captions):
    with pytest.raises(BadRecord) as caught:
        transforms.ChooseCaption().random_map({"captions": captions}, rng())
    assert caught.value.kind == "empty_caption"
    with pytest.raises(UserError, match="weights"):
        transforms.ChooseCaption(weights=(0.0, 0.0))


def test_transforms_are_built_from_configs():
    config = spec.spec(transforms.RandomResizedCrop, scale=(0.5, 1.0))
    assert spec.build(spec.from_json(spec.to_json(config))) == transforms.RandomResizedCrop(
        scale=(0.5, 1.0)
    )
