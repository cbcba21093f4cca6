"""Sampled captions: their gradient is that of the expected reward, baselines and judges hold."""

import dataclasses
import functools
import itertools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from big_mm import decoding
from big_mm.data.contract import Contract
from big_mm.data.tokenizers import SentencePiece
from big_mm.losses.policy_gradient import Reinforce
from big_mm.objectives.judge import Judge
from big_mm.objectives.policy_gradient import PolicyGradient, Reward, _until_eos
from big_mm.spec import UserError
from big_mm.training.init_from import InitFrom
from big_mm.types import Aux
from tests import tiny

IMAGES = tiny.images(4)


@dataclasses.dataclass(frozen=True)
class Says:
    """The share of a caption's tokens that are even."""

    couples: bool = False

    def bind(self, contract):
        return self

    def __call__(self, written, batch, judged):
        even = (written["tokens"] % 2 == 0) & written["token_mask"]
        return even.sum(axis=1) / written["token_mask"].sum(axis=1)


@dataclasses.dataclass(frozen=True)
class ByJudge(Says):
    def __call__(self, written, batch, judged):
        return jax.nn.logsumexp(judged["caption_logits"], axis=-1).mean(axis=1)


class Bigram(nn.Module):
    """A captioner that compiles in no time: the next token by the last one and the picture."""

    vocab_size: int

    cache_batch_axis = 0

    def setup(self):
        self.table = nn.Embed(self.vocab_size, self.vocab_size)
        self.see = nn.Dense(self.vocab_size)

    def __call__(self, batch, *, train=False):
        out = self.encode_image(batch["image"])
        if "tokens" in batch:
            out["caption_logits"] = 10 * self.table(batch["tokens"]) + out["image_tokens"]
        return out

    def encode_image(self, image, *, train=False):
        return {"image_tokens": self.see(image.reshape(len(image), -1) / 255.0)[:, None]}

    def init_cache(self, image_tokens):
        self.decode_step(jnp.zeros((len(image_tokens), 0), jnp.int32), image_tokens)

    def decode_step(self, tokens, image_tokens=None):
        if image_tokens is None:
            image_tokens = self.get_variable("cache", "image")
        self.put_variable("cache", "image", image_tokens)
        return {"caption_logits": 10 * self.table(tokens) + image_tokens}


@functools.cache
def world():
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tokenizer.model"
        file.write_bytes(tiny.tokenizer_bytes())
        tokenizer = SentencePiece(str(file))
        assert tokenizer.model_bytes  # read while the file is there
    contract = Contract(tokenizer=tokenizer, image_size=tiny.IMAGE_SIZE, max_len=tiny.MAX_LEN)
    return Bigram(tokenizer.vocab_size + 3), contract


def objective(**options):
    model, contract = world()
    options = {"rewards": {"says": Says()}, "losses": {"policy": Reinforce()}} | options
    return PolicyGradient(model=model, **options).bind(contract)


def batch():
    _, contract = world()
    tokens, token_mask = contract.text(list(tiny.TEXTS[: len(IMAGES)]))
    rows = {"image": IMAGES, "tokens": tokens, "token_mask": token_mask}
    return jax.tree.map(jnp.asarray, rows)


@functools.cache
def params():
    return world()[0].init(jax.random.key(0), batch())["params"]


def test_a_mask_ends_with_eos():
    rows = jnp.array([[1, 7, 2, 0], [1, 7, 8, 9], [1, 2, 0, 0], [1, 7, 8, 2]])
    expected = [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(_until_eos(rows, 2), np.array(expected, bool))
    # Where bos is eos, it ends nothing.
    np.testing.assert_array_equal(_until_eos(jnp.array([[2, 7, 2, 0]]), 2)[0], [1, 1, 1, 0])


def test_log_probabilities_of_samples_are_the_decoders():
    made, data = objective(), batch()
    model, contract = world()

    @jax.jit
    def run(params, image):
        written = made.write(params, image, jax.random.key(3))
        outputs = model.apply({"params": params}, {"image": image} | written)
        found = made.log_probs(params, image, written, jax.random.key(0))
        return written, outputs["caption_logits"], *found

    written, logits, log_probs, mask = jax.device_get(run(params(), data["image"]))
    allowed = np.asarray(decoding.Vocabulary.of(contract.tokenizer).allowed(logits.shape[-1]))
    assert not mask[:, 0].any()
    for row, tokens in enumerate(written["tokens"]):
        for place in range(1, len(tokens)):
            inside = written["token_mask"][row, place]
            assert mask[row, place] == inside
            before = logits[row, place - 1].astype(np.float64)
            expected = before[tokens[place]] - np.log(np.exp(before[allowed]).sum())
            np.testing.assert_allclose(log_probs[row, place], expected * inside, atol=2e-4)


def test_the_gradient_is_that_of_the_expected_reward():
    """A policy of two independent tokens out of three, enumerated: 9 captions."""
    logits = jnp.array([[0.3, -0.2, 0.5], [0.1, 0.4, -0.6]])
    rewards = jnp.arange(9.0).reshape(3, 3) ** 2

    def expected(logits):
        a, b = jax.nn.softmax(logits, axis=1)
        return -(a[:, None] * b[None, :] * rewards).sum()

    captions = jnp.array(list(itertools.product(range(3), range(3))))
    probability = jnp.prod(
        jnp.take_along_axis(jax.nn.softmax(logits)[None], captions[..., None], 2)[..., 0], axis=1
    )

    @jax.jit
    @jax.grad
    def gradient(logits, caption, reward, baseline):
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), caption[:, None], 1)[:, 0]
        outputs = {
            "sample_log_probs": log_probs[None],
            "sample_mask": jnp.ones((1, 2), bool),
            "advantage": jnp.array([reward - baseline]),
            "reward": jnp.array([reward]),
        }
        return Reinforce()(outputs, {})[0].compute()

    greedy = rewards[2, 1]
    for baseline in (0.0, greedy, 11.0):
        found = sum(
            p * gradient(logits, c, rewards[tuple(c)], baseline)
            for p, c in zip(probability, captions, strict=True)
        )
        np.testing.assert_allclose(found, jax.grad(expected)(logits), atol=1e-5)


