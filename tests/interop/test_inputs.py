"""Pictures and texts are prepared as the peers prepare them, whose answers are golden_inputs.*
(made by make_golden_inputs.py beside open_clip, transformers 4 and 5, and TensorFlow).
"""

import base64
import dataclasses
import gzip
import importlib.util
import json
import pathlib

import input_cases as cases
import numpy as np
import pytest
from etils import epath

from big_mm import spec
from big_mm.data.tokenizers import SentencePiece
from big_mm.interop import big_vision_inputs, inputs

HERE = pathlib.Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_inputs.json").read_text())
VOCABULARIES, TEXTS = GOLDEN["vocabularies"], GOLDEN["texts"]
PICTURES = np.load(HERE / "golden_inputs.npz")["pictures"]
# What open_clip resizes in the file's own mode, where a palette has no means and hidden colours
# count less; here they are RGB first.
RESIZED_IN_THEIR_MODE = {"grey_alpha", "alpha", "palette", "cmyk"}


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def write_clip(folder):
    lines = "\n".join(["#version: 0.2", *VOCABULARIES["merges"]])
    (folder / "merges.txt").write_text(lines + "\n")
    return gzip.compress(lines.encode())


def write_json(folder, name, **tokens):
    (folder / "tokenizer.json").write_text(VOCABULARIES[name])
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))


def sentencepiece(folder, name, **ids):
    path = folder / f"{name}.model"
    path.write_bytes(base64.b64decode(VOCABULARIES[name]))
    return SentencePiece(str(path), **ids)


def open_clip(folder, clean=None, tokenizer=None, preprocess=None, **text):
    text = {"context_length": cases.LENGTH, **text}
    if clean:
        text["tokenizer_kwargs"] = {"clean": clean} | text.get("tokenizer_kwargs", {})
    model = {"embed_dim": 8, "vision_cfg": {"image_size": cases.SIZE}, "text_cfg": text}
    config = {"model_cfg": model, "preprocess_cfg": preprocess or {}}
    return spec.build(inputs.open_clip(config, folder, tokenizer).contract)


def hugging_face(folder, model_type, **pictures):
    text = {"max_position_embeddings": cases.LENGTH}
    config = {"model_type": model_type, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config))
    says = {"size": {"height": 8, "width": 8}, "resample": 3, "image_mean": [0.5] * 3} | pictures
    (folder / "preprocessor_config.json").write_text(json.dumps(says))
    return spec.build(inputs.hugging_face(folder, None).contract)


def check_rows(contract, name, texts=cases.TEXTS):
    rows = dict(zip(cases.TEXTS, TEXTS[name], strict=True))
    tokens, token_mask = contract.text(texts)
    assert tokens.tolist() == [rows[text] for text in texts]
    return tokens, token_mask


# ---- pictures ------------------------------------------------------------------------------------


def answers(*parts):
    """{picture's name: [size, size, 3] as the peer prepared it}."""
    start = "/".join(parts) + "/"
    found = {k.removeprefix(start): v for k, v in GOLDEN["pictures"].items() if k.startswith(start)}
    assert len(found) >= 9
    return {name: PICTURES[row].astype(int) for name, row in found.items()}


def differences(contract, expected):
    """{picture's name: the greatest difference}, where there is one."""
    pictures = cases.pictures()
    greatest = {
        name: int(np.abs(contract.image(pictures[name]).astype(int) - array).max())
        for name, array in expected.items()
    }
    return {name: value for name, value in greatest.items() if value}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_open_clips_pictures_pixel_for_pixel(folder, mode, interpolation):
    pictures = {"size": cases.SIZE, "fill_color": 77, "resize_mode": mode}
    contract = open_clip(folder, preprocess=pictures | {"interpolation": interpolation})
    wrong = differences(contract, answers("open_clip", mode, interpolation))
    assert set(wrong) <= RESIZED_IN_THEIR_MODE


