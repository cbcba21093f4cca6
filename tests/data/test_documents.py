"""Documents are as drawn and as stored; their texts, one after the other."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from big_mm.data import examples, tokenizers
from big_mm.data.contract import Contract
from big_mm.data.damage import BadRecord
from big_mm.data.documents import Documents, Interleave
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource
from big_mm.spec import UserError
from tests.data import tfrecords

SIZE = 16


class Pictures:
    """Five grey pictures, each with two captions."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        said = [f"a red circle number {index}", f"there is a blue star {index}"]
        return {"image": png(40 * index), "captions": said, "key": str(index), "label": index}

    def where(self, index):
        return f"picture {index}"


def png(grey):
    data = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (grey,) * 3).save(data, "PNG")
    return data.getvalue()


SOURCE = Pictures()


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    texts = [text for i in range(5) for text in SOURCE[i]["captions"]]
    made = tokenizers.train(texts * 9, 300, model_type="bpe", hard_vocab_limit=False)
    path = tmp_path_factory.mktemp("documents") / "tokenizer.model"
    path.write_bytes(made)
    return Contract(tokenizer=tokenizers.SentencePiece(str(path)), image_size=SIZE, max_len=48)


def test_documents_are_the_same_every_time_and_hold_no_record_twice():
    made = Documents(SOURCE, images=3, seed=1)
    for index in range(5):
        others = made.others(index)
        assert others == Documents(SOURCE, images=3, seed=1).others(index)
        assert len({*others, index}) == 3 and all(0 <= other < 5 for other in others)
        record = made[index]
        assert [texts[0][-1] for texts in record["texts"]] == [*map(str, others), str(index)]
        assert record["key"] == str(index) and made.where(index) == f"picture {index}"
    drawn = [[Documents(SOURCE, 3, seed).others(i) for i in range(5)] for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    with pytest.raises(UserError, match="images=6 must be from 1 to the 5 records"):
        Documents(SOURCE, images=6)


def test_a_document_is_its_captions_one_after_the_other(contract):
    record, tokenizer = Documents(SOURCE, images=2)[3], contract.tokenizer
    made = Interleave(pair_len=20).bind(contract)
    row = made.random_map(record, np.random.default_rng(0))
    texts = contract.detokenize(row["pair_tokens"])
    assert all(text in texts_of for text, texts_of in zip(texts, record["texts"], strict=True))
    words = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)]
    whole = [*[*words[0], *words[1]][: contract.max_len - 1], tokenizer.eos_id]
    assert row["tokens"][row["token_mask"]].tolist() == whole
    assert not row["tokens"][~row["token_mask"]].any()
    np.testing.assert_array_equal(row["images"][1], np.full((16, 16, 3), 120))
    short = Interleave(pair_len=20).bind(dataclasses.replace(contract, max_len=6))
    cut = short.random_map(record, np.random.default_rng(0))["tokens"]
    assert cut.tolist() == [*whole[:5], tokenizer.eos_id]
    with pytest.raises(BadRecord, match="empty_caption"):
        made.random_map(record | {"texts": [["a"], []]}, np.random.default_rng(0))


def test_documents_of_a_shard(contract, tmp_path):
    """Five documents; one lacks a text."""
    texts = [["a red circle", "a blue star"]] * 4 + [["a red circle"]]
    payloads = [
        examples.encode({"image": [png(i), png(i + 1)], "text": said, "key": str(i)})
        for i, said in enumerate(texts)
    ]
    (tmp_path / "documents.tfrecord").write_bytes(tfrecords.shard(payloads))
    fields = {"texts": ("texts=text",), "extra": ("images=image",)}
    schema = Schema(image=None, captions=None, **fields)
    source = TFRecordSource(f"{tmp_path}/*.tfrecord", schema)
    made = Interleave(pair_len=12).bind(contract)
    rng = np.random.default_rng(0)
    row = made.random_map(source[3], rng)
    assert row["key"] == "3" and contract.detokenize(row["pair_tokens"]) == texts[3]
    np.testing.assert_array_equal(row["images"][:, 0, 0, 0], [3, 4])
    with pytest.raises(BadRecord, match="1 texts of 2 images"):
        made.random_map(source[4], rng)
