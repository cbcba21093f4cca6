"""Captions sampled inside the step, and what they gain over a baseline: policy gradients.

REINFORCE: the gradient of the expected reward of a caption w is that of
    (reward(w) - baseline) * log p(w),  w sampled from p,
with the first factor held constant. Here the captions are sampled, judged and given an advantage;
the loss is `losses.policy_gradient.Reinforce`.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from big_mm import decoding, programs
from big_mm.data.contract import Contract
from big_mm.objectives.judge import Judged
from big_mm.spec import UserError, choose
from big_mm.types import Aux, Batch, Mean, Outputs

BASELINES = ("greedy", "mean")


@runtime_checkable
class Reward(Protocol):
    """How good captions are, one number each; no gradient passes.

    `couples`: a caption's reward depends on the other rows of the batch.
    """

    @property
    def couples(self) -> bool: ...

    def bind(self, contract: Contract) -> "Reward":
        """The reward of captions with this contract."""

    def __call__(self, written: Batch, batch: Batch, judged: Outputs) -> Float[Array, " batch"]:
        """Rewards of `written` (`tokens`, `token_mask`) for the batch's images, whose own captions
        are `batch["tokens"]`. `judged`: what the judge says of images and written captions.
        """


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PolicyGradient(Judged):
    """`Weighted`, with a caption of each image sampled from the model as it is.

    The losses also find `sample_log_probs` [B,L], of each token given those before it among the ids
    that may be written; `sample_mask` [B,L], true from the first word to eos; `advantage` and
    `reward` [B]. What no loss reads is not computed.

    Attributes:
      rewards: by name; `reward_weights` by the same names, 1 where not named.
      judge: for rewards that ask another model; they read its outputs for images and captions.
      baseline: "greedy", the reward of the caption that the model would write (self-critical
        sequence training, arXiv:1612.00563), or "mean", that of all batches so far, which is kept
        in `extra`.
    """

    rewards: dict[str, Reward]
    reward_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    baseline: str = "greedy"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("baseline", self.baseline, BASELINES)
        if not self.rewards:
            raise UserError("a policy gradient needs at least one of `rewards`")
        if unknown := sorted(set(self.reward_weights) - set(self.rewards)):
            raise UserError(f"weights for {unknown}, but the rewards are {sorted(self.rewards)}")

    def bind(self, contract: Contract) -> "PolicyGradient":
        bound = super().bind(contract)
        bound._contract.require_tokenizer()
        rewards = {name: reward.bind(bound._contract) for name, reward in self.rewards.items()}
        return dataclasses.replace(bound, rewards=rewards)

    def init_extra(self, rng: Array, params: Any) -> dict[str, Any]:
        """As of `Judged`; `baseline`: the sum of rewards so far and their number."""
        extra = super().init_extra(rng, params)
        if self.baseline == "mean":
            extra["baseline"] = {"total": jnp.zeros(()), "count": jnp.zeros(())}
        return extra

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        outputs = super().forward(params, extra, batch, rng)
        frozen = jax.lax.stop_gradient(params)
        sampled = self.write(frozen, batch["image"], jax.random.fold_in(rng, 0))
        reward, parts = self.reward(extra, batch, sampled)
        if self.baseline == "greedy":
            baseline, _ = self.reward(extra, batch, self.write(frozen, batch["image"]))
        else:
            before = extra["baseline"]
            seen = before["count"] > 0
            # The first batch, which has none before it, is its own baseline.
            baseline = jnp.where(
                seen, Mean(**before).compute(), self._mean(reward, batch).compute()
            )
        log_probs, mask = self.log_probs(params, batch["image"], sampled, rng)
        sample = {"sample_log_probs": log_probs, "sample_mask": mask, "reward": reward}
        sample |= {f"reward_{name}": value for name, value in parts.items()}
        return outputs | sample | {"advantage": jax.lax.stop_gradient(reward - baseline)}

    def write(self, params: Any, image: Array, rng: Array | None = None) -> Batch:
        """A caption of each image: `tokens` and `token_mask`, bos to eos; sampled with `rng`."""
        tokenizer, length = self._contract.require_tokenizer(), self._contract.max_len
        vocabulary = decoding.Vocabulary.of(tokenizer)
        rows = jnp.arange(len(image), dtype=jnp.int32)
        prefix = jnp.full((len(image), length), tokenizer.free_id, jnp.int32)
        prefix = prefix.at[:, 0].set(tokenizer.bos_id)
        how = decoding.options(temperature=0.0 if rng is None else 1.0)
        seed = 0 if rng is None else jax.random.bits(rng, dtype=jnp.uint32)
        tokens, _ = programs.generate(
            self.model, params, image, prefix, rows, seed, how, vocabulary=vocabulary
        )
        return {"tokens": tokens, "token_mask": _until_eos(tokens, vocabulary.eos_id)}

    def reward(
        self, extra: Any, batch: Batch, written: Batch
    ) -> tuple[Float[Array, " batch"], dict[str, Float[Array, " batch"]]]:
        """The weighted sum of the rewards, and each of them."""
        judged = {}
        if self.judge is not None:
            judged = self.judge(extra["judge"], {"image": batch["image"]} | written)
        parts = {name: reward(written, batch, judged) for name, reward in self.rewards.items()}
        parts = jax.lax.stop_gradient(parts)
        weighted = [self.reward_weights.get(name, 1.0) * value for name, value in parts.items()]
        return sum(weighted, start=jnp.zeros(len(batch["image"]))), parts

    def log_probs(
        self, params: Any, image: Array, written: Batch, rng: Array
    ) -> tuple[Float[Array, "batch length"], Bool[Array, "batch length"]]:
        """log p(token | those before) at the token's place, and which tokens were chosen."""
        batch = {"image": image} | written
        outputs = self.model.apply({"params": params}, batch, train=True, rngs={"dropout": rng})
        logits = outputs["caption_logits"][:, :-1].astype(jnp.float32)
        vocabulary = decoding.Vocabulary.of(self._contract.require_tokenizer())
        # Sampling never takes the other ids, so that they are no part of the policy.
        logits = jnp.where(vocabulary.allowed(logits.shape[-1]), logits, -jnp.inf)
        target, mask = written["tokens"][:, 1:], written["token_mask"][:, 1:]
        target = jnp.where(mask, target, vocabulary.eos_id)
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
        found = jnp.where(mask, found, 0.0)
        return jnp.pad(found, ((0, 0), (1, 0))), jnp.pad(mask, ((0, 0), (1, 0)))

    def carry(self, outputs: Outputs, batch: Batch) -> Mean:
        return self._mean(outputs["reward"], batch)

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> Any:
        if self.baseline != "mean":
            return extra
        before = extra["baseline"]
        total, count = before["total"] + aux.carry.total, before["count"] + aux.carry.count
        return extra | {"baseline": {"total": total, "count": count}}

    def check_accumulation(self, accumulate: int) -> None:
        super().check_accumulation(accumulate)
        coupled = sorted(name for name, reward in self.rewards.items() if reward.couples)
        if accumulate > 1 and coupled:
            raise UserError(
                f"accumulate={accumulate}: the rewards {coupled} compare the rows of a batch, and "
                "microbatches would show them a part of it: set accumulate=1"
            )

    def _mean(self, reward: Float[Array, " batch"], batch: Batch) -> Mean:
        return Mean.of(reward, batch.get("mask"))


def _until_eos(tokens: Int[Array, "batch length"], eos_id: int) -> Bool[Array, "batch length"]:
    """True up to the first eos, which counts; everywhere in a row without one."""
    ended = jnp.cumsum(tokens[:, 1:] == eos_id, axis=1) > 0
    # A place is beyond the end if an eos stands before it; bos may be the same id.
    before = jnp.pad(ended[:, :-1], ((0, 0), (2, 0))) if tokens.shape[1] > 1 else ended
    return ~before
