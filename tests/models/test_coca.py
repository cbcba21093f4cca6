"""What is true of CoCa: what its outputs depend on, and its cached decoding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm.models.coca import CoCa
from big_mm.spec import UserError
from big_mm.types import OUTPUTS
from tests.models import tiny_models as tiny


@functools.cache
def model(**options):
    made = tiny.coca(**options)
    return made, tiny.variables(made)


def run(batch, **options):
    made, variables = model(**options)
    return tiny.method(made)(variables, batch)


def close(a, b, **options):
    np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-5, **options})


def test_outputs_are_the_documented_ones():
    out = run(tiny.batch())
    shapes = {k: (v.shape, str(v.dtype)) for k, v in out.items()}
    width = tiny.WIDTH
    assert shapes == {
        "image_embedding": ((3, width), "float32"),
        "image_features": ((3, width), "float32"),
        "image_tokens": ((3, 3, width), "float32"),
        "patch_tokens": ((3, 4, width), "float32"),
        "text_embedding": ((3, width), "float32"),
        "text_tokens": ((3, tiny.LENGTH, width), "float32"),
        "caption_logits": ((3, tiny.LENGTH, tiny.VOCAB), "float32"),
        "logit_scale": ((), "float32"),
    }
    assert set(shapes) <= set(OUTPUTS)
    for key in ("image_embedding", "text_embedding"):
        close(jnp.linalg.norm(out[key], axis=1), 1)


def test_a_missing_modality_is_missing_keys():
    batch = tiny.batch()
    images = run({"image": batch["image"]})
    texts = run({k: v for k, v in batch.items() if k != "image"})
    of_images = {"image_embedding", "image_features", "image_tokens", "patch_tokens"}
    assert set(images) == {"logit_scale"} | of_images
    assert set(texts) == {"logit_scale", "text_embedding", "text_tokens"}


def test_methods_agree_with_the_whole():
    made, variables = model()
    batch, out = tiny.batch(), run(tiny.batch())
    image = tiny.method(made, "encode_image")(variables, batch["image"])
    text = tiny.method(made, "encode_text")(variables, batch["tokens"], batch["token_mask"])
    for key, value in (image | text).items():
        close(value, out[key])


def test_padding_changes_nothing():
    batch = tiny.batch((8, 5, 3))
    noise = jax.random.randint(jax.random.key(1), batch["tokens"].shape, 0, tiny.VOCAB)
    noisy = batch | {"tokens": jnp.where(batch["token_mask"], batch["tokens"], noise)}
    clean, other = run(batch), run(noisy)
    close(clean["text_embedding"], other["text_embedding"])
    real = np.asarray(batch["token_mask"])
    for key in ("caption_logits", "text_tokens"):
        close(clean[key][real], other[key][real])
        assert np.abs(clean[key] - other[key])[~real].max() > 1e-2


def test_shorter_slots_change_nothing():
    batch = tiny.batch((5, 4, 3))
    short = {k: v if k == "image" else v[:, :5] for k, v in batch.items()}
    whole, cut = run(batch), run(short)
    close(whole["text_embedding"], cut["text_embedding"])
    close(whole["caption_logits"][:, :5], cut["caption_logits"])


def test_a_token_sees_its_past_and_the_embedding_all_of_the_caption():
    batch = tiny.batch((8, 8, 8))
    changed = batch | {"tokens": batch["tokens"].at[:, 4].add(1)}
    before, after = run(batch), run(changed)
    close(before["caption_logits"][:, :4], after["caption_logits"][:, :4])
    assert np.abs(before["caption_logits"] - after["caption_logits"])[:, 4:].min(axis=-1).max() > 0
    last = batch | {"tokens": batch["tokens"].at[:, 7].add(1)}
    moved = np.abs(before["text_embedding"] - run(last)["text_embedding"]).max(axis=1)
    assert moved.min() > 1e-3


def test_captions_see_the_image_and_the_text_embedding_does_not():
    batch = tiny.batch()
    other = batch | {"image": batch["image"][::-1]}
    before, after = run(batch), run(other)
    close(before["text_embedding"], after["text_embedding"])
    assert np.abs(before["caption_logits"] - after["caption_logits"])[0].max() > 1e-2


def test_rows_are_independent():
    batch = tiny.batch((8, 5, 3))
    alone = run({k: v[1:2] for k, v in batch.items()})
    for key, value in run(batch).items():
        if key != "logit_scale":
            close(value[1:2], alone[key])


def test_a_row_of_nothing_is_finite():
    out = run(tiny.batch((8, 0, 0)))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(out))


@pytest.mark.parametrize("prefix", [1, 3])
def test_decoding_step_by_step_equals_the_whole(prefix):
    made, variables = model()
    batch = tiny.batch((8, 8, 8))
    close(tiny.decode(made, variables, batch, prefix), run(batch)["caption_logits"], atol=3e-5)


def test_decoding_with_tied_embeddings_and_parallel_pooling():
    options = {"tie_embeddings": True, "pooling": "parallel", "embed_dim": 8}
    made, variables = model(**options)
    batch = tiny.batch((8, 8, 8))
    assert "caption_head" not in variables["params"]
    close(
        tiny.decode(made, variables, batch, 2), run(batch, **options)["caption_logits"], atol=3e-5
    )


def test_the_first_step_may_take_the_image_itself():
    made, variables = model()
    batch, out = tiny.batch((8, 8, 8)), run(tiny.batch((8, 8, 8)))
    step = tiny.method(made, "decode_step", ("cache",))
    first, cache = step(variables, batch["tokens"][:, :3], out["image_tokens"])
    second, _ = step(variables | cache, batch["tokens"][:, 3:])
    logits = jnp.concatenate([first["caption_logits"], second["caption_logits"]], axis=1)
    close(logits, out["caption_logits"], atol=3e-5)


def test_the_cache_has_its_batch_where_the_model_says():
    made, variables = model()
    tokens = run(tiny.batch())["image_tokens"]
    _, state = tiny.method(made, "init_cache", ("cache",))(variables, tokens)
    for leaf in jax.tree.leaves(state):
        assert leaf.ndim == 0 or leaf.shape[made.cache_batch_axis] == len(tokens)


def test_pooling_variants_differ_where_they_should():
    cascade, parallel = (tiny.coca(pooling=pooling) for pooling in ("cascade", "parallel"))
    _, variables = model()
    batch = {"image": tiny.batch()["image"]}
    a, b = (tiny.method(made)(variables, batch) for made in (cascade, parallel))
    close(a["image_tokens"], b["image_tokens"])
    assert np.abs(a["image_embedding"] - b["image_embedding"]).max() > 1e-2


def test_shared_pooling_leaves_one_image_token_fewer():
    made = tiny.coca(pooling="shared")
    shapes = jax.eval_shape(made.apply, tiny.variables(made), tiny.batch())
    assert shapes["image_tokens"].shape == (3, 2, tiny.WIDTH)


def test_bfloat16_is_near_float32():
    half = tiny.coca(layers={"dtype": "bfloat16"})
    _, variables = model()
    out, exact = tiny.method(half)(variables, tiny.batch()), run(tiny.batch())
    assert out["image_tokens"].dtype == jnp.bfloat16
    for key in ("image_embedding", "text_embedding", "caption_logits"):
        assert out[key].dtype == jnp.float32
        error = np.abs(out[key] - exact[key]).max() / np.abs(exact[key]).max()
        assert error < 0.08


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": tiny.vision("gap")}, "pool='none'"),
        ({"text": tiny.text("eos")}, "pool='cls'"),
        ({"decoder": tiny.blocks()}, "cross_attention"),
        ({"decoder": tiny.blocks(width=32, cross_attention=True)}, "must be the same"),
        ({"pooling": "average"}, "cascade, parallel"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    parts = {
        "image": tiny.vision(),
        "text": tiny.text(),
        "decoder": tiny.blocks(cross_attention=True),
    }
    with pytest.raises(UserError, match=message):
        jax.eval_shape(CoCa(**parts | change).init, jax.random.key(0), tiny.batch())


def test_a_caption_that_is_too_long():
    batch = tiny.batch()
    batch["tokens"], batch["token_mask"] = (jnp.tile(batch[k], (1, 2)) for k in list(batch)[1:])
    with pytest.raises(UserError, match="16 tokens a caption.*max_len=8"):
        jax.eval_shape(tiny.coca().init, jax.random.key(0), batch)
