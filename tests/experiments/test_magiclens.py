"""The fusion is a query and a target; the loss counts query images; a copy is no answer."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from big_mm.evaluators.composed_benchmarks import SceneEdits
from big_mm.evaluators.composition import Fused, References
from big_mm.losses.contrastive import Softmax
from big_mm.predictor import Predictor
from big_mm.similarity import Cosine
from big_mm.spec import build, load_config
from experiments.magiclens.model import Attention, MagicLens, Sum
from tests import tiny

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "magiclens" / "config.py"
NAMES = ("query_embedding", "target_embedding", "image_embedding")
LOSS = Softmax(
    similarity=Cosine(image=NAMES[:1], text=NAMES[1:2]),
    negatives=NAMES[2:],
    directions="image_to_text",
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_loss_by_hand():
    """Equation 1: of all targets and all query images, the own target."""
    rng = np.random.default_rng(0)
    outputs = {name: unit(rng.normal(size=(4, 3))) for name in NAMES}
    losses = []
    for i, query in enumerate(outputs["query_embedding"]):
        targets = [7.0 * query @ t for t in outputs["target_embedding"]]
        images = [7.0 * query @ t for t in outputs["image_embedding"]]
        losses.append(np.log(np.sum(np.exp(targets)) + np.sum(np.exp(images))) - targets[i])
    given = {name: jnp.asarray(value, jnp.float32) for name, value in outputs.items()}
    found, _ = LOSS(given | {"logit_scale": jnp.float32(7.0)}, {})
    np.testing.assert_allclose(found.compute(), np.mean(losses), rtol=1e-5)


def test_a_query_that_is_its_own_image_is_wrong():
    eye = jnp.eye(3)
    outputs = {"query_embedding": eye, "target_embedding": eye[::-1], "image_embedding": eye}
    _, metrics = LOSS(outputs | {"logit_scale": jnp.float32(9.0)}, {})
    # The middle one is equally near to target and image: the target comes first.
    np.testing.assert_allclose(metrics["image_to_text_accuracy"].compute(), 1 / 3)


def model(fusion):
    built = build(tiny.siglip(300))
    towers = {f.name: getattr(built, f.name) for f in dataclasses.fields(built)}
    kept = {name: towers[name] for name in ("image", "text", "embed_dim", "image_projection")}
    return MagicLens(**kept, fusion=fusion)


def test_a_query_with_the_empty_instruction_is_a_target():
    made = model(Attention(depth=1, heads=2))
    image = jnp.asarray(tiny.images(2))
    empty = jnp.zeros((2, tiny.MAX_LEN), jnp.int32).at[:, :2].set(jnp.array([1, 2]))
    mask = jnp.arange(tiny.MAX_LEN)[None] < jnp.array([[2], [2]])
    batch = {"image": image, "target_image": image[::-1], "tokens": empty, "token_mask": mask}

    @jax.jit
    def run(batch):
        params = made.init(jax.random.key(0), batch)
        said = batch | {"tokens": batch["tokens"].at[:, 1:3].set(jnp.array([9, 2]))}
        alone = made.apply(params, image, method="encode_image")
        return made.apply(params, batch), made.apply(params, said), alone

    out, said, alone = run(batch)
    for name in ("query_embedding", "image_embedding"):
        np.testing.assert_allclose(out[name], alone["image_embedding"], atol=1e-5)
    np.testing.assert_allclose(out["target_embedding"], out["image_embedding"][::-1], atol=1e-5)
    assert np.abs(said["query_embedding"] - out["query_embedding"]).max() > 1e-4
    np.testing.assert_allclose(said["target_embedding"], out["target_embedding"], atol=1e-6)


def test_the_sum_is_one_of_unit_vectors():
    image, text = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 0.5]])
    np.testing.assert_allclose(Sum().apply({}, image, text), [[1.0, 1.0]])
    np.testing.assert_allclose(Sum(image=0.0).apply({}, image, text), [[0.0, 1.0]])


class Recorder(Predictor):
    """Its query embedding names the row."""

    def __init__(self):
        object.__setattr__(self, "sizes", [])
        object.__setattr__(self, "contract", self)

    def text(self, texts):
        return np.zeros((len(texts), 4), np.int32), np.ones((len(texts), 4), bool)

    def outputs(self, batch, keys):
        self.sizes.append(len(batch["image"]))
        number = batch["image"][:, 0, 0, 0].astype(np.float64)
        return {keys[0]: np.stack([np.ones_like(number), number], axis=1)}


def test_fused_queries_keep_their_order_in_batches_of_one_size():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    known = References(np.ones((5, 2)), images, ["edit"] * 5)
    predictor = Recorder()
    found = Fused(batch_size=2)(predictor, known)
    np.testing.assert_allclose(found[:, 1] / found[:, 0], np.arange(5))
    assert predictor.sizes == [2, 2, 2]


def test_the_benchmark_asks_for_every_edit(in_world):
    config = load_config(f"{CONFIG}:magiclens")
    evaluator = build(config.evaluators.composed)
    assert isinstance(evaluator.benchmark, SceneEdits)
    source, queries = evaluator.source, evaluator.benchmark.queries
    keys = {source[i]["key"] for i in range(len(source))}
    assert len(queries) * 4 == len(keys) * 3
    for query in queries:
        assert query.reference in keys and query.targets[0].startswith(query.reference + "/")
