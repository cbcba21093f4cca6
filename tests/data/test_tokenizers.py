"""Reserved ids that no text can reach, every text encodable, training that repeats itself."""

import hashlib
import io
import pickle
import shutil
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from big_mm.data import examples, normalization, records, tokenizers
from big_mm.data.tokenizers import SentencePiece
from big_mm.spec import UserError

COLOURS = "red green blue yellow black white orange purple".split()
SHAPES = "circle square star heart cross ring triangle".split()
CAPTIONS = [
    f"a {size} {colour} {shape} on the {side} side"
    for size in ("small", "big", "huge")
    for colour in COLOURS
    for shape in SHAPES
    for side in ("left", "right")
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "captions.model"
    path.write_bytes(tokenizers.train(CAPTIONS, 300))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(path):
    return SentencePiece(path)


def test_ids_are_where_everybody_expects_them(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert (tokenizer.unk_id, tokenizer.cls_id) == (3, 4)
    assert tokenizer.vocab_size == 300
    pieces = [tokenizer._processor.id_to_piece(i) for i in range(5)]
    assert pieces == ["<pad>", "<s>", "</s>", "<unk>", "<cls>"]


@hypothesis.given(
    st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(["<cls>", "<pad>", "<s>", "</s>", "<unk>", "<0x41>", " ", "red", "é"]),
            max_size=8,
        ).map("".join),
    )
)
def test_no_text_reaches_a_reserved_id(tokenizer, text):
    assert all(5 <= i < 300 for i in tokenizer.encode(text))


@pytest.mark.parametrize(
    "text", ["a red star", "<cls> and </s>", "日本語 ☃ naïve", "<0x41>", "x" * 500, "", "E = mc²!"]
)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFKC", text)


def test_decoding_ends_at_eos_and_skips_what_is_reserved(tokenizer):
    ids = tokenizer.encode("a red star")
    assert tokenizer.decode([1, *ids, 2, *tokenizer.encode("not this")]) == "a red star"
    assert tokenizer.decode([1, 4, *ids, 0, 0, 3]) == "a red star"
    with pytest.raises(ValueError, match="300"):
        tokenizer.decode([300])


def test_batches_are_single_texts(tokenizer):
    assert tokenizer.encode_batch(CAPTIONS[:9]) == [tokenizer.encode(c) for c in CAPTIONS[:9]]


def test_training_repeats_itself():
    model = tokenizers.train(CAPTIONS, 300)
    assert model == tokenizers.train(CAPTIONS, 300)
    assert model != tokenizers.train(CAPTIONS[:100], 300, hard_vocab_limit=False)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_small_corpus_says_what_it_supports(model_type, tmp_path):
    with pytest.raises(UserError, match=r"at most \d+ pieces, not 4096") as caught:
        tokenizers.train(CAPTIONS, 4096, model_type=model_type)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    for size, options in ((most, {}), (4096, {"hard_vocab_limit": False})):
        path = tmp_path / f"{size}.model"
        path.write_bytes(tokenizers.train(CAPTIONS, size, model_type=model_type, **options))
        assert SentencePiece(str(path)).vocab_size == most


def test_too_small_a_vocabulary_says_what_is_needed():
    with pytest.raises(UserError, match=r"need \d+") as caught:
        tokenizers.train(CAPTIONS, 100)
    needed = int(str(caught.value).split("need ")[1].split(";")[0])
    tokenizers.train(CAPTIONS, needed)


def test_without_byte_fallback_a_closed_world_needs_few_pieces(tmp_path):
    path = tmp_path / "small.model"
    path.write_bytes(tokenizers.train(CAPTIONS, 64, model_type="bpe", byte_fallback=False))
    tokenizer = SentencePiece(str(path))
    assert tokenizer.vocab_size == 64
    assert tokenizer.decode(tokenizer.encode(CAPTIONS[0])) == CAPTIONS[0]
    assert set(tokenizer.encode("<cls> 日本")) & {0, 1, 2, 3, 4} == {3}


@pytest.mark.parametrize("captions", [[], ["", " \n"]])
def test_no_text(captions):
    with pytest.raises(UserError, match="no text"):
        tokenizers.train(captions, 300)


def test_the_model_travels(tokenizer, path, tmp_path):
    """To a worker, which may not see the file, and into a checkpoint."""
    moved = tmp_path / "moved.model"
    shutil.copy(path, moved)
    pickled = pickle.dumps(SentencePiece(str(moved)))
    moved.unlink()
    assert pickle.loads(pickled).encode("a red star") == tokenizer.encode("a red star")
    saved = tmp_path / "saved.model"
    tokenizer.save(saved)
    again = SentencePiece(str(saved), sha256=tokenizer.fingerprint)
    assert again.model_bytes == tokenizer.model_bytes
    assert again.fingerprint == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_wrong_files_are_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokenizer model"):
        SentencePiece(str(tmp_path / "absent.model"))
    other = tmp_path / "other.model"
    other.write_bytes(tokenizers.train(CAPTIONS[:99], 300, hard_vocab_limit=False))
    with pytest.raises(UserError, match="another vocabulary"):
        SentencePiece(str(other), sha256=tokenizer.fingerprint)
    other.write_bytes(b"no model")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePiece(str(other))


def test_a_vocabulary_without_our_reserved_ids_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=40, minloglevel=2
    )
    path = tmp_path / "default.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match="reserved"):
        SentencePiece(str(path))


def test_canonicalize_is_siglips():
    assert normalization.canonicalize("  A red_Fox, in\tthe SNOW!? ") == "a red fox in the snow"


def test_command_line(tmp_path, capsys):
    shard = str(tmp_path / "train.tfrecord")
    with records.TFRecordWriter(shard) as writer:
        for i, caption in enumerate(CAPTIONS):
            writer.write(examples.encode({"txt": [caption, caption.upper()], "id": i}))
    text = tmp_path / "captions.txt"
    text.write_text("\n".join(c for caption in CAPTIONS for c in (caption, caption.upper())))
    outs = [str(tmp_path / name) for name in ("a/shards.model", "b/text.model")]
    options = ["--vocab_size", "295", "--lowercase"]
    tokenizers.main(["--shards", shard, "--schema", "captions=txt", *options, "--out", outs[0]])
    tokenizers.main(["--text", str(text), *options, "--out", outs[1]])
    assert "295 pieces from 672 captions" in capsys.readouterr().out
    first, second = map(SentencePiece, outs)
    assert first.model_bytes == second.model_bytes
    with pytest.raises(SystemExit) as caught:
        tokenizers.main(["--shards", shard, "--schema", "captions=caption", *options, "--out", "x"])
    assert caught.value.code == 2
    assert "'caption'" in capsys.readouterr().err
