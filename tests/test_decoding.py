"""Cached decoding equals plain decoding, search equals enumeration, samples follow their law."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import decoding
from big_mm.spec import UserError

PAD, BOS, EOS, UNK, CLS = range(5)
IDS = decoding.Vocabulary(size=12)
VOCAB = 14  # two ids more than the tokenizer has
WIDTH, LENGTH = 8, 9


class Toy:
    """One attention layer over the tokens of a row and its own "image" vector."""

    def __init__(self, rows: int, seed: int = 0, sharpness: float = 3.0):
        rng = np.random.default_rng(seed)
        self.embed = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
        self.position = rng.normal(size=(LENGTH, WIDTH)).astype(np.float32)
        self.project = rng.normal(size=(3, WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
        self.out = sharpness * rng.normal(size=(WIDTH, VOCAB)).astype(np.float32) / WIDTH**0.5
        self.image = rng.normal(size=(rows, WIDTH)).astype(np.float32)

    def full(self, tokens: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Log-probabilities [T, V] of one row, without a cache, in numpy."""
        x = self.embed[tokens] + self.position[: len(tokens)] + image
        q, k, v = (x @ p for p in self.project)
        weights = np.where(np.tri(len(tokens), dtype=bool), q @ k.T, -np.inf)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        logits = np.tanh(weights / weights.sum(-1, keepdims=True) @ v) @ self.out
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    def step(self, tokens, cache):
        """The same with a cache, whose leaves hold the rows on axis 1."""
        start, length = cache["index"], tokens.shape[1]
        place = jax.lax.dynamic_slice_in_dim(jnp.asarray(self.position), start, length)
        x = jnp.asarray(self.embed)[tokens] + place + cache["image"][0][:, None]
        q, k, v = (x @ p for p in self.project)
        k = jax.lax.dynamic_update_slice_in_dim(cache["k"][0], k, start, axis=1)
        v = jax.lax.dynamic_update_slice_in_dim(cache["v"][0], v, start, axis=1)
        seen = jnp.arange(LENGTH) <= start + jnp.arange(length)[:, None]
        weights = jax.nn.softmax(jnp.where(seen, jnp.einsum("btw,blw->btl", q, k), -jnp.inf))
        logits = jnp.tanh(jnp.einsum("btl,blw->btw", weights, v)) @ self.out
        return logits, cache | {"k": k[None], "v": v[None], "index": start + length}

    def cache(self, image=None):
        image = self.image if image is None else image
        empty = jnp.zeros((1, len(image), LENGTH, WIDTH))
        return {"k": empty, "v": empty, "image": jnp.asarray(image)[None], "index": jnp.int32(0)}


def starts(rows: int, *prefix: int) -> jnp.ndarray:
    return jnp.tile(jnp.array([BOS, *prefix] + [PAD] * (LENGTH - 1 - len(prefix))), (rows, 1))


def run(toy, prefix=None, *, keys=None, prefill=1, step=None, cache=None, ids=IDS, **kwargs):
    how = decoding.options(**kwargs)
    prefix = starts(len(toy.image)) if prefix is None else prefix

    @jax.jit
    def go(how, prefix, keys):
        return decoding.decode(
            step or toy.step,
            toy.cache() if cache is None else cache,
            prefix,
            how,
            ids,
            keys=keys,
            prefill=prefill,
            batch_axis=1,
        )

    return jax.device_get(go(how, prefix, keys))


@functools.partial(jax.jit, static_argnums=0)
def beam_search(toy, how):
    prefix = starts(len(toy.image))
    return decoding.beam_search(toy.step, toy.cache(), prefix, how, IDS, batch_axis=1)


def log_prob(toy, row, image, given=1) -> float:
    """The score of a finished row by the uncached model."""
    words = [t for t in row if t != PAD]
    table = toy.full(np.array(words), image)
    return sum(table[i - 1, words[i]] for i in range(given, len(words)))


def plain_greedy(toy, image, start=(BOS,), min_len=0, logits=None):
    row = list(start)
    while len(row) < LENGTH and row[-1] != EOS:
        table = (logits or toy.full)(np.array(row), image)[-1].copy()
        table[[PAD, BOS, CLS]] = -np.inf
        table[IDS.size :] = -np.inf
        if len(row) + 1 < min_len:
            table[EOS] = -np.inf
        row.append(int(table.argmax()))
    return row + [PAD] * (LENGTH - len(row))


