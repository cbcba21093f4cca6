"""What big_vision computes with the same weights, we compute: SigLIP, NaFlex, LiT, CapPa."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import big_mm
from big_mm import spec, trees
from big_mm.data import tokenizers
from big_mm.data.contract import Contract
from big_mm.interop import convert, reading, writing
from big_mm.interop.reading import CHECKPOINT
from big_mm.models import variants
from big_mm.spec import UserError
from tests import tiny
from tests.interop import cases, foreign

GOLDEN = cases.golden("big_vision")["cases"]
TWO_TOWERS = [name for name in cases.BIG_VISION if not name.startswith("cappa")]
CAPPAS = [name for name in cases.BIG_VISION if name.startswith("cappa")]
# What the shapes do not say.
CONFIGS = {
    "lit": {"txt": {"pool_type": "first"}},
    "lit_bert": {"txt": {"num_heads": 2, "token_len": cases.LENGTH}},
    "naflex_resized": {"img": {"image_size": cases.SIZE}},
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    @functools.cache
    def load(name: str) -> foreign.Loaded:
        folder, config = tmp_path_factory.mktemp(name), None
        if name in CONFIGS:
            config = str(folder / "config.json")
            (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        # Beside the parameters, trainers keep the optimizer's state.
        weights = cases.weights(GOLDEN[name]["names"])
        stored = {f"params/{key}": value for key, value in weights.items()}
        np.savez(folder / "checkpoint.npz", **stored, **{"opt/0/count": np.zeros(3, np.int32)})
        pad_id = 0 if name == "lit_bert" else None
        return foreign.Loaded(folder / "checkpoint.npz", config, pad_id)

    return load


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_two_towers(loaded, name):
    found, theirs = loaded(name), GOLDEN[name]
    for side in ("image", "text"):
        np.testing.assert_allclose(found.outputs[f"{side}_embedding"], theirs[side], atol=1e-5)
    np.testing.assert_allclose(found.logits(), theirs["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CAPPAS)
def test_cappa(loaded, name):
    found = loaded(name)
    # Its decoder begins with a 0, which stands for no token, in place of bos.
    tokens = jnp.pad(foreign.TOKENS, ((0, 0), (1, 0)))[:, :-1]
    outputs = jax.jit(found.model.apply)(found.variables, found.batch | {"tokens": tokens})
    np.testing.assert_allclose(
        outputs["caption_logits"], GOLDEN[name]["caption_logits"], rtol=1e-5, atol=1e-5
    )
    assert found.model.mask_token == (name == "cappa")


def test_numbered_and_scanned_layers_are_the_same(loaded, tmp_path):
    names = GOLDEN["siglip"]["names"]
    weights = cases.weights(names)
    stacked = {}
    for key, value in weights.items():
        if "encoderblock_0/" in key:
            layers = [weights[key.replace("block_0", f"block_{i}")] for i in range(2)]
            stacked[key.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
        elif "encoderblock_" not in key:
            stacked[key] = value
    np.savez(tmp_path / "scanned.npz", **stacked)
    found = reading.read(epath.Path(tmp_path / "scanned.npz"))
    for path, value in loaded("siglip").imported.params.items():
        np.testing.assert_array_equal(found.params[path], value)


@pytest.mark.parametrize("name", cases.BIG_VISION)
def test_what_is_written_is_what_was_read(loaded, tmp_path, name):
    found, names = loaded(name), GOLDEN[name]["names"]
    contract = spec.build(found.imported.components)["contract"]
    params = trees.unflatten(found.imported.params)
    writing.write_big_vision(tmp_path, found.model, params, contract)
    stored = {key.removeprefix("params/"): a for key, a in np.load(tmp_path / CHECKPOINT).items()}
    if "scan" not in name:  # whose layers come out numbered
        weights = cases.weights(names)
        assert stored.keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_array_equal(stored[key], value, strict=True, err_msg=key)
    again = reading.read(epath.Path(tmp_path))
    assert again.components == found.imported.components
    for path, value in found.imported.params.items():
        np.testing.assert_array_equal(again.params[path], value, err_msg=path)


def test_what_big_vision_cannot_express(tmp_path):
    def message(model, **options):
        with pytest.raises(UserError) as error:
            writing.write_big_vision(tmp_path, model.clone(**options), {}, Contract())
        return str(error.value)

    built = spec.build(variants.clip("B/32"))
    assert "image.pre_norm=True (needs False)" in message(built)
    assert "text.pool='eos' (needs 'last', 'first' or 'mean'); projection_bias=" in message(built)
    built = spec.build(variants.siglip("B/16"))
    assert "mean=(0.1, 0.1, 0.1) (needs (0.5, 0.5, 0.5))" in message(
        built, image=built.image.clone(mean=(0.1,) * 3)
    )
    hidden = message(built, text_projection_hidden=3)
    assert hidden.endswith("this model: model.text_projection_hidden=3 (needs 0)")
    assert "big_vision has no model like CoCa" in message(spec.build(variants.coca("tiny")))
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_widened_exactly(tmp_path):
    weights = cases.weights(GOLDEN["siglip"]["names"])
    halves = {key: value.astype(jnp.bfloat16) for key, value in weights.items()}
    np.savez(tmp_path / "half.npz", **halves)
    found = reading.read(epath.Path(tmp_path / "half.npz")).params
    expected = halves["txt/Embed_0/embedding"].astype(np.float32)
    np.testing.assert_array_equal(found["text/embedding"], expected)


def test_what_is_not_supported_is_said(tmp_path):
    def message(**arrays):
        np.savez(tmp_path / "some.npz", **arrays)
        with pytest.raises(UserError) as error:
            reading.read(epath.Path(tmp_path / "some.npz"))
        return str(error.value)

    assert "its names begin with head, trunk" in message(
        **{"head/x": np.zeros(2), "trunk/y": [1.0]}
    )
    weights = cases.weights(GOLDEN["siglip"]["names"])
    sincos = {key: value for key, value in weights.items() if key != "img/pos_embedding"}
    assert "there is no img/pos_embedding: fixed positions" in message(**sincos)
    weights["img/patchln_pre/scale"] = np.zeros(16)
    assert "1 not in the architecture:\n  img/patchln_pre/scale" in message(**weights)
    bert = cases.weights(GOLDEN["lit_bert"]["names"])
    assert "give its number of heads as config.txt.num_heads" in message(**bert)
    del bert["txt/BertEncoder_0/embedder/embedders_position_ids/embedding"]
    assert "embedders_position_ids/embedding is missing" in message(**bert)


def test_cappa_captions_with_its_own_tokenizer(tmp_path):
    names = dict(GOLDEN["cappa"]["names"])
    file = tmp_path / "tokenizer.model"
    file.write_bytes(tiny.tokenizer_bytes())
    size = tokenizers.SentencePiece(str(file)).vocab_size
    names["decoder/EmbedTargets/embedding"] = [size + 1, 16]
    names["decoder/LogitsDense/kernel"], names["decoder/LogitsDense/bias"] = [16, size], [size]
    np.savez(tmp_path / "cappa.npz", **cases.weights(names))
    predictor = big_mm.load(tmp_path / "cappa.npz", tokenizer=str(file))
    images, tokenizer = cases.images(), predictor.contract.tokenizer
    assert tokenizer.bos_id == 0
    tokens, _ = predictor.generate(images, predictor.contract.decoding)
    # The same by whole captions: the most probable word, until all have ended.
    never = sorted(tokenizer.reserved - {tokenizer.eos_id, tokenizer.unk_id})
    expected = np.zeros((4, cases.LENGTH), np.int32)
    for i in range(cases.LENGTH - 1):
        batch = {"image": images, "tokens": expected, "token_mask": np.ones_like(expected)}
        logits = predictor.outputs(batch, ["caption_logits"])["caption_logits"][:, i].copy()
        logits[:, never] = -np.inf
        ended = (expected[:, 1 : i + 1] == tokenizer.eos_id).any(axis=1)
        expected[:, i + 1] = np.where(ended, tokenizer.pad_id, logits.argmax(axis=1))
    np.testing.assert_array_equal(tokens, expected)
    assert all(isinstance(text, str) for text in predictor.caption(images))
    # And back, tokenizer included.
    config = predictor.contract.describe()
    source, back = tmp_path / "cappa.npz", tmp_path / "back"
    convert.convert(source, "big_vision", back, tokenizer=str(file), dtype="bfloat16")
    again = big_mm.load(back)
    assert again.contract.describe() == config and again.model == predictor.model
    assert np.load(back / CHECKPOINT)["params/decoder/LogitsDense/bias"].itemsize == 2
