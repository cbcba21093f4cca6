"""Input rules written for the peers and read back, kept in checkpoints, and what is refused."""

import json
import sys

import numpy as np
import pytest
import test_inputs as golden
import tiny
from etils import epath

import big_mm
from big_mm import decoding, export, spec, trees
from big_mm.data import subwords
from big_mm.data.contract import Contract
from big_mm.data.subwords import ClipBPE, TokenizerJson, WordPiece
from big_mm.data.tokenizers import SentencePiece
from big_mm.interop import big_vision_inputs, inputs, tokenizer_files
from big_mm.spec import UserError
from big_mm.training import checkpoint

TEXTS = ("A red star!", "it's_a dog &amp; café", "", "word " * 40)
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def clip(folder):
    golden.write_clip(folder)
    return ClipBPE(str(folder / "merges.txt"))


def same(first, second):
    """The contracts agree in what they do, wherever the tokenizer's file is now."""
    rules = [contract.describe() for contract in (first, second)]
    for rule in rules:
        rule.pop("tokenizer")
    assert rules[0] == rules[1]
    for one, other in zip(first.text(TEXTS), second.text(TEXTS), strict=True):
        np.testing.assert_array_equal(one, other)


# ---- written and read ----------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_open_clip_round_trip(folder, clip, clean, resize):
    rules = inputs._CLEAN[clean] | {"resize": resize, "fill": 9 * (resize == "pad")}
    contract = Contract(
        clip, image_size=8, kernel="triangle", transparency="drop", max_len=16, **rules
    )
    out = folder / "out"
    out.mkdir()
    pictures = inputs.write_open_clip(out, contract, MEAN, STD)
    model = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": inputs.open_clip_text(contract)}
    config = json.loads(json.dumps({"model_cfg": model, "preprocess_cfg": pictures}))
    again = inputs.open_clip(config, out, None)
    assert (again.mean, again.std) == (MEAN, STD)
    same(spec.build(again.contract), contract)


@pytest.mark.interop
@pytest.mark.parametrize("resize, resize_size", [("squash", None), ("squash", 10), ("crop", 10)])
def test_hugging_face_round_trip(folder, clip, resize, resize_size):
    tokenizer = ClipBPE(clip.path, pad_id=clip.eos_id, normalize=True)
    contract = Contract(
        tokenizer,
        image_size=8,
        resize=resize,
        resize_size=resize_size,
        kernel="bicubic",
        rounding="hugging_face",
        max_len=16,
    )
    out = folder / "out"
    out.mkdir()
    inputs.write_hugging_face(out, contract, MEAN, STD)
    config = {"model_type": "clip", "text_config": {"max_position_embeddings": 16}}
    (out / "config.json").write_text(json.dumps(config))
    again = inputs.hugging_face(out, None)
    assert (again.mean, again.std) == (MEAN, STD)
    same(spec.build(again.contract), contract)


def test_siglips_sentencepiece_round_trip(folder):
    tokenizer = golden.sentencepiece(folder, "t5", pad_id=1, bos_id=-1)
    contract = Contract(
        tokenizer,
        image_size=8,
        kernel="bicubic",
        rounding="hugging_face",
        max_len=16,
        canonicalize="hugging_face",
        padding="attended",
    )
    out = folder / "out"
    out.mkdir()
    inputs.write_hugging_face(out, contract, MEAN, STD)
    config = {"model_type": "siglip", "text_config": {"max_position_embeddings": 16}}
    (out / "config.json").write_text(json.dumps(config))
    same(spec.build(inputs.hugging_face(out, None).contract), contract)


def test_what_a_peer_has_not_is_said(folder, caplog):
    tokenizer = golden.sentencepiece(folder, "gemma")
    contract = Contract(tokenizer, image_size=8, kernel="area", resize="crop", clean="none")
    inputs.write_hugging_face(folder, contract, MEAN, STD)
    assert "no kernel 'area'" in caplog.text and "rounding='hugging_face'" in caplog.text
    assert "no class that makes these rows" in caplog.text
    caplog.clear()
    inputs.write_open_clip(folder, contract, MEAN, STD)
    assert "transparency='drop', not 'white'" in caplog.text
    inputs.open_clip_text(contract)
    assert "cleans texts in another way" in caplog.text
    with pytest.raises(UserError, match="nothing like resize"):
        inputs.write_hugging_face(folder, Contract(resize="pad"), MEAN, STD)


# ---- in checkpoints and exports ------------------------------------------------------------------