def endings(words, room):
    """Every way to go on for at most `room` tokens: words, ended by eos or by the lack of room."""
    for n in range(room):
        for body in itertools.product(words, repeat=n):
            yield (*body, EOS)
    yield from itertools.product(words, repeat=room)


def test_greedy_equals_uncached_decoding():
    toy = Toy(16)
    tokens, scores = run(toy)
    for row, score, image in zip(tokens, scores, toy.image, strict=True):
        assert row.tolist() == plain_greedy(toy, image)
        np.testing.assert_allclose(score, log_prob(toy, row, image), rtol=1e-4)
    lengths = (tokens != PAD).sum(1)
    assert len(set(lengths)) > 2, "the rows should end at different steps"


def test_min_len_delays_eos():
    toy = Toy(16)
    tokens, _ = run(toy, min_len=6)
    assert tokens.tolist() == [plain_greedy(toy, image, min_len=6) for image in toy.image]
    assert ((tokens != PAD).sum(1) >= 6).all() and (run(toy)[0] != PAD).sum(1).min() < 6


@pytest.mark.parametrize("prefill", [1, 2, 3])
def test_prefixes_are_kept_and_unscored(prefill):
    toy = Toy(3)
    prefix = jnp.stack([starts(1, 5, 6)[0], starts(1, 7, 8, 9, 10)[0], starts(1, 11, 6, 5)[0]])
    given = [3, 5, 4]
    for beams in (1, 3):
        tokens, scores = run(toy, prefix, prefill=prefill, num_beams=beams, length_penalty=0.0)
        for row, start, n, image, score in zip(
            tokens, prefix, given, toy.image, scores, strict=True
        ):
            assert row[:n].tolist() == start[:n].tolist()
            np.testing.assert_allclose(score, log_prob(toy, row, image, n), rtol=1e-4)
            if beams == 1:
                assert row.tolist() == plain_greedy(toy, image, start[:n].tolist())


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_one_beam_is_greedy(alpha):
    toy = Toy(16)
    how = decoding.options(num_beams=1, length_penalty=alpha)
    tokens, scores = decoding.beam_search(toy.step, toy.cache(), starts(16), how, IDS, batch_axis=1)
    greedy, greedy_scores = run(toy)
    np.testing.assert_array_equal(tokens[:, 0], greedy)
    np.testing.assert_allclose(scores[:, 0], greedy_scores, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("early_stop", [True, False])
def test_enough_beams_find_the_best_of_all_sequences(alpha, early_stop):
    toy = Toy(4, sharpness=1.0)
    ids = decoding.Vocabulary(size=7)  # the words are unk, 5 and 6
    given = LENGTH - 4  # after a forced prefix there is room for 4 tokens
    prefix = starts(4, *[5, 6, 6, 5][: given - 1])
    kwargs = dict(num_beams=3**3 + 13 + 81, length_penalty=alpha, early_stop=early_stop)
    tokens, scores = run(toy, prefix, ids=ids, **kwargs)
    for row, score, image in zip(tokens, scores, toy.image, strict=True):
        start = prefix[0, :given].tolist()

        def rank(end, image=image, start=start):
            return log_prob(toy, [*start, *end], image, given) / len(end) ** alpha

        best = max(endings((UNK, 5, 6), LENGTH - given), key=rank)
        assert [t for t in row if t != PAD] == [*start, *best]
        np.testing.assert_allclose(score, log_prob(toy, row, image, given), rtol=1e-4)


def plain_beam_search(toy, image, beams, alpha, early_stop):
    """The definition in `beam_search`'s docstring, with lists."""
    live, kept = [(0.0, (BOS,))], []
    for t in range(1, LENGTH):
        grown = []
        for score, row in live:
            table = toy.full(np.array(row), image)[-1]
            words = [i for i in range(IDS.size) if i not in (PAD, BOS, CLS)]
            grown += [(score + table[i], (*row, i)) for i in words]
        grown.sort(key=lambda x: -x[0])
        for score, row in grown[:beams]:
            if row[-1] == EOS or t == LENGTH - 1:
                kept.append((score / t**alpha, row))
        kept = sorted(kept, key=lambda x: -x[0])[:beams]
        live = [x for x in grown if x[1][-1] != EOS][:beams]
        reachable = max(live[0][0] / n**alpha for n in range(t + 1, LENGTH + 1))
        if len(kept) == beams and (early_stop or kept[-1][0] >= reachable):
            break
    return kept[0][1] + (PAD,) * (LENGTH - len(kept[0][1]))


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("beams, alpha", [(2, 0.0), (3, 1.0), (4, -0.3), (5, 0.6)])
def test_beam_search_equals_its_definition(beams, alpha, early_stop):
    toy = Toy(12, seed=beams, sharpness=1.5)
    tokens, scores = run(toy, num_beams=beams, length_penalty=alpha, early_stop=early_stop)
    expected = [plain_beam_search(toy, x, beams, alpha, early_stop) for x in toy.image]
    np.testing.assert_array_equal(tokens, expected)
    for row, score, image in zip(tokens, scores, toy.image, strict=True):
        np.testing.assert_allclose(score, log_prob(toy, row, image), rtol=1e-4)


def test_late_stopping_loses_nothing_and_ranks_are_sorted():
    toy = Toy(12, sharpness=1.5)
    how = decoding.options(num_beams=4, length_penalty=0.8, early_stop=False)
    tokens, scores = beam_search(toy, how)
    ranks = scores / ((tokens != PAD).sum(-1) - 1) ** 0.8
    assert (np.diff(ranks, axis=1) <= 0).all()
    rows = {tuple(row) for row in tokens.reshape(-1, LENGTH).tolist()}
    assert len(rows) > 12 * 2, "a row's hypotheses differ"


def test_rows_do_not_depend_on_their_batch():
    toy = Toy(6)
    keys = jax.random.split(jax.random.key(3), 6)
    order = np.array([4, 2, 0, 5])
    for kwargs in ({}, {"num_beams": 3}, {"temperature": 1.0, "top_k": 4}):
        sampled = "temperature" in kwargs
        whole = run(toy, keys=keys if sampled else None, **kwargs)
        part = run(
            toy,
            starts(4),
            keys=keys[order] if sampled else None,
            cache=toy.cache(toy.image[order]),
            **kwargs,
        )
        np.testing.assert_array_equal(part[0], whole[0][order])
        np.testing.assert_allclose(part[1], whole[1][order], rtol=1e-5)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 4}, {"temperature": 3.0}])
