"""The queue of momentum contrast, hard negatives for matching, and momentum distillation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from big_mm.losses.masked import mask_tokens
from big_mm.losses.matching import hard_negatives
from big_mm.losses.momentum import SIDES, scores
from big_mm.objectives import queue
from big_mm.objectives.teacher import Teacher
from big_mm.spec import UserError, choose
from big_mm.types import Aux, Batch, Outputs

NEGATIVES = ("hard", "random")


@dataclasses.dataclass(frozen=True, eq=False)
class AlignBeforeFuse(Teacher):
    """The outputs that ALBEF's three losses read; the queue is of the teacher's embeddings.

    The paper's momentum is 0.995.

    Attributes:
      queue_size: rows, at least a batch of them.
      alpha: the share of the teacher in the targets, from step `ramp_steps` on; it grows from 0.
      mask_share: of the tokens, each masked with this probability.
      mask_id: of the mask token; no caption has it. 4 is our tokenizers' <cls>, free where the text
        is pooled at its first token.
      negatives: "hard" ones for matching, by contrastive similarity, or "random" ones.
      positives: the batch's key of an id; equal ids are no negatives of one another.
    """

    queue_size: int = 65536
    alpha: float = 0.4
    ramp_steps: int = 0
    mask_share: float = 0.15
    mask_id: int = 4
    negatives: str = "hard"
    positives: str = "text_id"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("negatives", self.negatives, NEGATIVES)
        for name in ("alpha", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be from 0 to 1")

    def init_extra(self, rng: Array, params: Any) -> dict[str, Any]:
        embedding = jax.ShapeDtypeStruct((self.model.embed_dim,), jnp.float32)
        rows = {"image": embedding, "text": embedding, "id": jax.ShapeDtypeStruct((), jnp.int32)}
        return super().init_extra(rng, params) | {"queue": queue.init(self.queue_size, rows)}

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        """The model's outputs; the teacher's embeddings, `candidate_*` and `positive`, `alpha`;
        `match_logits` of the pair, with another image and with another text; `word_logits` of the
        masked caption, and the teacher's.
        """
        rngs = jax.random.split(rng, 6)
        tokens, mask = batch["tokens"], batch["token_mask"]
        options = {"share": self.mask_share, "mask_id": self.mask_id}
        vocab_size = self.model.text.vocab_size
        shown, word_mask = mask_tokens(rngs[0], tokens, mask, vocab_size=vocab_size, **options)
        out = self._embed(params, batch, shown, rngs[1])
        taught = jax.lax.stop_gradient(self._embed(extra["teacher"], batch, shown))
        out |= {f"teacher_{side}_embedding": taught[f"{side}_embedding"] for side in SIDES}
        out |= self._candidates(extra, out, batch) | {"alpha": self.alpha_at(extra["step"])}
        (i, has_image), (t, has_text) = self._negatives(out, rngs[2:4])
        image, text, masked = (out[f"{name}_tokens"] for name in ("image", "text", "masked"))
        # One pass for all: the pair, another image, another text, and the masked text.
        images, texts = (image, image[i], image, image), (text, text, text[t], masked)
        four = map(jnp.concatenate, (images, texts, (mask, mask, mask[t], mask)))
        fused = self._apply(params, *four, method="match", rng=rngs[4])
        out["match_logits"] = fused["match_logit"].reshape(4, -1)[:3].T
        out["match_valid"] = jnp.stack([jnp.ones_like(has_text), has_image, has_text], axis=1)
        words = fused["fused_tokens"][-len(tokens) :]
        out |= self._apply(params, words, method="words") | {"word_mask": word_mask}
        pair = taught["image_tokens"], taught["masked_tokens"], mask
        words = self._apply(extra["teacher"], *pair, method="match")["fused_tokens"]
        words = self._apply(extra["teacher"], words, method="words")["word_logits"]
        return out | {"teacher_word_logits": jax.lax.stop_gradient(words)}

    def _embed(self, params: Any, batch: Batch, shown: Array, rng: Array | None = None) -> Outputs:
        """The towers' outputs, and `masked_tokens` of the text as it is `shown`."""
        rngs = (None, None) if rng is None else jax.random.split(rng)
        image = {"image": batch["image"]}
        out = self._apply(params, image, method="__call__", rng=rngs[0])
        both = jnp.concatenate([batch["tokens"], shown]), jnp.tile(batch["token_mask"], (2, 1))
        text = self._apply(params, *both, method="encode_text", rng=rngs[1])
        read, masked = jnp.split(text["text_tokens"], 2)
        embedding = text["text_embedding"][: len(read)]
        return out | {"text_embedding": embedding, "text_tokens": read, "masked_tokens": masked}

    def _apply(self, params: Any, *args: Any, method: str, rng: Array | None = None) -> Outputs:
        given = {} if rng is None else {"train": True, "rngs": {"dropout": rng}}
        return self.model.apply({"params": params}, *args, method=method, **given)

    def alpha_at(self, step: Array) -> Array:
        """The teacher's share at a step."""
        return self.alpha * jnp.minimum(1.0, step / self.ramp_steps if self.ramp_steps else 1.0)

    def _candidates(self, extra: Any, out: Outputs, batch: Batch) -> Outputs:
        """The teacher's embeddings of the batch, then of the queue, and which are whose."""
        old = extra["queue"]
        if self.positives not in batch:
            raise UserError(f"positives={self.positives!r} is no key of {sorted(batch)}")
        ids = jnp.concatenate([batch[self.positives], old["id"]])
        valid = jnp.concatenate([_valid(batch, len(out["image_embedding"])), old["valid"]])
        rows = {side: (out[f"teacher_{side}_embedding"], old[side]) for side in SIDES}
        found = {f"candidate_{side}": jnp.concatenate(pair) for side, pair in rows.items()}
        positive = (batch[self.positives][:, None] == ids) & valid
        return found | {"candidate_valid": valid, "positive": positive}

    def _negatives(self, out: Outputs, rngs: Array) -> list[tuple[Array, Array]]:
        """An image for each text and a text for each image, from the batch."""
        rows = len(out["positive"])
        allowed = ~out["positive"][:, :rows] & out["candidate_valid"][:rows]
        found = []
        for rng, (there, here) in zip(rngs, (SIDES, SIDES[::-1]), strict=True):
            logits = jax.lax.stop_gradient(scores(out, here, there))[:, :rows]
            even = self.negatives == "random"
            found.append(hard_negatives(rng, 0 * logits if even else logits, allowed))
        return found

    def carry(self, outputs: Outputs, batch: Batch) -> dict[str, Array]:
        """What goes into the queue."""
        rows = {side: outputs[f"teacher_{side}_embedding"] for side in SIDES}
        valid = _valid(batch, len(rows["image"]))
        return rows | {"id": batch[self.positives], "valid": valid}

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> dict[str, Any]:
        rows = {name: aux.carry[name] for name in (*SIDES, "id")}
        new = {"queue": queue.push(extra["queue"], rows, aux.carry["valid"])}
        return super().update_extra(extra, params, aux) | new

    def check_accumulation(self, accumulate: int) -> None:
        """Refuses microbatches: negatives for matching come from the whole batch."""
        super().check_accumulation(accumulate)
        if accumulate > 1:
            raise UserError(
                f"accumulate={accumulate}: AlignBeforeFuse takes hard negatives from the whole "
                "batch, of which a microbatch is a part: set accumulate=1"
            )


def _valid(batch: Batch, rows: int) -> Bool[Array, " batch"]:
    return batch["mask"] != 0 if "mask" in batch else jnp.ones(rows, bool)