def tokenizers_of(folder):
    """One of each kind."""
    golden.write_clip(folder)
    golden.write_json(folder, "gemma_json")
    (folder / "vocab.txt").write_text("\n".join(golden.VOCABULARIES["bert"]) + "\n")
    return (
        spec.spec(ClipBPE, path=str(folder / "merges.txt")),
        spec.spec(TokenizerJson, path=str(folder / "tokenizer.json"), pad_id=0, bos_id=2, eos_id=1),
        spec.spec(WordPiece, path=str(folder / "vocab.txt")),
    )


@pytest.mark.interop
@pytest.mark.parametrize("kind", range(3))
def test_a_checkpoint_and_an_export_carry_the_tokenizer(tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    tokenizer = tokenizers_of(epath.Path(source))[kind]
    built = spec.build(tokenizer)
    config = tiny.config(tmp_path)
    config.contract.tokenizer = tokenizer
    config.objective.model = tiny.coca(built.vocab_size)
    made = spec.build(config)
    params = tiny.parameters(made["objective"].model, made["contract"])
    files = {
        checkpoint.CONFIG: spec.to_json(spec.resolve(config)).encode(),
        built.file_name: built.model_bytes,
    }
    store = checkpoint.Store(tmp_path / "run" / "checkpoints", checkpoint.Checkpoints(), files)
    store.save(1, {"params": trees.flatten(params)})
    store.close()
    for file in source.iterdir():
        file.unlink()
    loaded = big_mm.load(tmp_path / "run")
    made["contract"].check_same(loaded.contract)
    export.export(tmp_path / "run", "safetensors", tmp_path / "out")
    exported = big_mm.load(tmp_path / "out")
    made["contract"].check_same(exported.contract)
    portable = TokenizerJson(str(tmp_path / "out" / "tokenizer.json"), "", 0, 0, 0)
    assert portable.encode("a red dog") == built.encode("a red dog")
    if kind > 0:  # the rest takes its time to compile
        return
    image = tiny.images(2)
    assert loaded.caption(image, max_len=6, prefix="a dog!")[0].startswith("a dog !")
    likelihood, count = loaded.caption_log_likelihood(image, ["a dog!", ""])
    assert count.tolist() == [len(built.encode("a dog!")) + 1, 1] and (likelihood < 0).all()


# ---- tokenizers ----------------------------------------------------------------------------------


@pytest.mark.interop
def test_no_text_reaches_a_special_token(folder):
    spelled = "a <|endoftext|> [SEP] <eos> <|startoftext|> [CLS] <bos> [PAD] <pad>"
    for made in map(spec.build, tokenizers_of(folder)):
        ids = made.encode(spelled)
        assert ids and not made.reserved & set(ids) - {made.unk_id}
        row = [made.bos_id, *made.encode("red dog"), made.eos_id, made.encode("cat")[0]]
        assert made.decode(row) == "red dog"


def test_one_file_has_other_ids_for_other_models(folder):
    plain = golden.sentencepiece(folder, "t5")
    assert (plain.pad_id, plain.bos_id, plain.eos_id, plain.cls_id) == (0, -1, 1, -1)
    siglip = golden.sentencepiece(folder, "t5", pad_id=1)
    assert plain.fingerprint == siglip.fingerprint
    with pytest.raises(UserError, match="tokenizer: .*'pad_id': 0.* here, .*'pad_id': 1"):
        Contract(plain).check_same(Contract(siglip))
    assert (plain.free_id, siglip.free_id) == (0, 1)


@pytest.mark.interop
def test_clips_padding_is_a_word_that_captions_may_say(clip):
    assert clip.token(clip.pad_id) == "!"
    assert clip.pad_id not in clip.reserved and clip.free_id == -1


# ---- what is refused -----------------------------------------------------------------------------


def refuse(message, function, *args, **kwargs):
    with pytest.raises(UserError, match=message):
        function(*args, **kwargs)


def test_directories_that_cannot_be_read(folder):
    refuse("config.json cannot be read", inputs.hugging_face, folder, None)
    says = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 9}}
    refuse("not square", golden.hugging_face, folder, "clip", **says)
    refuse("resample=1", golden.hugging_face, folder, "clip", resample=1)
    refuse("do_rescale=false", golden.hugging_face, folder, "clip", do_rescale=False)
    refuse("not cropped", golden.hugging_face, folder, "clip", size={"shortest_edge": 8})
    refuse("three channels", golden.hugging_face, folder, "clip", image_mean=[0.5, 0.5])


