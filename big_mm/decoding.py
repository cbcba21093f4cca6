"""Caption generation: greedy, sampling and beam search, jitted, over a step with a KV cache.

Everything here is a pure function of a `step`: `step(tokens [N,T], cache) -> (logits [N,T,V],
cache)` appends T tokens to the cache and gives the logits of the token after each. What is true of
all of them:

  * A row is bos, words, eos, then pad, as wide as the given prefix array: `length`. A row that is
    full without eos ends there, without eos.
  * Reserved ids (pad, bos, cls) and ids beyond the vocabulary are never generated, nor is eos
    before `min_len`.
  * Scores are the model's log-probabilities of the generated tokens (eos included, the given prefix
    not), at temperature 1 and before anything is forbidden: the negative caption loss of the row.
  * A row's result does not depend on the other rows of its batch.
  * Each loop ends as soon as every row has.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from big_mm.spec import UserError

Cache = Any
Step = Callable[[Int[Array, "rows steps"], Cache], tuple[Float[Array, "rows steps vocab"], Cache]]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The special ids of a tokenizer.

    Attributes:
      size: its number of ids, which the logits may exceed.
      free_id: stands in a prefix where the caption is still to be written.
      never: ids that are not generated.
    """

    size: int
    pad_id: int = 0
    eos_id: int = 2
    free_id: int = 0
    never: tuple[int, ...] = (0, 1, 4)

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """That of a tokenizer (see `data.vocabulary.Tokenizer`).

        Raises:
          UserError: it has no bos or no eos.
        """
        if tokenizer.bos_id < 0 or tokenizer.eos_id < 0:
            raise UserError(
                "captions begin with bos and end in eos, and this tokenizer does not have both: "
                "give it a bos_id and an eos_id"
            )
        never = tokenizer.reserved - {tokenizer.eos_id, tokenizer.unk_id}
        return cls(
            tokenizer.vocab_size,
            tokenizer.pad_id,
            tokenizer.eos_id,
            tokenizer.free_id,
            tuple(sorted(never)),
        )

    def allowed(self, vocab: int) -> Bool[Array, " vocab"]:
        """Which ids a caption may hold."""
        ids = jnp.arange(vocab)
        return (ids < self.size) & ~jnp.isin(ids, jnp.array(self.never, ids.dtype))

    def free(self, prefix: Int[Array, "..."]) -> Bool[Array, "..."]:
        """Which places of a row, its first excepted, are still to be written."""
        return prefix == self.free_id

    def filled(self, tokens: Int[Array, "..."]) -> Int[Array, "..."]:
        """Finished rows: pad in the places that stayed free."""
        return tokens if self.free_id == self.pad_id else jnp.where(tokens < 0, self.pad_id, tokens)


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to decode; make it with `options`. The static fields choose the program that is compiled,
    the others are its inputs, so that changing a temperature does not recompile.
    """

    num_beams: int = _static(1)
    early_stop: bool = _static(True)
    sample: bool = _static(False)
    truncate: bool = _static(False)
    guided: bool = _static(False)
    min_len: Any = 0
    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    guidance: Any = 1.0
    length_penalty: Any = 1.0


def options(
    *,
    min_len: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stop: bool = True,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
) -> Decoding:
    """Checked decoding options.

    Args:
      min_len: no eos before the row, bos and eos included, is this long.
      num_beams: above 1, beam search with this many hypotheses; see `beam_search`.
      length_penalty: alpha; beams are ranked by log-probability / generated_tokens ** alpha. 0
        ranks by probability alone, 1 by the mean log-probability of a token.
      early_stop: beams only; see `beam_search`.
      temperature: 0 takes the most probable token; above 0 samples from softmax(logits / it).
      top_k: sampling only; the k most probable tokens are left (0: all).
      top_p: sampling only; of those, the fewest whose probabilities sum to top_p (1: all).
      guidance: logits = blind + guidance * (seeing - blind), where the blind ones do not see the
        image. 1 is the plain model and costs nothing; any other value doubles the rows.

    Raises:
      UserError: a value out of its range, or options that exclude each other.
    """
    if num_beams < 1:
        raise UserError(f"num_beams={num_beams} is below 1")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(
            f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, not "
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}"
        )
    truncate = top_k > 0 or top_p < 1
    if temperature > 0 and num_beams > 1:
        raise UserError(
            f"temperature={temperature} samples, num_beams={num_beams} searches: choose"
        )
    if temperature == 0 and truncate:
        raise UserError(f"top_k={top_k}, top_p={top_p} need a temperature above 0")
    return Decoding(
        num_beams=num_beams,
        early_stop=early_stop,
        sample=temperature > 0,
        truncate=truncate,
        guided=guidance != 1.0,
        min_len=min_len,
        temperature=temperature or 1.0,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        length_penalty=length_penalty,
    )


def decode(
    step: Step,
    cache: Cache,
    prefix: Int[Array, "rows length"],
    how: Decoding,
    vocabulary: Vocabulary,
    *,
    keys: Key[Array, " rows"] | None = None,
    prefill: int = 1,
    batch_axis: int = 0,
) -> tuple[Int[Array, "rows length"], Float[Array, " rows"]]:
    """One token row and its score for each row of `prefix`, by the method that `how` says.

    Args:
      step: the model; with beams it is called with rows * num_beams rows after the prefix.
      cache: the empty cache, as the step wants it in the first call.
      prefix: what each row begins with: bos, any forced words, then `free_id` (pad, or -1 where
        pad is a word) up to the greatest length.
      keys: one random key a row, for sampling.
      prefill: the first columns of `prefix` that no row pads; they are fed in one step.
      batch_axis: the axis of every cache leaf that holds the rows. A leaf of fewer dimensions is
        taken as shared by all rows.
    """
    if how.num_beams > 1:
        tokens, scores = beam_search(
            step, cache, prefix, how, vocabulary, prefill=prefill, batch_axis=batch_axis
        )
        return tokens[:, 0], scores[:, 0]
    return _extend(step, cache, prefix, how, vocabulary, keys, prefill)


def guide(step: Step, guidance: Float[Array, ""] | float) -> Step:
    """Classifier-free guidance of a step over twice the rows: row 2i sees the image, 2i+1 does not.

    logits = blind + guidance * (seeing - blind) (Ho & Salimans, arXiv:2207.12598, in its
    form of one scale).
    """

    def guided(tokens: Int[Array, "rows steps"], cache: Cache) -> tuple[Array, Cache]:
        logits, cache = step(jnp.repeat(tokens, 2, axis=0), cache)
        seeing, blind = logits[0::2], logits[1::2]
        return blind + guidance * (seeing - blind), cache

    return guided


def beam_search(
    step: Step,
    cache: Cache,
    prefix: Int[Array, "rows length"],
    how: Decoding,
    vocabulary: Vocabulary,
    *,
    prefill: int = 1,
    batch_axis: int = 0,
) -> tuple[Int[Array, "rows beams length"], Float[Array, "rows beams"]]:
    """The `num_beams` best hypotheses of each row, best first, and their log-probabilities.

    Each step ranks every one-token continuation of the live hypotheses by log-probability. Those
    among the first `num_beams` that end (in eos, or because the row is full) are finished: they
    join the kept ones, of which the best `num_beams` stay, by log-probability / generated_tokens **
    alpha (which counts eos and not the prefix). The best `num_beams` that do not end live on.

    A row stops when `num_beams` hypotheses are finished; one beam is then greedy decoding. Without
    `early_stop` it stops only when no descendant of a live hypothesis could still enter the kept
    ones, so that stopping never changes the result.

    Returns:
      Tokens and log-probabilities, sorted by the penalised score; a place that no hypothesis took
      has log-probability -inf.
    """
    rows, length = prefix.shape
    beams = how.num_beams
    logits, cache = step(prefix[:, :prefill], cache)
    # Until the first choice all beams of a row are the same, so only the first of them counts.
    logits = jnp.repeat(logits[:, -1:], beams, axis=1)
    parents = jnp.zeros((rows, beams), jnp.int32)
    state = _Beams(
        t=jnp.int32(prefill),
        live=jnp.repeat(prefix[:, None], beams, axis=1),
        live_scores=jnp.full((rows, beams), -jnp.inf).at[:, 0].set(0.0),
        kept=jnp.full((rows, beams, length), vocabulary.pad_id, prefix.dtype),
        kept_scores=jnp.full((rows, beams), -jnp.inf),
        kept_ranks=jnp.full((rows, beams), -jnp.inf),
        done=jnp.zeros(rows, bool),
    )
    state, parents = _advance(state, logits, prefix, how, vocabulary)
    first = jnp.zeros_like(parents)
    cache = jax.tree.map(lambda leaf: _gather(leaf, first, rows, batch_axis), cache)

    def unfinished(carry: tuple[_Beams, Cache]) -> Array:
        return (carry[0].t < length) & ~carry[0].done.all()

    def body(carry: tuple[_Beams, Cache]) -> tuple[_Beams, Cache]:
        state, cache = carry
        last = jax.lax.dynamic_index_in_dim(state.live, state.t - 1, axis=2)
        logits, new = step(last.reshape(rows * beams, 1), cache)
        logits = logits.reshape(rows, beams, -1)
        state, parents = _advance(state, logits, prefix, how, vocabulary)
        move = functools.partial(_gather, parents=parents, rows=rows * beams, axis=batch_axis)
        # What the step does not write (keys and values of the image, the largest part) is the same
        # for all beams of a row, so it need not move.
        return state, jax.tree.map(lambda old, new: old if new is old else move(new), cache, new)

    state, _ = jax.lax.while_loop(unfinished, body, (state, cache))
    return vocabulary.filled(state.kept), state.kept_scores


class _Beams(NamedTuple):
    t: Array  # the position to fill next
    live: Array  # [rows, beams, length]
    live_scores: Array  # [rows, beams] log-probabilities, best first
    kept: Array  # [rows, beams, length] finished hypotheses
    kept_scores: Array  # [rows, beams] their log-probabilities
    kept_ranks: Array  # [rows, beams] the same, length-penalised; best first
    done: Array  # [rows]


def _advance(
    state: _Beams, logits: Array, prefix: Array, how: Decoding, vocabulary: Vocabulary
) -> tuple[_Beams, Array]:
    """One step of the search: the next state, and the beam that each new live one continues."""
    beams, length = state.live.shape[1:]
    t, vocab = state.t, logits.shape[-1]
    scores = state.live_scores[..., None] + _candidates(logits, prefix[:, None], t, how, vocabulary)
    # Twice the beams: at most one continuation of each beam is eos, so enough live ones are left.
    scores, flat = jax.lax.top_k(scores.reshape(-1, beams * vocab), 2 * beams)
    parents, chosen = flat // vocab, (flat % vocab).astype(state.live.dtype)
    grown = jnp.take_along_axis(state.live, parents[..., None], axis=1)
    grown = jnp.where(jnp.arange(length) == t, chosen[..., None], grown)

    is_eos = chosen == vocabulary.eos_id
    given = 1 + (~vocabulary.free(prefix[:, 1:])).sum(axis=1, keepdims=True)

    def penalised(score: Array, end: Array | int) -> Array:
        """The rank of a hypothesis of `end` tokens."""
        return score / jnp.maximum(end - given, 1).astype(jnp.float32) ** how.length_penalty

    ends = (is_eos | (t == length - 1)) & (jnp.arange(2 * beams) < beams)
    ends &= ~state.done[:, None]
    ranks = jnp.where(ends, penalised(scores, t + 1), -jnp.inf)
    kept_ranks, best = jax.lax.top_k(jnp.concatenate([state.kept_ranks, ranks], axis=1), beams)
    kept_scores = jnp.concatenate([state.kept_scores, scores], axis=1)
    kept_scores = jnp.take_along_axis(kept_scores, best, axis=1)
    kept = jnp.take_along_axis(
        jnp.concatenate([state.kept, grown], axis=1), best[..., None], axis=1
    )

    live_scores, best = jax.lax.top_k(jnp.where(is_eos, -jnp.inf, scores), beams)
    if how.early_stop:
        settled = jnp.isfinite(kept_ranks[:, -1])
    else:
        # A score only falls as tokens are added; its penalised value is best at one of the ends.
        top = live_scores[:, :1]
        reachable = jnp.maximum(penalised(top, t + 2), penalised(top, length))
        settled = kept_ranks[:, -1] >= reachable[:, 0]
    return _Beams(
        t=t + 1,
        live=jnp.take_along_axis(grown, best[..., None], axis=1),
        live_scores=live_scores,
        kept=kept,
        kept_scores=jnp.where(jnp.isfinite(kept_ranks), kept_scores, -jnp.inf),
        kept_ranks=kept_ranks,
        done=state.done | settled | ~jnp.isfinite(live_scores[:, 0]),
    ), jnp.take_along_axis(parents, best, axis=1)


def _gather(leaf: Array, parents: Array, rows: int, axis: int) -> Array:
    """The cache leaf whose row [i, k] is row [i, parents[i, k]] of a leaf of `rows` rows.

    It may hold several cache rows for each row (guidance holds two); they move together.
    """
    if leaf.ndim <= axis:
        return leaf
    groups = parents.shape[0]
    before, here, after = leaf.shape[:axis], leaf.shape[axis], leaf.shape[axis + 1 :]
    if here % rows:
        raise ValueError(f"cache leaf {leaf.shape}: axis {axis} is no multiple of {rows} rows")
    leaf = leaf.reshape(*before, groups, rows // groups, here // rows, *after)
    # Mapped over the groups, so that a sharded batch gathers within each device.
    take = jax.vmap(functools.partial(jnp.take, axis=axis), (axis, 0), axis)
    return take(leaf, parents).reshape(*before, -1, *after)


def _extend(
    step: Step,
    cache: Cache,
    prefix: Array,
    how: Decoding,
    vocabulary: Vocabulary,
    keys: Array | None,
    prefill: int,
) -> tuple[Array, Array]:
    """Greedy decoding and sampling."""
    rows, length = prefix.shape

    def choose(logits: Array, t: Array, tokens: Array, scores: Array, done: Array) -> tuple:
        candidates = _candidates(logits, prefix, t, how, vocabulary)
        if how.sample:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            chosen = _sample(step_keys, candidates / how.temperature, how)
        else:
            chosen = candidates.argmax(axis=-1)
        gain = jnp.take_along_axis(candidates, chosen[:, None], axis=1)[:, 0]
        chosen = jnp.where(done, vocabulary.pad_id, chosen).astype(tokens.dtype)
        tokens = jax.lax.dynamic_update_index_in_dim(tokens, chosen, t, axis=1)
        return (
            t + 1,
            tokens,
            scores + jnp.where(done, 0.0, gain),
            done | (chosen == vocabulary.eos_id),
        )

    def unfinished(carry: tuple) -> Array:
        (t, _, _, done), _ = carry
        return (t < length) & ~done.all()

    def body(carry: tuple) -> tuple:
        (t, tokens, scores, done), cache = carry
        last = jax.lax.dynamic_index_in_dim(tokens, t - 1, axis=1)
        logits, cache = step(last, cache)
        return choose(logits[:, -1], t, tokens, scores, done), cache

    logits, cache = step(prefix[:, :prefill], cache)
    start = choose(
        logits[:, -1], jnp.int32(prefill), prefix, jnp.zeros(rows), jnp.zeros(rows, bool)
    )
    (_, tokens, scores, _), _ = jax.lax.while_loop(unfinished, body, (start, cache))
    return vocabulary.filled(tokens), scores


def _candidates(
    logits: Array, prefix: Array, t: Array, how: Decoding, vocabulary: Vocabulary
) -> Array:
    """Log-probabilities of the token at position t; -inf where forbidden, 0 where it is given."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    ids = jnp.arange(logits.shape[-1])
    early = (ids == vocabulary.eos_id) & (t + 1 < how.min_len)
    log_probs = jnp.where(vocabulary.allowed(len(ids)) & ~early, log_probs, -jnp.inf)
    given = jax.lax.dynamic_index_in_dim(prefix, t, axis=-1)
    one_hot = jnp.where(ids == given, 0.0, -jnp.inf)
    return jnp.where(vocabulary.free(given), log_probs, one_hot)


def _sample(keys: Array, logits: Array, how: Decoding) -> Array:
    """One id a row from softmax(logits), cut to top_k and then to top_p."""
    draw = jax.vmap(jax.random.categorical)
    if not how.truncate:
        return draw(keys, logits)
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    cut = (how.top_k > 0) & (jnp.arange(logits.shape[-1]) >= how.top_k)
    ranked = jnp.where(cut, -jnp.inf, ranked)
    probs = jax.nn.softmax(ranked, axis=-1)
    ranked = jnp.where(jnp.cumsum(probs, axis=-1) - probs < how.top_p, ranked, -jnp.inf)
    return jnp.take_along_axis(order, draw(keys, ranked)[:, None], axis=-1)[:, 0]
