"""ALIP's weights and losses equal the released code's; its averages survive an interruption."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.data.noise import Mismatched
from big_mm.data.pipeline import Pipeline
from big_mm.data.records import TFRecordSource
from big_mm.data.transforms import ChooseCaption, Decode, Tokenize
from big_mm.models.heads import unit
from big_mm.similarity import Cosine
from big_mm.training import optimizer, step
from big_mm.training import state as states
from experiments.alip import alip
from tests.models import tiny_models
from tests.training import runs, toy

# Six rows on the unit circle: image, raw text, synthetic text.
ANGLES = np.array(
    [
        [0.0, 0.3, 0.2],
        [1.0, 1.1, 1.4],
        [2.0, 4.0, 2.2],
        [3.0, 0.5, 2.5],
        [4.0, 4.9, 3.2],
        [5.0, 5.1, 4.9],
    ]
)
# What Adaptive_loss and the lines before it in train.py (github.com/deepglint/ALIP) give for them,
# in torch 2.13, at a scale of 7 and with averages of 0.5, 0.4 and 0.6 before the batch.
RAW_WEIGHT = [1.0, 1.0, 0.0457884, 0.014529, 0.4441934, 1.0]
SYNTHETIC_WEIGHT = [1.0, 1.0, 0.4977618, 0.2779009, 0.3438197, 1.0]
RAW_LOSS, SYNTHETIC_LOSS = 0.4649178087711334, 0.2194901704788208
AVERAGES = {
    "texts": (0.5, 0.49859702587127686),
    "text_embedding": (0.4, 0.3999161124229431),
    "text_embedding_synthetic": (0.6, 0.603084146976471),
}
IMAGE_GRADIENT = [
    [-0.203851118683815, -0.011596407741308212],
    [0.3030238449573517, -0.3734191656112671],
    [0.07751254737377167, 0.30131927132606506],
    [-0.16672827303409576, -0.10817334800958633],
    [0.016687005758285522, 0.16504527628421783],
    [-0.03579951822757721, -0.18962419033050537],
]
RAW_GRADIENT = [
    [-0.24413134157657623, 0.1616312563419342],
    [-0.15493522584438324, -0.17529158294200897],
    [-0.1546383500099182, -0.25772956013679504],
    [0.3149629831314087, 0.13324448466300964],
    [0.46795374155044556, -0.1384306252002716],
    [-0.08814029395580292, 0.2913967967033386],
]
RAW, SYNTHETIC = alip.Adaptive(), alip.Adaptive(Cosine(text=("text_embedding_synthetic",)))


class Towers(nn.Module):
    """The least that embeds images and texts."""

    vocab_size: int

    def setup(self):
        self.image, self.words = toy.Tower(8), nn.Embed(self.vocab_size, 8)

    def __call__(self, batch, train=False):
        image = unit(self.image(batch["image"]))
        out = {"image_embedding": image, "logit_scale": jnp.float32(7.0)}
        for suffix in ("", "_synthetic"):
            words, mask = self.words(batch[f"tokens{suffix}"]), batch[f"token_mask{suffix}"]
            out[f"text_embedding{suffix}"] = unit((words * mask[..., None]).sum(1))
        return out


def outputs():
    circle = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1).astype(np.float32)
    names = ("image_embedding", "text_embedding", "text_embedding_synthetic")
    found = {name: jnp.asarray(circle[:, i]) for i, name in enumerate(names)}
    averages = {f"average/{name}": jnp.float32(a) for name, (a, _) in AVERAGES.items()}
    return found | averages | {"logit_scale": jnp.float32(7.0)}


def test_weights_and_losses_are_the_released_codes():
    for term, weight, loss in (
        (RAW, RAW_WEIGHT, RAW_LOSS),
        (SYNTHETIC, SYNTHETIC_WEIGHT, SYNTHETIC_LOSS),
    ):
        np.testing.assert_allclose(term.weight(outputs(), {}), weight, atol=1e-5)
        value, metrics = term(outputs(), {})
        assert float(value.compute()) == pytest.approx(loss, abs=1e-5)
        assert float(metrics["weight"].compute()) == pytest.approx(np.mean(weight), abs=1e-5)


def test_no_gradient_goes_through_the_weights():
    def loss(given):
        return sum(term(outputs() | given, {})[0].compute() for term in (RAW, SYNTHETIC))

    names = ("image_embedding", "text_embedding")
    found = jax.grad(loss)({name: outputs()[name] for name in names})
    np.testing.assert_allclose(found["image_embedding"], IMAGE_GRADIENT, atol=1e-5)
    np.testing.assert_allclose(found["text_embedding"], RAW_GRADIENT, atol=1e-5)


def test_averages_follow_the_batch():
    objective = alip.Alip(Towers(tiny_models.VOCAB), {"raw": RAW})
    aux = alip.Aux({}, {}, objective.carry(outputs(), {}))
    extra = {name: jnp.float32(before) for name, (before, _) in AVERAGES.items()}
    after = objective.update_extra(extra, {}, aux)
    expected = {name: after for name, (_, after) in AVERAGES.items()}
    assert {k: float(v) for k, v in after.items()} == pytest.approx(expected, abs=1e-6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sgd(optimizer.Optimizer):
    def direction(self):
        return optax.identity()


def test_microbatches_see_the_averages_of_the_whole_batch():
    batch = tiny_models.batch((8, 5, 3, 6, 8, 2, 4, 7))
    other = tiny_models.batch((4, 8, 6, 5, 3, 7, 8, 2), seed=1)
    batch |= {f"{key}_synthetic": other[key] for key in ("tokens", "token_mask")}
    objective = alip.Alip(Towers(tiny_models.VOCAB), {"raw": RAW, "synthetic": SYNTHETIC})
    chosen = Sgd(learning_rate=1.0, clip_norm=None)
    mesh = mesh_lib.MeshConfig().make(jax.devices()[:1])
    found = []
    for accumulate in (1, 2):
        params = jax.jit(lambda: states.init_params(objective, batch, 0))()
        state = states.create(objective, chosen, params, seed=0, ema=False)
        update = step.Update(objective, chosen, mesh, seed=0, steps=10, accumulate=accumulate)
        found.append(jax.jit(update)(state, batch))
    (whole, metrics), (parts, same) = found
    for path, leaf in trees.flatten(whole.params).items():
        np.testing.assert_allclose(trees.flatten(parts.params)[path], leaf, atol=2e-5, err_msg=path)
    assert float(metrics["raw/weight"]) < 0.9
    for key in ("loss", "raw/weight", "synthetic/weight"):
        assert float(same[key]) == pytest.approx(float(metrics[key]), abs=1e-5)
    for name in alip.PAIRS:
        assert float(parts.extra[name]) == pytest.approx(float(whole.extra[name]), abs=1e-6) != 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Interrupted(runs.Faulty, alip.Alip):
    """Alip that gets a signal on its way."""


def test_the_averages_are_resumed(tmp_path):
    made = runs.config(tmp_path, lambda size: spec.spec(Towers, vocab_size=size), ema=0.0, steps=4)
    source = spec.spec(TFRecordSource, shards=runs.shards(tmp_path))
    made.data = spec.spec(
        Pipeline,
        sources=(spec.spec(Mismatched, source=source, share=0.4),),
        transforms=(
            spec.spec(Decode),
            spec.spec(ChooseCaption),
            spec.spec(Tokenize),
            spec.spec(ChooseCaption, out="other"),
            spec.spec(Tokenize, key="other", suffix="_synthetic"),
        ),
    )
    losses = {
        "raw": spec.spec(alip.Adaptive),
        "synthetic": spec.spec(
            alip.Adaptive, similarity=spec.spec(Cosine, text=("text_embedding_synthetic",))
        ),
    }
    made.objective = spec.spec(
        Interrupted,
        model=made.objective.model,
        losses=losses,
        at=2,
        marker=str(tmp_path),
        signal=int(signal.SIGTERM),
    )
    runs.train(made, tmp_path / "whole")
    made.objective.marker = str(tmp_path / "marker")
    runs.train(made, tmp_path / "cut")
    assert runs.losses(tmp_path / "cut")[-1][0] == 3
    runs.train(made, tmp_path / "cut")
    digests = runs.digests(tmp_path / "whole", 4)
    assert {f"extra/{name}" for name in alip.PAIRS} <= digests.keys()
    assert runs.digests(tmp_path / "cut", 4) == digests