@pytest.mark.parametrize("interpolation, resample", [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("release", [4, 5])
def test_hugging_faces_pictures(folder, release, family, interpolation, resample):
    pictures = {"resample": resample, "size": {"height": cases.SIZE, "width": cases.SIZE}}
    if family == "clip":
        pictures |= {"size": {"shortest_edge": cases.INNER}, "crop_size": cases.SIZE}
    contract = hugging_face(folder, family, **pictures)
    if release == 4:
        contract = dataclasses.replace(contract, transparency="drop")
    pillow = answers(f"transformers{release}", family, "pillow", interpolation)
    assert not differences(contract, pillow)
    # The default, torchvision's kernel on uint8, has coefficients of another width than Pillow's.
    torch = answers(f"transformers{release}", family, "torch", interpolation)
    assert all(value == 1 for value in differences(contract, torch).values())


@pytest.mark.parametrize("kernel", ["tf_bilinear", "tf_triangle", "tf_bicubic", "tf_area"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_big_visions_pictures_pixel_for_pixel(resize, kernel):
    contract = spec.build(big_vision_inputs.read("siglip", cases.SIZE, 64, None).contract)
    assert (contract.resize, contract.kernel) == ("squash", "tf_bilinear")
    inner = cases.INNER if resize == "crop" else None
    contract = dataclasses.replace(contract, resize=resize, kernel=kernel, resize_size=inner)
    assert not differences(contract, answers("tensorflow", resize, kernel))


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.interop
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_open_clips_own_tokenizer(folder, clean):
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(write_clip(folder))
    contract = open_clip(folder, clean)
    tokens, token_mask = check_rows(contract, f"open_clip/tiny/{clean}")
    assert (token_mask.sum(axis=1) == 1 + tokens.argmax(axis=1)).all()  # eos is the last id
    spoken = contract.detokenize(
        [contract.tokenizer.encode(contract.normalize(t)) for t in cases.TEXTS]
    )
    assert spoken == [text.strip() for text in GOLDEN["spoken"][f"open_clip/tiny/{clean}"]]
    same = open_clip(folder, clean, tokenizer=str(folder / "merges.txt"))
    np.testing.assert_array_equal(same.text(cases.TEXTS)[0], tokens)


@pytest.mark.peer
@pytest.mark.interop
@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_clips_real_vocabulary(folder, clean):
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("peer: no torch")
    path = pathlib.Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    check_rows(open_clip(folder, clean, tokenizer=str(path)), f"open_clip/real/{clean}")


@pytest.mark.interop
@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_open_clip_with_a_tokenizer_json(folder, clean):
    """Gemma's rows in open_clip's SigLIP 2: the file's own eos, truncation and padding undone."""
    write_json(folder, "gemma_json", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    contract = open_clip(folder, clean, hf_tokenizer_name="hub/name", no_causal_mask=True)
    _, token_mask = check_rows(contract, f"open_clip/gemma/{clean}")
    assert token_mask.all()


@pytest.mark.interop
@pytest.mark.parametrize("strip", [False, True])
def test_open_clip_with_berts_word_pieces(folder, strip):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARIES["bert"]) + "\n")
    options = {"tokenizer_kwargs": {"strip_sep_token": strip}}
    contract = open_clip(folder, hf_tokenizer_name="hub/name", **options)
    check_rows(contract, "open_clip/bert/" + ("stripped" if strip else "whole"))


@pytest.mark.interop
def test_hugging_faces_clip_from_merges_or_tokenizer_json(folder, caplog):
    write_clip(folder)
    contract = hugging_face(folder, "clip")
    assert not caplog.text
    # transformers 4's slow class, with ftfy, also mends and unescapes texts; its fast one does not.
    for name in ("transformers4/CLIPTokenizerFast", "transformers5/CLIPTokenizer"):
        check_rows(contract, name)
    special = {"pad_token": "<|endoftext|>", "bos_token": "<|startoftext|>"}
    write_json(folder, "clip_json", eos_token={"content": "<|endoftext|>"}, **special)
    check_rows(hugging_face(folder, "clip"), "transformers5/CLIPTokenizer")


@pytest.mark.parametrize("release", [4, 5])
def test_hugging_faces_siglip(folder, release):
    """A text that begins with a space gets two with this model, which unlike the real one does not
    normalise: transformers writes a space before the text's own.
    """
    (folder / "spiece.model").write_bytes(base64.b64decode(VOCABULARIES["t5"]))
    texts = [t for t in cases.TEXTS if t.strip() == t or not t.strip()]
    contract = hugging_face(folder, "siglip")
    tokens, token_mask = check_rows(contract, f"transformers{release}/SiglipTokenizer", texts)
    assert token_mask.all() and (tokens[:, -1] == 1).all()


@pytest.mark.interop
def test_hugging_faces_siglip_2(folder):
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    flags = {"add_bos_token": True, "add_eos_token": False}  # the class's own, not SigLIP 2's
    write_json(folder, "gemma_json", tokenizer_class="GemmaTokenizer", **special, **flags)
    contract = hugging_face(folder, "siglip")
    words = [contract.tokenizer.encode(contract.normalize(text)) for text in cases.TEXTS]
    assert words == TEXTS["transformers5/Siglip2Tokenizer"]
    row = [*words[0], 1][: cases.LENGTH]
    assert contract.text(cases.TEXTS)[0][0].tolist() == row + [0] * (cases.LENGTH - len(row))


def test_big_visions_siglip_and_cappa(folder):
    path = folder / "c4_en.model"
    path.write_bytes(base64.b64decode(VOCABULARIES["t5"]))

    def contract(family, length):
        return spec.build(big_vision_inputs.read(family, 8, length, str(path)).contract)

    _, token_mask = check_rows(contract("siglip", cases.LENGTH), "big_vision/siglip")
    assert token_mask.all()
    # CapPa's decoder sees the row behind a 0, which is a place of its own here.
    tokens, token_mask = contract("cappa", cases.LENGTH + 1).text(cases.TEXTS)
    assert tokens.tolist() == [[0, *row] for row in TEXTS["big_vision/cappa"]]
    assert (tokens[np.arange(len(tokens)), token_mask.sum(axis=1) - 1] == 1).all()


def test_big_visions_siglip_2_reads_gemma(folder):
    path = folder / "gemma.model"
    path.write_bytes(base64.b64decode(VOCABULARIES["gemma"]))
    contract = spec.build(big_vision_inputs.read("siglip2", 8, 64, str(path)).contract)
    tokens, token_mask = contract.text(["A dog É", ""])
    words = contract.tokenizer.encode("a dog É")
    assert tokens[0].tolist() == [*words, 1] + [0] * (63 - len(words))
    assert tokens[1, 0] == 1 and not tokens[1, 1:].any() and token_mask.all()


@pytest.mark.interop
def test_big_visions_lit(folder):
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARIES["bert"]) + "\n")
    contract = spec.build(big_vision_inputs.read("lit", 8, cases.LENGTH, str(path)).contract)
    tokens, token_mask = check_rows(contract, "big_vision/lit")
    np.testing.assert_array_equal(token_mask, tokens != 0)