def test_models_whose_rows_no_contract_has(folder):
    refuse("tokenizer_mode", golden.open_clip, folder, tokenizer_mode="clips")
    refuse("tokenizer_type", golden.open_clip, folder, tokenizer_type="tiktoken")
    refuse("'upper' is none of lower", golden.open_clip, folder, "upper")
    refuse("'blip' is none of siglip", big_vision_inputs.read, "blip", 8, 16, None)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    path = str(folder / "vocab.txt")
    refuse("is a WordPiece file; siglip", big_vision_inputs.read, "siglip", 8, 16, path)
    refuse("no tokenizer file at", big_vision_inputs.read, "siglip", 8, 16, str(folder / "absent"))


def test_files_of_which_berts_rows_cannot_be_made(folder):
    config = {"text_cfg": {"hf_model_name": "xlm-roberta-base", "hf_tokenizer_name": "x"}}

    def refused(message, path):
        refuse(message, inputs.open_clip, config, folder, str(path))
        (folder / "config.json").write_text(json.dumps({"model_type": "chinese_clip"}))
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"size": {"height": 8, "width": 8}, "do_center_crop": False})
        )
        refuse(message, inputs.hugging_face, folder, str(path))

    # XLM-RoBERTa shifts its ids by one.
    (folder / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>")
    refused("is a SentencePiece file; BERT and RoBERTa", folder / "sentencepiece.bpe.model")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nDog\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    refused("is of a cased BERT, which is read from its tokenizer.json", folder / "vocab.txt")


@pytest.mark.interop
def test_texts_of_chinese_clip(folder):
    text = {"max_position_embeddings": 512, "vocab_size": 21_128}
    config = {"model_type": "chinese_clip", "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    pictures = {"size": {"height": 8, "width": 8}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n一\n只\n狗\ndog\n")
    contract = spec.build(inputs.hugging_face(folder, None).contract)
    tokens, token_mask = contract.text(["一只狗 DOG", ""])
    assert tokens.shape == (2, 52)
    assert tokens[0, :7].tolist() == [2, 4, 5, 6, 7, 3, 0]
    assert token_mask.sum(axis=1).tolist() == [6, 2]


@pytest.mark.interop
def test_tokenizer_files_that_are_none(folder):
    path = folder / "file"
    for made, content, message in (
        (TokenizerJson, "{}", "is no TokenizerJson file"),
        (ClipBPE, "#version\nab\n", "a pair of tokens a line"),
        (WordPiece, "dog\n", r"no \[PAD\]"),
    ):
        path.write_text(content)
        ids = {"pad_id": 0, "bos_id": -1, "eos_id": -1} if made is TokenizerJson else {}
        refuse(message, made, str(path), **ids)
    golden.write_json(folder, "gemma_json")
    refuse("give pad_id, bos_id, eos_id", TokenizerJson, str(folder / "tokenizer.json"))
    ids = {"pad_id": 10**6, "bos_id": -1, "eos_id": 1}
    refuse("pad_id=1000000 is outside", TokenizerJson, str(folder / "tokenizer.json"), **ids)


def test_a_missing_package_is_named(folder, monkeypatch):
    golden.write_clip(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refuse(r"big-mm\[interop\]", ClipBPE, str(folder / "merges.txt"))
    monkeypatch.setitem(sys.modules, "ftfy", None)
    tokenizer = golden.sentencepiece(folder, "t5")
    refuse(r"needs ftfy: install big-mm\[interop\]", Contract, tokenizer, clean="web")
    assert Contract(clean="web").tokenizer is None


def test_without_a_tokenizer_there_is_a_warning(folder, caplog):
    made = big_vision_inputs.read("siglip", 8, 64, None)
    assert made.contract.tokenizer is None and "no tokenizer" in caplog.text
    assert golden.open_clip(folder, clean="whitespace").tokenizer is None


def test_kinds_of_files_are_told_by_their_content(folder):
    golden.write_clip(folder)
    golden.sentencepiece(folder, "t5").save(folder / "a.bin")
    (folder / "b.bin").write_text("[PAD]\n##s\n")
    (folder / "c.bin").write_text(' {"model": {}}')
    kinds = [tokenizer_files.kind(folder / f"{n}.bin") for n in "abc"]
    assert kinds == [SentencePiece, WordPiece, TokenizerJson]
    assert tokenizer_files.kind(folder / "merges.txt") is subwords.ClipBPE


def test_captions_need_bos_and_eos(folder):
    with pytest.raises(UserError, match="begin with bos and end in eos"):
        decoding.Vocabulary.of(golden.sentencepiece(folder, "t5"))
    vocabulary = decoding.Vocabulary.of(golden.sentencepiece(folder, "t5", bos_id=0))
    assert vocabulary == decoding.Vocabulary(150, pad_id=0, eos_id=1, free_id=0, never=(0,))
