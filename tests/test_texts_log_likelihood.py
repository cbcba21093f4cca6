"""Several texts of an image score as each would alone."""

import numpy as np
import pytest
import tiny

from big_mm import spec
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.predictor import Predictor
from big_mm.spec import UserError

TEXTS = [["a red star", "a blue ring"], ["a white circle"], ["a", "a red", "a red star"]]


@pytest.fixture(scope="module", params=[tiny.coca, tiny.captioner])
def predictor(request, tmp_path_factory) -> Predictor:
    built = spec.build(tiny.config(tmp_path_factory.mktemp("tiny"), request.param))
    model, contract = built["objective"].model, built["contract"]
    return Predictor(model, tiny.parameters(model, contract), contract, single_device_mesh())


@pytest.mark.parametrize("devices", [single_device_mesh(), MeshConfig().make()], ids=[1, 8])
def test_each_text_scores_as_a_caption_does(predictor, devices):
    images = tiny.images(3)
    many = Predictor(predictor.model, predictor.params, predictor.contract, devices)
    totals, counts = many.texts_log_likelihood(images, TEXTS)
    for image, texts, row, count in zip(images, TEXTS, totals, counts, strict=True):
        pairs = np.repeat(image[None], len(texts), axis=0)
        alone = predictor.caption_log_likelihood(pairs, texts)
        np.testing.assert_allclose(row[: len(texts)], alone[0], rtol=1e-4)
        np.testing.assert_array_equal(count[: len(texts)], alone[1])
        assert (row[len(texts) :] == -np.inf).all() and not count[len(texts) :].any()


def test_behind_a_prefix_only_what_differs_counts(predictor):
    """log p(text | prefix) and log p(prefix + text) differ by the same for all texts."""
    images, endings = tiny.images(2), [[" star", " ring", " red star"]] * 2
    prefixes = ["a red", "a white"]
    totals, counts = predictor.texts_log_likelihood(images, endings, prefixes)
    whole = [[p + e for e in row] for p, row in zip(prefixes, endings, strict=True)]
    joint, tokens = predictor.texts_log_likelihood(images, whole)
    assert (counts < tokens).all() and (counts >= 2).all()
    gaps = joint - totals
    np.testing.assert_allclose(gaps, np.repeat(gaps[:, :1], 3, axis=1), rtol=1e-4)
    assert (tokens - counts == (tokens - counts)[:, :1]).all()


def test_bad_input_is_named(predictor):
    images = tiny.images(2)
    with pytest.raises(UserError, match="2 images for 1 lists of texts"):
        predictor.texts_log_likelihood(images, [["a"]])
    with pytest.raises(UserError, match=r"images\[1\] has no texts"):
        predictor.texts_log_likelihood(images, [["a"], []])
    with pytest.raises(UserError, match="leaves no room"):
        predictor.texts_log_likelihood(images, [["a"], ["b"]], "red star " * 9)


def test_a_model_without_decoder_is_refused(tmp_path):
    built = spec.build(tiny.config(tmp_path, tiny.siglip))
    model, contract = built["objective"].model, built["contract"]
    dual = Predictor(model, tiny.parameters(model, contract), contract, single_device_mesh())
    with pytest.raises(UserError, match="has no"):
        dual.texts_log_likelihood(tiny.images(1), [["a"]])
