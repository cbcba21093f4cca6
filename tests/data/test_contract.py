"""One contract gives training, evaluators and notebooks the same pixels and the same tokens."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from big_mm import spec
from big_mm.data import tokenizers, transforms
from big_mm.data.contract import Contract, Decoding
from big_mm.data.tokenizers import SentencePiece
from big_mm.spec import UserError

WORDS = "a red green blue small big star circle square on the left right of".split()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("contract") / "words.model"
    model = tokenizers.train(WORDS * 20, 360, model_type="bpe", hard_vocab_limit=False)
    path.write_bytes(model)
    return str(path)


@pytest.fixture(scope="module")
def contract(path):
    return Contract(SentencePiece(path), image_size=24, max_len=8)


def picture(height=40, width=50):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tokens_are_bos_words_eos_pad(contract):
    tokens, token_mask = contract.text(["a red star", "", "star " * 30])
    ids = contract.tokenizer.encode("a red star")
    assert tokens[0].tolist() == [1, *ids, 2] + [0] * (6 - len(ids))
    assert tokens[1].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    assert tokens[2, 0] == 1 and tokens[2, -1] == 2 and 0 not in tokens[2]
    np.testing.assert_array_equal(token_mask, tokens != 0)
    assert (tokens.dtype, token_mask.dtype, tokens.shape) == (np.int32, bool, (3, 8))


@pytest.mark.parametrize("count", range(5, 9))
def test_truncation_keeps_eos_at_every_length(contract, count):
    tokens, _ = contract.text([" ".join(["red"] * count)])
    words = contract.tokenizer.encode(" ".join(["red"] * count))
    assert tokens[0].tolist()[: min(8, len(words) + 2)] == [1, *words[:6], 2]


def test_detokenize_undoes_text(contract):
    texts = ["a red star", "the big circle", ""]
    assert contract.detokenize(contract.text(texts)[0]) == texts
    assert contract.detokenize([[1, 2], [1, *contract.tokenizer.encode("blue"), 0]]) == ["", "blue"]


def test_normalization(contract):
    lower = dataclasses.replace(contract, lowercase=True)
    canonical = dataclasses.replace(contract, canonicalize=True)
    plain = contract.text(["a red star"])[0]
    np.testing.assert_array_equal(lower.text(["A RED star"])[0], plain)
    np.testing.assert_array_equal(canonical.text([" A RED, star! "])[0], plain)
    assert (contract.text(["A RED star"])[0] != plain).any()


def test_attended_padding(contract):
    tokens, token_mask = dataclasses.replace(contract, padding="attended").text(["red"])
    assert token_mask.all() and (tokens == 0).any()


def test_every_form_of_a_picture_is_the_same_picture(contract):
    array = picture()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    prepared = contract.image(array)
    assert prepared.shape == (24, 24, 3)
    for form in (file.getvalue(), Image.fromarray(array), bytearray(file.getvalue())):
        np.testing.assert_array_equal(contract.image(form), prepared)
    trained = transforms.Resize().bind(contract).map({"image": array})["image"]
    np.testing.assert_array_equal(trained, prepared)
    opaque = np.concatenate([array, np.full((40, 50, 1), 255, np.uint8)], -1)
    np.testing.assert_array_equal(contract.image(opaque), prepared)
    grey = np.repeat(array[..., :1], 3, -1)
    np.testing.assert_array_equal(contract.image(array[..., :1]), contract.image(grey))
    np.testing.assert_array_equal(contract.image(array[..., 0]), contract.image(grey))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 2), np.uint8), np.zeros(8, np.uint8)]
)
def test_what_is_no_picture(contract, image):
    with pytest.raises(UserError, match="must be uint8"):
        contract.image(image)


def test_a_difference_is_named(contract, path):
    contract.check_same(dataclasses.replace(contract, decoding=Decoding(num_beams=4)))
    contract.check_same(Contract(SentencePiece(path), image_size=24, max_len=8))
    for change, word in (
        ({"kernel": "bicubic"}, "kernel: 'area' here, 'bicubic' there"),
        ({"max_len": 9}, "max_len: 8 here, 9 there"),
        ({"tokenizer": None}, "tokenizer"),
    ):
        other = dataclasses.replace(contract, **change)
        with pytest.raises(UserError, match=word):
            contract.check_same(other)
        assert other.fingerprint != contract.fingerprint


def test_fingerprint_is_of_the_vocabulary_not_its_place(contract, tmp_path):
    contract.tokenizer.save(tmp_path / "copy.model")
    moved = dataclasses.replace(contract, tokenizer=SentencePiece(str(tmp_path / "copy.model")))
    assert moved.fingerprint == contract.fingerprint


def test_vocabulary(contract):
    size = contract.tokenizer.vocab_size
    contract.check_vocabulary(size)
    contract.check_vocabulary(-(-size // 128) * 128)
    for wrong in (size - 1, 2 * size, -(-size // 128) * 128 + 1):
        with pytest.raises(UserError, match=f"{wrong} does not match the tokenizer's {size}"):
            contract.check_vocabulary(wrong)


def test_mistakes_are_said(contract):
    with pytest.raises(UserError, match="not one string"):
        contract.text("a red star")
    with pytest.raises(UserError, match="no tokenizer"):
        Contract().text(["a"])
    with pytest.raises(UserError, match="max_len"):
        Contract(max_len=1)


def test_it_is_built_from_its_json(contract, path):
    config = spec.spec(
        Contract, tokenizer=spec.spec(SentencePiece, path=path), image_size=24, max_len=8
    )
    again = spec.build(spec.from_json(spec.to_json(spec.resolve(config))))
    assert again.fingerprint == contract.fingerprint
