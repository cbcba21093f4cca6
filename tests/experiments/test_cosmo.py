"""COSMO: closed gates are the language model, a token sees the one image before it."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_mm import trees
from big_mm.data.contract import Contract
from big_mm.data.documents import Documents, document
from big_mm.data.tokenizers import SentencePiece
from big_mm.evaluators import InContext
from big_mm.losses.contrastive import Softmax
from big_mm.models.text import causal_mask
from big_mm.predictor import Predictor
from configs import quickstart
from experiments.cosmo.model import Cosmo
from experiments.cosmo.pairs import PairSoftmax
from tests.models import tiny_models as tiny

IMAGE_ID = 5
IMAGES = jax.random.randint(jax.random.key(0), (2, 3, 16, 16, 3), 0, 256).astype(jnp.uint8)
# Words before the first image; then three images, two of them next to each other.
TOKENS = jnp.array([[1, 9, 5, 8, 5, 5, 7, 2], [5, 9, 9, 5, 8, 8, 5, 2]])
MEDIA = np.array([[0, 0, 1, 1, 2, 3, 3, 3], [1, 1, 1, 2, 2, 2, 3, 3]])
BATCH = {"images": IMAGES, "tokens": TOKENS, "token_mask": TOKENS > 0}


def model(**options):
    decoder = tiny.blocks(cross_attention=True, cross_gate=True)
    sizes = {"queries": 3, "pooling": "parallel", "image_id": IMAGE_ID, "text": tiny.text()}
    return Cosmo(image=tiny.vision(), decoder=decoder, **sizes | options)


@functools.cache
def variables(gate=0.7):
    params = trees.flatten(tiny.variables(model())["params"])
    params["decoder/layers/gate"] = jnp.full((2,), gate)
    return {"params": trees.unflatten(params)}


def logits(batch, gate=0.7):
    return np.asarray(tiny.method(model())(variables(gate), batch)["caption_logits"])


def test_closed_gates_are_the_language_model():
    made = model()
    params = variables(0.0)["params"]
    flat = trees.flatten(params["decoder"])
    own = {k: v for k, v in flat.items() if "cross_attention" not in k and "gate" not in k}

    @jax.jit
    def language_model():
        text = tiny.text().apply({"params": params["text"]}, TOKENS, TOKENS > 0)
        stack, mask = {"params": trees.unflatten(own)}, causal_mask(8)
        x = tiny.blocks().apply(stack, text["residual"], mask)
        mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / jnp.sqrt(spread + made.decoder.norm_eps)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
        return x @ params["caption_head"]["kernel"]

    np.testing.assert_allclose(logits(BATCH, gate=0.0), language_model(), atol=1e-4)
    other = BATCH | {"images": 255 - IMAGES}
    np.testing.assert_array_equal(logits(other, gate=0.0), logits(BATCH, gate=0.0))
    assert np.abs(logits(BATCH) - logits(BATCH, gate=0.0)).max() > 1e-3


@pytest.mark.parametrize("image", [1, 2, 3])
def test_a_token_sees_the_image_that_precedes_it_last(image):
    """Later tokens may know of it by the tokens between: in one layer they do not."""
    one = tiny.blocks(depth=1, cross_attention=True, cross_gate=True)
    made = dataclasses.replace(model(), decoder=one)
    params = jax.tree.map(lambda x: x, variables()["params"])
    params["decoder"] = jax.tree.map(lambda x: x[:1], params["decoder"])
    run = tiny.method(made)
    changed = BATCH | {"images": IMAGES.at[:, image - 1].set(255 - IMAGES[:, image - 1])}
    before, after = (run({"params": params}, batch)["caption_logits"] for batch in (BATCH, changed))
    np.testing.assert_array_equal(np.abs(before - after).max(axis=2) > 1e-6, MEDIA == image)


def test_tokens_before_any_image_are_the_language_models():
    np.testing.assert_array_equal(logits(BATCH)[0, :2], logits(BATCH, gate=0.0)[0, :2])


def test_no_token_knows_of_a_later_image():
    changed = BATCH | {"images": IMAGES.at[:, 2].set(0)}
    before = MEDIA < 3
    np.testing.assert_array_equal(logits(changed)[before], logits(BATCH)[before])
    assert np.abs(logits(changed)[~before] - logits(BATCH)[~before]).max() > 1e-3


@pytest.mark.parametrize("prefix", [1, 4])
def test_step_by_step_is_the_whole_document(prefix):
    batch = {"image": IMAGES, "tokens": TOKENS}
    np.testing.assert_allclose(
        tiny.decode(model(), variables(), batch, prefix), logits(BATCH), atol=1e-4
    )


def test_a_caption_is_a_document_of_one_image():
    tokens = TOKENS.at[:, 0].set(IMAGE_ID).at[:, 1:].set(9)
    text = {"tokens": tokens, "token_mask": tokens > 0}
    one = tiny.method(model())(variables(), text | {"image": IMAGES[:, 0]})
    several = tiny.method(model())(variables(), text | {"images": IMAGES[:, :1]})
    np.testing.assert_allclose(one["caption_logits"], several["caption_logits"], atol=1e-5)
    np.testing.assert_allclose(one["image_embedding"], several["image_embedding"][:, 0], atol=1e-6)


def test_pairs_are_embedded_one_by_one_and_compared_with_all():
    pairs = jnp.stack([TOKENS, TOKENS + 1, TOKENS[::-1]], axis=1)
    batch = BATCH | {"pair_tokens": pairs, "pair_token_mask": pairs > 0}
    out = tiny.method(model())(variables(), batch)
    image = tiny.method(model(), "encode_image")(variables(), IMAGES[1, 2][None])
    alone = pairs[1, 2][None]
    text = tiny.method(model(), "encode_text")(variables(), alone, alone > 0)
    np.testing.assert_allclose(out["image_embedding"][1, 2], image["image_embedding"][0], atol=1e-5)
    np.testing.assert_allclose(out["text_embedding"][1, 2], text["text_embedding"][0], atol=1e-5)
    batch |= {"pair_id": jnp.array([[1, 2, 3], [3, 4, 5]]), "mask": jnp.array([1, 1])}
    found, _ = jax.jit(PairSoftmax(positives="pair_id"))(out, batch)
    flat = {k: out[k].reshape(6, -1) for k in ("image_embedding", "text_embedding")}
    expected, _ = jax.jit(Softmax(positives="ids"))(out | flat, {"ids": batch["pair_id"].ravel()})
    np.testing.assert_allclose(found.compute(), expected.compute(), rtol=1e-5)
    half, _ = PairSoftmax(positives="pair_id")(out, batch | {"mask": jnp.array([1, 0])})
    assert float(half.count) == 3


@pytest.fixture
def contract(in_world):
    tokenizer = SentencePiece(f"{quickstart.DATA}/tokenizer.model")
    return Contract(tokenizer=tokenizer, image_size=tiny.SIZE, max_len=24)


class Pictures:
    """Five grey pictures, each with two captions."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        data = io.BytesIO()
        Image.new("RGB", (16, 16), (40 * index,) * 3).save(data, "PNG")
        said = [f"a red circle number {index}", f"there is a blue star {index}"]
        return {"image": data.getvalue(), "captions": said, "key": str(index), "label": index}

    def where(self, index):
        return f"picture {index}"


