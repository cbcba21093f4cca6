"""TIPS: the centred and sharpened targets, the masks, the losses, and CLIP without them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from big_mm.losses import contrastive
from big_mm.losses.distillation import Distillation
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.heads import Prototypes
from big_mm.objectives.base import Weighted
from big_mm.spec import UserError
from big_mm.types import Aux
from experiments.tips.model import TIPS
from experiments.tips.objective import SpatialAwareness
from tests.models import tiny_models as tiny

CLIP = {"contrastive": contrastive.Softmax()}
RNG = jax.random.key(0)
OTHER = tiny.batch((4, 8, 6), seed=1)
BATCH = tiny.batch() | {
    "tokens_full": OTHER["tokens"],
    "token_mask_full": OTHER["token_mask"],
    "local_crops": jnp.stack([OTHER["image"][:, :8, :8], OTHER["image"][:, 8:, 8:]], axis=1),
}


def model():
    image = tiny.vision("cls", cls_tokens=2, mask_token=True, any_size=True)
    return TIPS(image, tiny.text(), embed_dim=12, prototypes=6, hidden=8, bottleneck=4)


def objective(losses=None, **options):
    distilled = {
        "local": Distillation("local", "target"),
        "masked": Distillation("masked", "patch_target", "patch_mask"),
    }
    return SpatialAwareness(model(), CLIP | distilled if losses is None else losses, **options)


@functools.cache
def params():
    return jax.jit(model().init)(jax.random.key(1), BATCH)["params"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_without_extras_the_loss_is_clips():
    mine = objective(CLIP)
    extra = mine.init_extra(RNG, params())
    value, _ = jax.jit(mine.loss)(params(), extra, BATCH, RNG)
    plain = DualEncoder(tiny.vision("cls", cls_tokens=2), tiny.text(), embed_dim=12)
    own = {key: params()[key] for key in ("text", "image_head", "text_head", "temperature")}
    own["image"] = {k: v for k, v in params()["image"].items() if k != "mask_token"}
    clip, _ = jax.jit(Weighted(plain, CLIP).loss)(own, {}, BATCH, RNG)
    np.testing.assert_allclose(float(value), float(clip), rtol=1e-6)


def test_the_second_caption_has_a_token_of_its_own():
    outputs = jax.jit(model().apply)({"params": params()}, BATCH)
    cls = outputs["image_tokens"][:, 1] @ params()["full_head"]["kernel"]
    expected = cls / jnp.linalg.norm(cls, axis=1, keepdims=True)
    np.testing.assert_allclose(outputs["image_embedding_full"], expected, atol=1e-5)
    second = {key: BATCH[f"{key}_full"] for key in ("tokens", "token_mask")}
    alone = jax.jit(model().apply)({"params": params()}, BATCH | second)
    np.testing.assert_allclose(outputs["text_embedding_full"], alone["text_embedding"], atol=1e-6)
    assert np.abs(outputs["text_embedding"] - alone["text_embedding"]).max() > 1e-3


def test_targets_losses_and_centres_are_those_of_a_loop():
    mine = objective(teacher_temperature=0.07, centre_momentum=0.8, momentum=0.5)
    extra = mine.init_extra(RNG, params())
    teacher = jax.tree.map(lambda x: x * 1.1, params())
    centres = {"prototypes": jnp.linspace(-0.1, 0.1, 6), "patch_prototypes": jnp.zeros(6) + 0.05}
    extra |= {"teacher": teacher, "centres": centres}
    outputs = jax.jit(mine.forward)(params(), extra, BATCH, RNG)
    terms, _ = mine.terms(outputs, BATCH, mine.losses)
    aux = Aux(terms, carry=mine.carry(outputs, BATCH))
    whole, student = ({"image": BATCH["image"]} for _ in range(2))
    student["patch_mask"] = mask = outputs["patch_mask"]
    apply = jax.jit(lambda params, batch: model().apply({"params": params}, batch))
    taught = apply(teacher, whole)
    masked = np.asarray(apply(params(), student)["patch_prototypes"])
    local, patches = [], []
    for row in range(3):
        target = softmax((np.asarray(taught["prototypes"][row]) - centres["prototypes"]) / 0.07)
        own = apply(params(), {"image": BATCH["local_crops"][row]})["prototypes"]
        for view in np.asarray(own):
            local.append(-(target * np.log(softmax(view / 0.1))).sum())
        for patch in np.flatnonzero(mask[row]):
            about = np.asarray(taught["patch_prototypes"][row, patch])
            target = softmax((about - centres["patch_prototypes"]) / 0.07)
            patches.append(-(target * np.log(softmax(masked[row, patch] / 0.1))).sum())
    assert mask.sum(axis=1).tolist() == [3, 3, 3]
    np.testing.assert_allclose(float(terms["local"].compute()), np.mean(local), rtol=1e-4)
    np.testing.assert_allclose(float(terms["masked"].compute()), np.mean(patches), rtol=1e-4)
    new = mine.update_extra(extra, params(), aux)
    for name, axes in (("prototypes", 0), ("patch_prototypes", (0, 1))):
        expected = 0.8 * centres[name] + 0.2 * np.asarray(taught[name]).mean(axes)
        np.testing.assert_allclose(new["centres"][name], expected, atol=1e-6)
    np.testing.assert_allclose(
        new["teacher"]["image"]["cls"], 0.5 * 2.1 * params()["image"]["cls"], rtol=1e-5
    )


class Fixed(nn.Module):
    """In place of a model: cosines of three images by what is asked of them."""

    prototypes: int = 5

    @nn.nowrap
    def apply(self, variables, rows, *, train, rngs=None):
        del variables, rngs
        taught = {"prototypes": wave(1.0, 3, 5), "patch_prototypes": wave(1.3, 3, 4, 5)}
        if "patch_mask" in rows:
            return {"patch_prototypes": wave(0.7, 3, 4, 5)}
        if len(rows["image"]) == 6:
            return {"prototypes": wave(1.7, 6, 5)}
        return {"patch_tokens": jnp.zeros((3, 4, 1))} if train else taught


def wave(factor, *shape):
    return jnp.cos(factor * jnp.arange(np.prod(shape))).reshape(shape)


def test_the_numbers_of_dinov2s_program():
    """Its DINOLoss, iBOTPatchLoss (b8931f7), centred: two batches, the first one to centre by."""
    mine = dataclasses.replace(objective(), model=Fixed(), centre_momentum=0.9)
    taught = Fixed().apply({}, {"image": np.zeros(3)}, train=False)
    first = {f"teacher_{name}": 0.5 * value[::-1] for name, value in taught.items()}
    extra = {
        "centres": {name: jnp.zeros(5) for name in taught},
        "teacher": {},
        "step": jnp.int32(0),
    }
    extra = mine.update_extra(extra, {}, Aux({}, carry=mine.carry(first, {})))
    batch = {"image": jnp.zeros((3, 8, 8, 3)), "local_crops": jnp.zeros((3, 2, 4, 4, 3))}
    outputs = mine.forward({}, extra, batch, RNG)
    mask = jnp.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0]], bool)
    distilled = {name: mine.losses[name] for name in ("local", "masked")}
    terms, _ = mine.terms(outputs | {"patch_mask": mask}, batch, distilled)
    np.testing.assert_allclose(float(terms["local"].compute()), 8.7777348, rtol=1e-5)
    np.testing.assert_allclose(float(terms["masked"].compute()), 5.6088729, rtol=1e-5)
    extra = mine.update_extra(extra, {}, Aux({}, carry=mine.carry(outputs, batch)))
    expected = {
        "prototypes": [0.02148855, 0.07273675, 0.05711112, -0.01102221, -0.06902177],
        "patch_prototypes": [0.03975654, -0.08574635, -0.08563063, 0.03993416, 0.10699530],
    }
    for name, centre in expected.items():
        np.testing.assert_allclose(extra["centres"][name], centre, atol=1e-6)


def test_centring_takes_a_prototype_its_lead():
    mine = objective()
    cosines = jnp.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.0]])
    sharp = functools.partial(jax.nn.softmax, axis=-1)
    temperature = mine.teacher_temperature
    assert float(sharp(cosines / temperature)[:, 0].min()) > 0.99
    assert float(sharp((cosines - cosines.mean(0)) / temperature)[:, 0].max()) < 0.8


def test_prototypes_are_compared_by_their_angle():
    head = Prototypes(count=6, hidden=8, bottleneck=4)
    x = jax.random.normal(RNG, (5, 3, 7))
    variables = head.init(RNG, x)
    found = head.apply(variables, x)
    assert found.shape == (5, 3, 6) and float(jnp.abs(found).max()) <= 1 + 1e-6
    scaled = {"params": variables["params"] | {"kernel": 3 * variables["params"]["kernel"]}}
    np.testing.assert_allclose(head.apply(scaled, x), found, atol=1e-6)


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="mask_ratio=1.0 must be between 0 and 1"):
        objective(mask_ratio=1.0)
    one = dataclasses.replace(model(), image=tiny.vision("cls", mask_token=True))
    with pytest.raises(UserError, match="image.pool='cls' and image.cls_tokens=2"):
        one.init(RNG, BATCH)
