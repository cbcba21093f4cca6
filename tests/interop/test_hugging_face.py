"""What transformers computes with the same weights, we compute: CLIP, SigLIP, SigLIP 2."""

import functools

import numpy as np
import pytest

from tests.interop import cases, foreign

GOLDEN = cases.golden("hugging_face")["cases"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    @functools.cache
    def load(name: str) -> foreign.Loaded:
        config, folder = cases.HUGGING_FACE[name], tmp_path_factory.mktemp(name)
        weights = cases.weights(foreign.hugging_face_names(config))
        return foreign.Loaded(foreign.hugging_face_folder(folder, config, weights))

    return load


@pytest.mark.parametrize("name", cases.HUGGING_FACE)
def test_names_and_shapes(name):
    names = foreign.hugging_face_names(cases.HUGGING_FACE[name])
    assert cases.digest(names) == GOLDEN[name]["names"]


@pytest.mark.parametrize("name", cases.HUGGING_FACE)
def test_outputs(loaded, name):
    found, theirs = loaded(name), GOLDEN[name]
    for side in ("image", "text"):
        np.testing.assert_allclose(found.outputs[f"{side}_embedding"], theirs[side], atol=1e-5)
    np.testing.assert_allclose(found.logits(), theirs["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.losses(), theirs["losses"], rtol=1e-5)