SOURCE = Pictures()


def test_captions_in_context_are_those_of_a_loop(contract):
    """Greedy, by the whole document again for each token."""
    vocabulary = contract.tokenizer.vocab_size
    contract = dataclasses.replace(contract, max_len=32)
    text = dataclasses.replace(tiny.text(), vocab_size=vocabulary, max_len=32)
    made = model(image_id=contract.tokenizer.bos_id, text=text)
    params = tiny.variables(made)["params"]
    predictor = Predictor(made, params, contract)
    documents = Documents(SOURCE, images=3)
    result = InContext(documents, limit=4).evaluate(predictor, 0)
    assert result.values["examples"] == 4 and result.protocol["shots"] == 2
    record, length = documents[0], contract.max_len
    images = np.stack([contract.image(data) for data in record["images"]])[None]
    words = document(contract, [record["texts"][0][0], record["texts"][1][0], ""]).tolist()
    start, never = len(words), list(contract.tokenizer.reserved - {2, contract.tokenizer.unk_id})
    while len(words) < length and words[-1] != 2:
        tokens = jnp.array([words + [0] * (length - len(words))])
        batch = {"images": images, "tokens": tokens, "token_mask": tokens > 0}
        scores = np.array(tiny.method(made)({"params": params}, batch)["caption_logits"])
        scores = scores[0, len(words) - 1]
        scores[never] = -np.inf
        words.append(int(scores[:vocabulary].argmax()))
    prefix = np.full((1, length), contract.tokenizer.free_id, np.int32)
    prefix[0, :start] = words[:start]
    found, _ = predictor.generate(images, contract.decoding, prefix=prefix)
    assert found[0, : len(words)].tolist() == words
