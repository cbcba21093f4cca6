"""Contrastive losses against ten lines of NumPy, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.losses.contrastive import Sigmoid, Softmax
from big_mm.similarity import Cosine
from big_mm.spec import UserError

LOSSES = [Softmax(), Sigmoid(), Softmax(positives="group"), Sigmoid(positives="group")]


def case(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, rows, 4)).astype(np.float32)
    outputs = {
        "image_embedding": image / np.linalg.norm(image, axis=1, keepdims=True),
        "text_embedding": text / np.linalg.norm(text, axis=1, keepdims=True),
        "logit_scale": np.float32(5.0),
        "logit_bias": np.float32(-1.5),
    }
    batch = {"mask": np.ones(rows, bool), "group": np.array([0, 1, 0, 2, 3, 1])[:rows]}
    return jax.tree.map(jnp.asarray, (outputs, batch))


def plain_softmax(outputs, batch, multiple):
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    rows, losses = np.flatnonzero(batch["mask"]), []
    for table in (np.asarray(logits), np.asarray(logits).T):
        for i in rows:
            same = [
                j for j in rows if (batch["group"][i] == batch["group"][j] if multiple else i == j)
            ]
            losses.append(np.log(np.exp(table[i, rows]).sum()) - table[i, same].mean())
    return np.sum(losses) / 2, len(rows)


def plain_sigmoid(outputs, batch, multiple):
    logits = outputs["logit_scale"] * outputs["image_embedding"] @ outputs["text_embedding"].T
    logits = np.asarray(logits + outputs["logit_bias"])
    rows, total = np.flatnonzero(batch["mask"]), 0.0
    for i in rows:
        for j in rows:
            same = batch["group"][i] == batch["group"][j] if multiple else i == j
            total += np.log1p(np.exp(-logits[i, j] if same else logits[i, j]))
    return total, len(rows)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("masked", [(), (1, 4)], ids=["whole", "ragged"])
def test_value(loss, masked):
    outputs, batch = case()
    batch["mask"] = batch["mask"].at[jnp.array(masked, int)].set(False)
    plain = plain_softmax if isinstance(loss, Softmax) else plain_sigmoid
    total, count = plain(outputs, batch, bool(loss.positives))
    mean, _ = loss(outputs, batch)
    np.testing.assert_allclose(mean.total, total, rtol=1e-5)
    assert mean.count == count


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_order_and_padding_change_nothing(loss):
    outputs, batch = case()

    def value(embeddings, batch):
        mean, metrics = loss(outputs | embeddings, batch)
        return mean.compute(), metrics

    keys = ("image_embedding", "text_embedding")
    embeddings = {k: outputs[k] for k in keys}
    order = np.random.default_rng(1).permutation(6)
    shuffled = jax.tree.map(lambda x: x[order], (embeddings, batch))
    padded = jax.tree.map(lambda x: jnp.concatenate([x, x[:3]]), (embeddings, batch))
    padded[1]["mask"] = padded[1]["mask"].at[6:].set(False)
    expected = jax.tree.leaves(value(embeddings, batch))
    for other in (shuffled, padded):
        for a, b in zip(jax.tree.leaves(value(*other)), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    gradient = jax.grad(lambda *args: value(*args)[0])
    whole, cut = gradient(embeddings, batch), gradient(*padded)
    for key in keys:
        np.testing.assert_allclose(cut[key][:6], whole[key], atol=1e-6)
        np.testing.assert_array_equal(cut[key][6:], 0)


@pytest.mark.parametrize("loss", [Softmax, Sigmoid])
def test_other_outputs_and_weights_of_rows(loss):
    """A row's weight is a factor on what the row adds to the sum."""
    outputs, batch = case()
    renamed = {k: v for k, v in outputs.items() if k != "text_embedding"}
    renamed["text_embedding_2"] = outputs["text_embedding"]
    same = loss(similarity=Cosine(text=("text_embedding_2",)))
    np.testing.assert_array_equal(same(renamed, batch)[0].total, loss()(outputs, batch)[0].total)
    weighted = loss(weights="weight")
    assert {"weight", "text_embedding"} <= set(weighted.couples)
    shares = [weighted(outputs | {"weight": jnp.eye(6)[i]}, batch)[0].compute() for i in range(6)]
    weights = jnp.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])
    value = weighted(outputs | {"weight": weights}, batch)[0].compute()
    np.testing.assert_allclose(value, jnp.stack(shares) @ weights, rtol=1e-6)
    np.testing.assert_allclose(sum(shares), loss()(outputs, batch)[0].compute(), rtol=1e-6)