def test_per_token_is_the_public_criterion():
    """RewardCriterion of self-critical.pytorch: -(reward * log p * mask).sum() / mask.sum()."""
    outputs = {
        "sample_log_probs": jnp.array([[0.0, -1.0, -2.0, 0.0], [0.0, -0.5, -0.25, -3.0]]),
        "sample_mask": jnp.array([[0, 1, 1, 0], [0, 1, 1, 1]], bool),
        "advantage": jnp.array([0.5, -2.0]),
        "reward": jnp.array([1.0, 3.0]),
    }
    mean, metrics = Reinforce(per="tokens")(outputs, {})
    np.testing.assert_allclose(mean.compute(), (1.5 - 7.5) / 5)
    np.testing.assert_allclose(Reinforce()(outputs, {})[0].compute(), (1.5 - 7.5) / 2)
    np.testing.assert_allclose(metrics["reward"].compute(), 2.0)
    masked = {"mask": jnp.array([True, False])}
    np.testing.assert_allclose(Reinforce()(outputs, masked)[0].compute(), 1.5)


def test_the_greedy_baseline():
    made, data = objective(), batch()

    @jax.jit
    def run(params, rng):
        outputs = made.forward(params, {}, data, rng)
        greedy, _ = made.reward({}, data, made.write(params, data["image"]))
        return outputs["advantage"], outputs["reward"] - greedy

    found, expected = run(params(), jax.random.key(5))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 0


def test_the_mean_of_all_rewards_so_far():
    made, data = objective(baseline="mean"), batch()

    @jax.jit
    def step(extra, rng):
        outputs = made.forward(params(), extra, data, rng)
        aux = Aux({}, {}, made.carry(outputs, data))
        return outputs, made.update_extra(extra, params(), aux)

    extra = made.init_extra(jax.random.key(0), params())
    outputs, extra = step(extra, jax.random.key(1))
    first = outputs["reward"].mean()  # is its own baseline
    np.testing.assert_allclose(outputs["advantage"], outputs["reward"] - first, atol=1e-6)
    outputs, extra = step(extra, jax.random.key(2))
    np.testing.assert_allclose(outputs["advantage"], outputs["reward"] - first, atol=1e-6)
    both = (first + outputs["reward"].mean()) / 2
    np.testing.assert_allclose(extra["baseline"]["total"] / extra["baseline"]["count"], both)


def test_no_gradient_passes_through_reward_or_judge():
    """The gradient is that of log p times a constant, even if the model is its own judge."""
    model, _ = world()
    made = objective(
        rewards={"judge": ByJudge()}, judge=Judge(model, InitFrom("")), baseline="mean"
    )
    data, rng = batch(), jax.random.key(1)
    baseline = {"total": jnp.float32(1.0), "count": jnp.float32(2.0)}

    def loss(p):
        extra = {"judge": p, "baseline": baseline}  # the same parameters, and still no gradient
        return made.loss(p, extra, data, rng)[0]

    @jax.jit
    def run(p):
        outputs = made.forward(p, {"judge": p, "baseline": baseline}, data, rng)
        written = made.write(p, data["image"], jax.random.fold_in(rng, 0))

        def by_hand(p):
            log_probs, _ = made.log_probs(p, data["image"], written, rng)
            return -(outputs["advantage"] * log_probs.sum(axis=1)).mean()

        return jax.grad(loss)(p), jax.grad(by_hand)(p)

    found, expected = run(params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("baseline", ["greedy", "mean"])
def test_steps_raise_the_reward(baseline):
    made, data = objective(baseline=baseline), batch()

    @jax.jit
    def step(params, extra, rng):
        grads, aux = jax.grad(made.loss, has_aux=True)(params, extra, data, rng)
        params = jax.tree.map(lambda p, g: p - 0.03 * g, params, grads)
        return params, made.update_extra(extra, params, aux), aux.metrics["policy/reward"]

    state, extra, rewards = params(), made.init_extra(jax.random.key(0), params()), []
    for number in range(60):
        state, extra, reward = step(state, extra, jax.random.key(number))
        rewards.append(float(reward.compute()))
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.1


def test_what_is_refused():
    assert isinstance(Says(), Reward)
    with pytest.raises(UserError, match="at least one of `rewards`"):
        objective(rewards={})
    with pytest.raises(UserError, match="weights for"):
        objective(reward_weights={"no": 1.0})
    with pytest.raises(UserError, match="baseline"):
        objective(baseline="none")
    with pytest.raises(UserError, match="compare the rows"):
        objective(rewards={"says": Says(couples=True)}).check_accumulation(2)
    objective().check_accumulation(2)
    model, _ = world()
    loose = PolicyGradient(model=model, losses={"p": Reinforce()}, rewards={"says": Says()})
    with pytest.raises(UserError, match="no contract"):
        loose.write({}, jnp.asarray(IMAGES))
