"""CoOp: with the hand prompt's words it is the hand prompt; only the prompts ever change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.data import transforms
from big_mm.data.contract import Contract
from big_mm.data.tokenizers import SentencePiece
from big_mm.losses.classification import ClassTexts
from big_mm.models.dual_encoder import DualEncoder
from big_mm.models.prompted import PromptedDualEncoder
from big_mm.spec import UserError
from big_mm.training import loop
from big_mm.training.run import prepare
from configs import quickstart
from experiments.coop.config import get_config
from tests.models import tiny_models as tiny

WORDS = (7, 9)
POOLS = ("cls", "eos", "last", "mean", "argmax")


def towers(pool="cls"):
    return {"image": tiny.vision("gap"), "text": tiny.text(pool), "embed_dim": 12}


def texts(*rows):
    """Tokens and mask of texts, from bos to eos."""
    tokens = np.zeros((len(rows), tiny.LENGTH), np.int32)
    for row, words in zip(tokens, rows, strict=True):
        row[: len(words) + 2] = [1, *words, tiny.VOCAB - 1]
    return jnp.asarray(tokens), jnp.asarray(tokens > 0)


def prompted(pool="cls", **options):
    """A model, and its parameters: those of a dual encoder, and prompts as they begin."""
    made = PromptedDualEncoder(**towers(pool), **options)
    plain = tiny.variables(DualEncoder(**towers(pool)))["params"]
    slots = narrow(texts([5]), options["length"])
    short = tiny.batch() | dict(zip(("tokens", "token_mask"), slots, strict=True))
    fresh = jax.jit(made.init)(jax.random.key(1), short | {"image": short["image"][:1]})["params"]
    return made, {"params": plain | {"prompts": fresh["prompts"]}}, {"params": plain}


def narrow(rows, count=2):
    """Without the slots that the prompts need."""
    return tuple(row[:, :-count] for row in rows)


def by_hand(pool, variables, rows, places):
    """The plain model's embeddings, and its tokens at these places: taken out within the program,
    as a compiler rounds what it takes out of a norm otherwise than what it keeps.
    """

    @jax.jit
    def run(variables, tokens, mask, places):
        model = DualEncoder(**towers(pool))
        out = model.apply(variables, tokens, mask, method="encode_text")
        taken = jnp.take_along_axis(out["text_tokens"], places[..., None], axis=1)
        return out["text_embedding"], taken

    return run(variables, *texts(*rows), jnp.array(places))


@pytest.mark.parametrize("pool", POOLS)
def test_initialised_with_the_words_it_is_the_hand_prompt(pool):
    made, variables, plain = prompted(pool, length=2, words=WORDS)
    names = [[5], [6, 8], [10, 11, 12]]
    # The outputs are of the words, as without prompts.
    places = [[0, *range(3, tiny.LENGTH)]] * len(names)
    hand = by_hand(pool, plain, [[*WORDS, *name] for name in names], places)
    found = tiny.method(made, "encode_text")(variables, *narrow(texts(*names)))
    np.testing.assert_array_equal(found["text_embedding"], hand[0])
    np.testing.assert_array_equal(found["text_tokens"], hand[1])


@pytest.mark.parametrize("position, before", [("middle", 1), ("front", 0)])
def test_the_words_stand_before_around_or_behind_the_name(position, before):
    words, names = (7, 9, 11), [[5], [6, 8], [10, 11, 12]]
    made, variables, plain = prompted(length=3, words=words, class_position=position)
    rows = [[*words[:before], *name, *words[before:]] for name in names]
    # bos, the name, and from eos on what follows.
    slots = range(tiny.LENGTH)
    places = [[0, *slots[1 + before :][: len(name)], *slots[4 + len(name) :]] for name in names]
    expected = by_hand("cls", plain, rows, places)
    found = tiny.method(made, "encode_text")(variables, *narrow(texts(*names), 3))
    np.testing.assert_array_equal(found["text_embedding"], expected[0])
    np.testing.assert_array_equal(found["text_tokens"], expected[1])


def test_each_class_has_its_own_context():
    names = [[5], [6, 8], [10, 11, 12]]
    tokens, mask = narrow(texts(*names))
    classes = tuple((1, *name, tiny.VOCAB - 1) for name in names)
    shared, variables, _ = prompted(length=2)
    specific = dataclasses.replace(shared, classes=classes)
    first = variables["params"]["prompts"]["first"]

    @jax.jit
    def run(first, tokens, mask):
        """Embeddings, and the slope of each, in some direction, by every context."""

        def embed(first):
            params = {"params": variables["params"] | {"prompts": {"first": first}}}
            out = specific.apply(params, tokens, mask, method="encode_text")["text_embedding"]
            return out @ jnp.arange(12.0), out

        slopes, out = jax.jacrev(embed, has_aux=True)(first)
        return out, slopes

    # In another order than that of the classes.
    order = [2, 0, 1]
    rows = [tokens[jnp.array(order)], mask[jnp.array(order)]]
    equal, slopes = run(jnp.stack([first] * 3), *rows)
    expected = tiny.method(shared, "encode_text")(variables, *rows)["text_embedding"]
    np.testing.assert_allclose(equal, expected, atol=1e-6)
    moved = np.abs(slopes).max(axis=(2, 3)) > 1e-6
    np.testing.assert_array_equal(moved, np.eye(3, dtype=bool)[order])
    # A longer text, a shorter one, and padding that the mask does not hide.
    others, seen = narrow(texts([5, 6], [6], [6, 8]))
    others, seen = others.at[2, 4].set(3), seen.at[2, 4].set(True)
    unknown, _ = run(jnp.stack([first] * 3), others, seen)
    assert np.isnan(unknown).all()


def test_the_loss_is_that_of_a_loop():
    made, variables, _ = prompted(length=2)
    tokens, mask = narrow(texts([5], [6, 8], [10, 11, 12]))
    image, label = tiny.batch()["image"], np.array([2, 0, 1])
    batch = {"image": image, "label": jnp.asarray(label), "mask": jnp.array([1, 0, 1])}
    batch |= {"class_tokens": jnp.stack([tokens] * 3), "class_token_mask": jnp.stack([mask] * 3)}
    outputs = jax.jit(functools.partial(made.apply, train=True))(variables, batch)
    images = np.asarray(tiny.method(made, "encode_image")(variables, image)["image_embedding"])
    names = np.asarray(tiny.method(made, "encode_text")(variables, tokens, mask)["text_embedding"])
    losses = []
    for row in (0, 2):
        logits = float(outputs["logit_scale"]) * names @ images[row]
        losses.append(np.log(np.exp(logits).sum()) - logits[label[row]])
    loss, metrics = ClassTexts()(outputs, batch)
    np.testing.assert_allclose(float(loss.compute()), np.mean(losses), rtol=1e-5)
    right = [(names @ images[row]).argmax() == label[row] for row in (0, 2)]
    assert float(metrics["accuracy"].compute()) == np.mean(right)


def test_only_the_prompts_change(in_world):
    config = get_config("coop1")
    with config.unlocked():
        config.init_from = None
        config.steps, config.batch_size, config.evaluators = 10, 8, {}
    run = spec.build(config)
    example, batches = loop.open_data(run, 0)
    prepared = prepare(run, example)
    state = prepared.create()
    before = trees.flatten(jax.device_get(state.params))
    for _ in range(2):
        batch, _ = next(loop.device_batches(run, prepared.mesh, batches))
        state, metrics = prepared.update(state, batch)
    batches.close()
    after = trees.flatten(jax.device_get(state.params))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"prompts/first"}
    assert np.isfinite(float(metrics["loss"]))


def test_prompts_that_make_no_sense():
    tokens = narrow(texts([5]))

    def encode(made, tokens):
        init = functools.partial(made.init, method="encode_text")
        jax.eval_shape(init, jax.random.key(0), *tokens)

    made = PromptedDualEncoder(**towers(), length=3, words=WORDS)
    with pytest.raises(UserError, match="2 words for prompts of length=3"):
        encode(made, tokens)
    made = dataclasses.replace(made, words=(), depth=3)
    with pytest.raises(UserError, match="each of 2 layers, but a stack of depth=2 has 1"):
        encode(made, [x[:, :5] for x in tokens])
    made = dataclasses.replace(made, depth=1)
    with pytest.raises(UserError, match="11 tokens a caption for a text tower of max_len=8"):
        encode(made, texts([5]))
    made = dataclasses.replace(made, class_position="front", depth=2)
    with pytest.raises(UserError, match="class_position='front' needs depth=1, not 2"):
        encode(made, tokens)
    made = dataclasses.replace(made, class_position="end", classes=((1, 5, 19), (1, 5, 19)))
    with pytest.raises(UserError, match="two of them have the same tokens"):
        encode(made, tokens)
    with pytest.raises(UserError, match="image_prompts=True needs prompts that all classes share"):
        encode(dataclasses.replace(made, image_prompts=True), tokens)
    tower = tiny.text("cls")
    two = jnp.zeros((2, 1, tiny.WIDTH))
    with pytest.raises(UserError, match="prompts_after needs those of one layer"):
        jax.eval_shape(
            lambda: tower.init(
                jax.random.key(0), *tokens, prompts=two, prompts_after=jnp.ones((1, 1), int)
            )
        )


def test_the_texts_of_the_task_are_those_of_its_contexts(in_world):
    run = spec.build(get_config("coop1_csc"))
    (texts,) = (t for t in run.data.transforms if isinstance(t, transforms.ClassTexts))
    tokens, mask = run.contract.text(texts.classnames)
    found = [tuple(row[valid].tolist()) for row, valid in zip(tokens, mask, strict=True)]
    assert tuple(found) == run.objective.model.classes and len(found) == 26


def test_every_record_has_the_texts_of_all_classes(in_world):
    tokenizer = SentencePiece(f"{quickstart.DATA}/tokenizer.model")
    contract = Contract(tokenizer=tokenizer, image_size=tiny.SIZE, max_len=12)
    names = ("a red circle", "a blue star")
    made = transforms.ClassTexts(names, template="see {}").bind(contract)
    found = made.map({"key": "a", "label": 1})
    expected = contract.text(["see a red circle", "see a blue star"])
    np.testing.assert_array_equal(found["class_tokens"], expected[0])
    np.testing.assert_array_equal(found["class_token_mask"], expected[1])
    with pytest.raises(UserError, match="record 'b' has label 2, and there are 2 classnames"):
        made.map({"key": "b", "label": 2})
    with pytest.raises(UserError, match="must hold {} exactly once"):
        transforms.ClassTexts(names, template="see")