def test_a_missing_mask_is_all_rows():
    outputs, batch = case()
    np.testing.assert_array_equal(
        Softmax()(outputs, {})[0].total, Softmax()(outputs, batch)[0].total
    )


def test_no_information_is_the_logarithm_of_the_batch():
    outputs, batch = case()
    same = {k: jnp.ones_like(outputs[k]) / 2 for k in ("image_embedding", "text_embedding")}
    np.testing.assert_allclose(Softmax()(outputs | same, batch)[0].compute(), np.log(6), rtol=1e-5)


def test_metrics():
    outputs, batch = case()
    eye = jnp.eye(6, 8)
    perfect = outputs | {"image_embedding": eye, "text_embedding": eye}
    _, metrics = Softmax()(perfect, batch)
    assert metrics["image_to_text_accuracy"].compute() == 1
    swapped = perfect | {"text_embedding": eye[jnp.array([1, 0, 2, 3, 4, 5])]}
    _, metrics = Softmax()(swapped, batch)
    for way in ("image_to_text", "text_to_image"):
        np.testing.assert_allclose(metrics[f"{way}_accuracy"].compute(), 4 / 6, rtol=1e-6)
    assert metrics["logit_scale"].compute() == 5


def test_many_devices_compute_what_one_does():
    outputs, batch = jax.tree.map(
        lambda x: jnp.resize(x, (8, *x.shape[1:])) if x.ndim else x, case()
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("data",))

    def place(x):
        axes = jax.sharding.PartitionSpec(*("data",) * min(x.ndim, 1))
        return jax.device_put(x, jax.sharding.NamedSharding(mesh, axes))

    def value(embedding, outputs, batch):
        return Softmax()(outputs | {"image_embedding": embedding}, batch)[0].compute()

    function = jax.jit(jax.value_and_grad(value))
    one = function(outputs["image_embedding"], outputs, batch)
    many = function(*jax.tree.map(place, (outputs["image_embedding"], outputs, batch)))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def with_negatives():
    outputs, batch = case()
    rng = np.random.default_rng(7)
    swapped = rng.normal(size=(6, 4)).astype(np.float32)
    outputs["swapped"] = swapped / np.linalg.norm(swapped, axis=1, keepdims=True)
    batch["mask"] = batch["mask"].at[2].set(False)
    return outputs, batch


@pytest.mark.parametrize("tile", [0, 4])
def test_further_negatives_are_candidates_of_images_alone(tile):
    outputs, batch = with_negatives()
    found, metrics = Softmax(negatives=("swapped",), tile=tile)(outputs, batch)
    image, text, more = (
        np.asarray(outputs[k], np.float64) for k in ("image_embedding", "text_embedding", "swapped")
    )
    rows, losses, right = [0, 1, 3, 4, 5], [], 0
    for i in rows:
        own = 5.0 * image[i] @ text[i]
        texts, further = 5.0 * text[rows] @ image[i], 5.0 * more[rows] @ image[i]
        losses.append(np.log(np.exp(texts).sum() + np.exp(further).sum()) - own)
        losses.append(np.log(np.exp(5.0 * image[rows] @ text[i]).sum()) - own)
        right += own == max(*texts, *further)
    np.testing.assert_allclose(found.compute(), np.sum(losses) / 2 / len(rows), rtol=1e-5)
    np.testing.assert_allclose(metrics["image_to_text_accuracy"].compute(), right / len(rows))
    one_way, _ = Softmax(negatives=("swapped",), directions="image_to_text", tile=tile)(
        outputs, batch
    )
    np.testing.assert_allclose(one_way.compute(), np.mean(losses[::2]), rtol=1e-5)


def test_negatives_couple_and_need_one_output_of_texts():
    assert "swapped" in Softmax(negatives=("swapped",)).couples
    similarity = Cosine(text=("text_embedding", "text_token_mask"))
    with pytest.raises(UserError, match="beside one output"):
        Softmax(negatives=("swapped",), similarity=similarity)
    with pytest.raises(UserError, match="directions"):
        Softmax(directions="up")
