"""What open_clip computes with the same weights, we compute: every kind of model that it has."""

import functools

import jax
import numpy as np
import pytest

from big_mm import spec
from big_mm.interop import mapping, open_clip, open_clip_export, open_clip_table
from big_mm.models import text
from tests.interop import cases, foreign

GOLDEN = cases.golden("open_clip")["cases"]
COCAS = [name for name in cases.OPEN_CLIP if name.startswith("coca")]
# What we write with other names, as open_clip would write the same model today.
REWRITTEN = ("custom_text", "timm_clip")
DUAL_ENCODERS = [name for name in cases.OPEN_CLIP if name not in COCAS]


@pytest.fixture(scope="module", autouse=True)
def tiny_towers():
    with pytest.MonkeyPatch.context() as patch:
        foreign.register_tiny_towers(patch)
        yield


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    @functools.cache
    def load(name: str) -> foreign.Loaded:
        folder = tmp_path_factory.mktemp(name)
        weights = cases.weights(foreign.open_clip_names(name), cases.SEEDS.get(name, 0))
        config = cases.OPEN_CLIP[name]
        given = foreign.open_clip_folder(folder, config, weights)
        return foreign.Loaded(given, pad_id=cases.pad_id(config))

    return load


@pytest.mark.parametrize("name", cases.OPEN_CLIP)
def test_names_and_shapes(name):
    assert cases.digest(foreign.open_clip_names(name)) == GOLDEN[name]["names"]


@pytest.mark.parametrize("name", cases.OPEN_CLIP)
def test_embeddings(loaded, name):
    for side in ("image", "text"):
        found = loaded(name).outputs[f"{side}_embedding"]
        np.testing.assert_allclose(found, GOLDEN[name][side], atol=1e-5)


@pytest.mark.parametrize("name", DUAL_ENCODERS)
def test_logits_and_losses(loaded, name):
    np.testing.assert_allclose(loaded(name).logits(), GOLDEN[name]["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loaded(name).losses(), GOLDEN[name]["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", COCAS)
def test_caption_logits_and_losses(loaded, name):
    # They leave out the last position, which has nothing to predict.
    found, theirs = loaded(name).outputs["caption_logits"][:, :-1], GOLDEN[name]["caption_logits"]
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    # They count every target but the padding id, wherever it stands.
    counted = foreign.TOKENS != loaded(name).model.pad_id
    np.testing.assert_allclose(loaded(name).losses(counted), GOLDEN[name]["losses"], rtol=1e-5)


def test_captions(loaded):
    # Their minimum leaves out eos.
    theirs, found = (
        GOLDEN["coca"]["captions"],
        functools.partial(loaded("coca").captions, min_len=3),
    )
    assert found() == theirs["greedy"]
    assert found(num_beams=3, early_stop=False) == theirs["beam_3"]


@pytest.mark.parametrize("name", cases.OPEN_CLIP)
def test_what_is_written_is_what_was_read(loaded, name):
    found = loaded(name)
    layout = open_clip_table.layout_of(found.model)
    names = foreign.open_clip_names(name)
    back = mapping.write(open_clip_table.table(found.model, layout), found.imported.params)
    if name in REWRITTEN:
        assert sum(array.size for array in back.values()) == sum(map(np.prod, names.values()))
    else:
        weights = cases.weights(names, cases.SEEDS.get(name, 0))
        assert back.keys() == weights.keys()
        for key, value in weights.items():
            np.testing.assert_array_equal(back[key], value, strict=True, err_msg=key)
    again = open_clip.model_spec(open_clip_export.config_of(found.model), "config")
    again.image.mean, again.image.std = found.model.image.mean, found.model.image.std
    assert spec.build(again) == found.model


@pytest.mark.parametrize("name", COCAS)
def test_masks(loaded, name):
    mask = text.legacy_cls_mask(foreign.TOKENS, loaded(name).model.pad_id)
    np.testing.assert_array_equal(mask[:, 0], np.array(GOLDEN[name]["mask"]))


def test_step_by_step_is_as_at_once(loaded):
    found = loaded("coca_pad_id")
    apply = functools.partial(found.model.apply, mutable=["cache"])
    image_tokens = found.outputs["image_tokens"]
    _, cache = jax.jit(functools.partial(apply, method="init_cache"))(found.variables, image_tokens)
    step = jax.jit(functools.partial(apply, method="decode_step"))
    for i in range(cases.LENGTH):
        out, cache = step(found.variables | cache, foreign.TOKENS[:, i : i + 1])
        expected = found.outputs["caption_logits"][:, i]
        np.testing.assert_allclose(out["caption_logits"][:, 0], expected, atol=2e-5)


def test_our_own_mask_is_another(loaded):
    found = loaded("coca")
    own = found.model.clone(legacy=False)
    ours = jax.jit(own.apply)(found.variables, found.batch)["text_embedding"]
    differs = np.abs(ours - found.outputs["text_embedding"]).max(axis=1) > 1e-3
    # A caption that fills its slots is read alike: nothing of it is padding.
    assert differs.tolist() == [True, True, False, True]
