"""The reward is the log-softmax by hand; rows that are padding are no candidates."""

import jax.numpy as jnp
import numpy as np

from big_mm.objectives.policy_gradient import Reward
from experiments.discritune.reward import Discrimination


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def judged(rows=5):
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(rows, 4))) for _ in range(2))
    return {
        "image_embedding": jnp.asarray(image, jnp.float32),
        "text_embedding": jnp.asarray(text, jnp.float32),
        "logit_scale": jnp.float32(20.0),
    }


def by_hand(outputs, rows):
    image, text = (np.asarray(outputs[f"{side}_embedding"]) for side in ("image", "text"))
    made = []
    for own in range(rows):
        scores = [20.0 * float(text[own] @ image[other]) for other in range(rows)]
        made.append(scores[own] - np.log(np.sum(np.exp(scores))))
    return made


def test_the_log_probability_of_the_own_image():
    assert isinstance(Discrimination(), Reward) and Discrimination().couples
    outputs = judged()
    found = Discrimination()({}, {}, outputs)
    np.testing.assert_allclose(found, by_hand(outputs, 5), atol=1e-5)


def test_padding_is_no_candidate():
    outputs = judged()
    mask = jnp.array([True, True, True, False, False])
    found = Discrimination()({}, {"mask": mask}, outputs)
    np.testing.assert_allclose(found[:3], by_hand(outputs, 3), atol=1e-5)


def test_a_caption_that_fits_all_images_alike_says_nothing():
    outputs = judged() | {"text_embedding": jnp.zeros((5, 4))}
    np.testing.assert_allclose(Discrimination()({}, {}, outputs), -np.log(5), atol=1e-6)
