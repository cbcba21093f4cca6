"""`legacy` computes what open_clip's CoCa computes with the same weights, faults included."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.models import text, variants
from tests.models import open_clip_reference as reference
from tests.models.tiny_models import method

GOLDEN = json.loads(reference.GOLDEN.read_text())
IMAGE = jnp.asarray(reference.image())
TOKENS = jnp.asarray(reference.TOKENS, jnp.int32)
# What is not an id 0 after the caption; the legacy model reads the tokens, not this.
TOKEN_MASK = jnp.asarray(np.cumsum(reference.TOKENS[:, ::-1] != 0, axis=1)[:, ::-1] > 0)
HEAD_DIM = reference.HEAD_DIM


def attention(get, name: str, heads: int) -> dict:
    """Ours of a fused self-attention."""
    width = get(f"{name}.out_proj.weight").shape[0]
    qkv = get(f"{name}.in_proj_weight").reshape(3, heads, -1, width)
    out = get(f"{name}.out_proj.weight")
    return {
        "qkv": {
            "kernel": qkv.transpose(3, 0, 1, 2),
            "bias": get(f"{name}.in_proj_bias").reshape(3, heads, -1),
        },
        "out": {
            "kernel": out.T.reshape(heads, -1, width),
            "bias": get(f"{name}.out_proj.bias"),
        },
    }


def cross_attention(get, name: str, heads: int, separate: bool = False) -> dict:
    """The same with queries apart from keys and values."""
    if separate:
        kernels = [get(f"{name}.{x}_proj_weight") for x in "qkv"]
    else:
        kernels = np.split(get(f"{name}.in_proj_weight"), 3)
    query, key, value = (k.T.reshape(k.shape[1], heads, -1) for k in kernels)
    query_bias, key_bias, value_bias = get(f"{name}.in_proj_bias").reshape(3, heads, -1)
    out = get(f"{name}.out_proj.weight")
    return {
        "query": {"kernel": query, "bias": query_bias},
        "kv": {
            "kernel": np.stack([key, value], axis=1),
            "bias": np.stack([key_bias, value_bias]),
        },
        "out": {
            "kernel": out.T.reshape(heads, -1, out.shape[0]),
            "bias": get(f"{name}.out_proj.bias"),
        },
    }


def norm(get, name: str) -> dict:
    return {"scale": get(f"{name}.weight"), "bias": get(f"{name}.bias")}


def mlp(get, name: str) -> dict:
    return {
        ours: {"kernel": get(f"{name}.{theirs}.weight").T, "bias": get(f"{name}.{theirs}.bias")}
        for ours, theirs in (("up", "c_fc"), ("down", "c_proj"))
    }


def stack(get, name: str, heads: int, cross: str = "") -> dict:
    layers = []
    for i in range(reference.LAYERS):
        own, other = f"{name}.{i}", f"{cross}.{i}"
        layer = {
            "attention_norm": norm(get, f"{own}.ln_1"),
            "attention": attention(get, f"{own}.attn", heads),
        }
        first = "self_mlp" if cross else "mlp"
        layer |= {f"{first}_norm": norm(get, f"{own}.ln_2"), first: mlp(get, f"{own}.mlp")}
        if cross:
            layer |= {
                "cross_attention_norm": norm(get, f"{other}.ln_1"),
                "context_norm": norm(get, f"{other}.ln_1_kv"),
                "cross_attention": cross_attention(get, f"{other}.attn", heads),
                "mlp_norm": norm(get, f"{other}.ln_2"),
                "mlp": mlp(get, f"{other}.mlp"),
            }
        layers.append(layer)
    return {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}


@functools.cache
def parameters() -> dict:
    def get(name: str) -> np.ndarray:
        return reference.array(name, tuple(GOLDEN["names"][name]))

    query, pool = get("visual.attn_pool.query"), norm(get, "visual.attn_pool.ln_q")
    centred = query - query.mean(axis=1, keepdims=True)
    query = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    text_heads = reference.TEXT_WIDTH // HEAD_DIM
    patch = get("visual.conv1.weight")
    tree = {
        "image": {
            "patch": {"kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch))},
            "cls": get("visual.class_embedding"),
            "position_embedding": get("visual.positional_embedding"),
            "pre_norm": norm(get, "visual.ln_pre"),
            "blocks": stack(
                get, "visual.transformer.resblocks", reference.VISION_WIDTH // HEAD_DIM
            ),
            "norm": norm(get, "visual.attn_pool.ln_k"),
        },
        "pooler": {
            "query": query * pool["scale"] + pool["bias"],
            "attention": cross_attention(
                get, "visual.attn_pool.attn", reference.POOLER_HEADS, separate=True
            ),
            "norm": norm(get, "visual.ln_post"),
        },
        "image_projection": {"kernel": get("visual.proj")},
        "text": {
            "embedding": get("text.token_embedding.weight"),
            "position_embedding": get("text.positional_embedding"),
            "cls": get("text.cls_emb"),
            "blocks": stack(get, "text.transformer.resblocks", text_heads),
            "norm": norm(get, "text.ln_final"),
        },
        "text_projection": {"kernel": get("text.text_projection")},
        "decoder": stack(get, "text_decoder.resblocks", text_heads, "text_decoder.cross_attn"),
        "norm": norm(get, "text_decoder.ln_final"),
        "caption_head": {"kernel": get("text_decoder.text_projection")},
        "temperature": {"log_scale": get("logit_scale")},
    }
    return jax.tree.map(jnp.asarray, tree)


def config() -> spec.ml_collections.ConfigDict:
    made = variants.open_clip_coca(
        "B/32",
        image_size=reference.IMAGE_SIZE,
        vocab_size=reference.VOCAB,
        max_len=reference.LENGTH,
        queries=reference.QUERIES,
        pooler_heads=reference.POOLER_HEADS,
        embed_dim=reference.TEXT_WIDTH,
    )
    made.image.patch_size = reference.PATCH
    for blocks, width in (
        (made.image.blocks, reference.VISION_WIDTH),
        (made.text.blocks, reference.TEXT_WIDTH),
        (made.decoder, reference.TEXT_WIDTH),
    ):
        blocks.width, blocks.heads, blocks.depth = width, width // HEAD_DIM, reference.LAYERS
        blocks.mlp_dim = reference.MLP_RATIO * width
    return made


@pytest.fixture(scope="module")
def outputs():
    model, batch = spec.build(config()), {"tokens": TOKENS, "token_mask": TOKEN_MASK}
    return jax.jit(model.apply)({"params": parameters()}, batch | {"image": IMAGE})


@pytest.mark.parametrize("key", ["image_embedding", "text_embedding", "caption_logits"])
def test_legacy_equals_open_clip(outputs, key):
    theirs = np.array(GOLDEN[key])
    # They leave out the last position, which has nothing to predict.
    np.testing.assert_allclose(outputs[key][:, : theirs.shape[1]], theirs, atol=2e-5)


def test_the_parameters_are_all_of_the_model():
    model, batch = spec.build(config()), {"tokens": TOKENS, "token_mask": TOKEN_MASK}
    batch["image"] = IMAGE
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))["params"]
    assert {k: v.shape for k, v in trees.flatten(parameters()).items()} == {
        k: v.shape for k, v in trees.flatten(made).items()
    }


def test_legacy_mask_equals_open_clips():
    np.testing.assert_array_equal(text.legacy_cls_mask(TOKENS)[:, 0], np.array(GOLDEN["mask"]))


def test_legacy_decodes_as_it_computes_whole_captions(outputs):
    model = spec.build(config())
    variables = {"params": parameters()}
    _, cache = method(model, "init_cache", ("cache",))(variables, outputs["image_tokens"])
    step = method(model, "decode_step", ("cache",))
    for i in range(reference.LENGTH):
        out, cache = step(variables | cache, TOKENS[:, i : i + 1])
        np.testing.assert_allclose(
            out["caption_logits"][:, 0], outputs["caption_logits"][:, i], atol=2e-5
        )


def test_our_own_mask_is_another(outputs):
    made = config()
    made.legacy = False
    model = spec.build(made)
    params = parameters()
    tower = {"params": params["text"]}
    apply = method(model.text)
    ours = apply(tower, TOKENS, TOKEN_MASK)["pooled"]
    theirs = apply(tower, TOKENS, TOKEN_MASK, mask=text.legacy_cls_mask(TOKENS))["pooled"]
    differs = np.abs(ours - theirs).max(axis=1) > 1e-3
    # A caption that fills its slots is read alike: nothing of it is padding.
    assert differs.tolist() == [True, True, False, True]


@pytest.mark.peer
def test_the_golden_file_is_what_open_clip_computes():
    pytest.importorskip("open_clip")
    now = reference.reference()
    for key in ("image_embedding", "text_embedding", "caption_logits"):
        np.testing.assert_allclose(now[key], GOLDEN[key], atol=1e-5)
    assert now["mask"] == GOLDEN["mask"]
