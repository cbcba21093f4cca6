"""What transformers computes with the same weights, we compute: its CLIPs and its SigLIPs."""

import functools

import numpy as np
import pytest

from big_mm import spec
from big_mm.interop import hugging_face, mapping
from tests.interop import cases, foreign

GOLDEN = cases.golden("hugging_face")["cases"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    @functools.cache
    def load(name: str) -> foreign.Loaded:
        folder, config = tmp_path_factory.mktemp(name), cases.HUGGING_FACE[name]
        weights = cases.weights(foreign.hugging_face_names(name))
        given = foreign.hugging_face_folder(folder, config, weights)
        return foreign.Loaded(given, pad_id=cases.pad_id(config))

    return load


@pytest.mark.parametrize("name", cases.HUGGING_FACE)
def test_names_and_shapes(name):
    assert cases.digest(foreign.hugging_face_names(name)) == GOLDEN[name]["names"]


@pytest.mark.parametrize("name", cases.HUGGING_FACE)
def test_outputs(loaded, name):
    found, theirs = loaded(name), GOLDEN[name]
    for side in ("image", "text"):
        np.testing.assert_allclose(found.outputs[f"{side}_embedding"], theirs[side], atol=1e-5)
    np.testing.assert_allclose(found.logits(), theirs["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.losses(), theirs["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", cases.HUGGING_FACE)
def test_what_is_written_is_what_was_read(loaded, name):
    found, names = loaded(name), foreign.hugging_face_names(name)
    back = mapping.write(hugging_face.table(found.model), found.imported.params)
    patch = "vision_model.embeddings.patch_embedding.weight"
    for key, value in cases.weights(names).items():
        if name == "siglip2" and key == patch:
            # What was a linear layer is written as a convolution.
            value = value.reshape(24, 8, 8, 3).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(back.pop(key), value, strict=True, err_msg=key)
    assert not back
    again = hugging_face.model_spec(hugging_face.config_of(found.model), "config")
    again.image.mean, again.image.std = found.model.image.mean, found.model.image.std
    assert spec.build(again) == found.model