def test_rows_are_well_formed(kwargs):
    toy = Toy(32, sharpness=0.5)
    tokens, scores = run(toy, keys=jax.random.split(jax.random.key(0), 32), **kwargs)
    for row in tokens.tolist():
        words = row[1 : row.index(PAD)] if PAD in row else row[1:]
        assert row[0] == BOS and set(row[1 + len(words) :]) <= {PAD}
        assert words[-1] == EOS or len(words) == LENGTH - 1
        assert not {PAD, BOS, CLS, EOS} & set(words[:-1]) and max(words) < IDS.size
    assert (scores < 0).all()


def first_tokens(toy, count, **kwargs):
    """The second token of `count` samples for the same image."""
    keys = jax.random.split(jax.random.key(7), count)
    cache = toy.cache(np.repeat(toy.image[:1], count, axis=0))
    return run(toy, starts(count), keys=keys, cache=cache, **kwargs)


def test_samples_follow_the_tempered_distribution_and_are_scored_untempered():
    toy = Toy(1, sharpness=1.0)
    logits = toy.full(np.array([BOS]), toy.image[0])[-1]
    logits[[PAD, BOS, CLS, 12, 13]] = -np.inf
    for temperature in (0.5, 1.0, 2.0):
        tokens, scores = first_tokens(toy, 4000, temperature=temperature)
        expected = np.exp(logits / temperature)
        expected /= expected.sum()
        seen = np.bincount(tokens[:, 1], minlength=VOCAB) / len(tokens)
        # Five standard deviations of a binomial share.
        assert (np.abs(seen - expected) <= 5 * np.sqrt(expected / len(tokens))).all()
    for row, score in zip(tokens[:20], scores, strict=False):
        np.testing.assert_allclose(score, log_prob(toy, row, toy.image[0]), rtol=1e-4)


@pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (0, 0.6), (0, 0.9), (4, 0.7), (1, 1.0)])
def test_truncation_leaves_exactly_its_support(top_k, top_p):
    toy = Toy(1, sharpness=1.0)
    probs = np.exp(toy.full(np.array([BOS]), toy.image[0])[-1])
    probs[[PAD, BOS, CLS, 12, 13]] = 0
    order = np.argsort(-probs)[: top_k or VOCAB]
    share = np.cumsum(probs[order]) / probs[order].sum()
    support = order[: 1 + np.searchsorted(share, top_p)]
    tokens, _ = first_tokens(toy, 4000, temperature=1.0, top_k=top_k, top_p=top_p)
    seen = np.bincount(tokens[:, 1], minlength=VOCAB) / len(tokens)
    expected = np.where(np.isin(np.arange(VOCAB), support), probs, 0)
    expected /= expected.sum()
    assert set(np.flatnonzero(seen)) == set(np.flatnonzero(expected > 1e-6))
    assert (np.abs(seen - expected) <= 5 * np.sqrt(expected / len(tokens))).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_guidance_combines_seeing_and_blind_logits(beams):
    toy = Toy(5)
    both = np.stack([toy.image, np.zeros_like(toy.image)], axis=1).reshape(10, WIDTH)
    step = decoding.guide(toy.step, 2.5)
    kwargs = dict(step=step, cache=toy.cache(both), num_beams=beams, length_penalty=0.0)
    tokens, scores = run(toy, starts(5), **kwargs)

    def logits(row, image):
        blind = toy.full(row, 0 * image)
        mixed = blind + 2.5 * (toy.full(row, image) - blind)
        return mixed - np.log(np.exp(mixed).sum(-1, keepdims=True))

    guided = Toy(5)
    guided.full = logits
    for row, score, image in zip(tokens, scores, toy.image, strict=True):
        if beams == 1:
            assert row.tolist() == plain_greedy(toy, image, logits=logits)
        else:
            assert row.tolist() == list(plain_beam_search(guided, image, 3, 0.0, True))
        np.testing.assert_allclose(score, log_prob(guided, row, image), rtol=1e-3)


def test_numbers_do_not_recompile():
    toy = Toy(2)
    traces = []

    @jax.jit
    def go(how, keys):
        traces.append(how)
        return decoding.decode(toy.step, toy.cache(), starts(2), how, IDS, keys=keys, batch_axis=1)

    keys = jax.random.split(jax.random.key(0), 2)
    for temperature, top_p, min_len in ((0.5, 0.9, 0), (1.0, 0.8, 3), (2.0, 0.5, 4)):
        go(
            decoding.options(temperature=temperature, top_p=top_p, min_len=min_len),
            keys,
        )
    assert len(traces) == 1


def test_what_the_step_does_not_write_is_not_moved():
    toy, gathered = Toy(2), []
    cache = toy.cache() | {"constant": jnp.zeros((1, 2, 5))}
    how = decoding.options(num_beams=3)

    def search(cache):
        return decoding.beam_search(toy.step, cache, starts(2), how, IDS, batch_axis=1)

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "gather":
                gathered.append(math.prod(equation.outvars[0].aval.shape))
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    walk(value.jaxpr)

    walk(jax.make_jaxpr(search)(cache).jaxpr)
    assert gathered.count(2 * 3 * 5) == 1, "once, when a row becomes three beams"
    assert gathered.count(2 * 3 * LENGTH * WIDTH) == 4, "keys and values move at every step"


def test_a_cache_without_the_rows_is_an_error():
    toy = Toy(2)
    with pytest.raises(ValueError, match="axis 1 is no multiple of 2 rows"):
        run(toy, cache=toy.cache() | {"odd": jnp.zeros((1, 3, 4))}, num_beams=2)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_beams": 0}, "below 1"),
        ({"num_beams": 2, "temperature": 1.0}, "choose"),
        ({"top_k": 3}, "temperature above 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "0 < top_p"),
        ({"temperature": -1.0}, "temperature >= 0"),
    ],
)
def test_options_that_make_no_sense(kwargs, message):
    with pytest.raises(UserError, match=message):
        decoding.options(**kwargs)
