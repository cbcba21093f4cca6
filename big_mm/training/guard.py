"""The guard against divergence: which updates are refused, and what becomes of the run then.

An update is judged on the device, as part of the step, and a refused one leaves everything but the
counters as it was, bit for bit. The host hears of it a step later, with the other metrics, so that
watching costs no synchronisation. What follows depends on the state alone, never on what the host
remembers: a run that is killed after a decision comes to the same one again.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Float, Int

from big_mm.spec import UserError

POLICIES = ("skip", "stop", "rollback")
# Keys of a refused batch that are stored, and that a message shows.
MAX_KEYS, _NAMED = 1024, 32
_WATCHED = ("loss", "grad_norm", "update_norm")


@dataclasses.dataclass(frozen=True)
class Guard:
    """An update is refused if its loss, its gradient or the update itself is not finite, or if its
    gradient is too large. Each refusal is a warning and a line of incidents.jsonl, with the keys of
    the batch's records.

    Attributes:
      policy: "skip" goes on with the next batch. "stop" ends the run. "rollback" goes back to the
        last checkpoint of the schedule and leaves out the batches from there to the refused one.
      max_grad_norm: a larger gradient norm is refused; None: any size is accepted.
      spike: so is one that is this many times the running average of the accepted ones.
      warmup: accepted updates before spikes are looked for.
      decay: of the running average.
      max_skipped: this many refused updates in a row stop the run, whatever the policy.
      max_rollbacks: as many are made; the next refused update stops the run.
    """

    policy: str = "skip"
    max_grad_norm: float | None = None
    spike: float | None = None
    warmup: int = 100
    decay: float = 0.99
    max_skipped: int = 20
    max_rollbacks: int = 10

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"guard.policy={self.policy!r} is none of {', '.join(POLICIES)}")
        if self.spike is not None and self.spike <= 1:
            raise UserError(f"guard.spike={self.spike} must be above 1: a factor over the average")
        if not 0.0 <= self.decay < 1.0:
            raise UserError(f"guard.decay={self.decay} must be at least 0 and below 1")
        if self.max_skipped < 1 or self.max_rollbacks < 0 or self.warmup < 0:
            raise UserError(f"{self} needs max_skipped >= 1, max_rollbacks >= 0 and warmup >= 0")

    def accepts(
        self, state: dict[str, Any], metrics: dict[str, Any], accepted: Int[Array, ""]
    ) -> Bool[Array, ""]:
        """Whether the update may be made, of which these are the metrics; traced.

        Args:
          state: as `init` and `advance` return it.
          accepted: updates that were made before.
        """
        good = jnp.isfinite(jnp.stack([metrics[name] for name in _WATCHED])).all()
        if self.max_grad_norm is not None:
            good &= metrics["grad_norm"] <= self.max_grad_norm
        if self.spike is not None:
            usual = metrics["grad_norm"] <= self.spike * state["grad_norm"]
            good &= usual | (accepted < self.warmup)
        return good

    def advance(
        self,
        state: dict[str, Any],
        grad_norm: Float[Array, ""],
        good: Bool[Array, ""],
        accepted: Int[Array, ""],
    ) -> dict[str, Array]:
        """The guard's state after an update that was accepted if `good`; traced."""
        # The decay starts small, so that the average is one of what there is, not of zero.
        decay = jnp.minimum(self.decay, accepted / (10.0 + accepted))
        average = decay * state["grad_norm"] + (1.0 - decay) * grad_norm
        return {
            "grad_norm": jnp.where(good, average, state["grad_norm"]),
            "refused_in_a_row": jnp.where(good, 0, state["refused_in_a_row"] + 1),
            "rollbacks": state["rollbacks"],
        }

    def follow(self, refusal: "Refusal") -> None:
        """What a refused update means for the run.

        Raises:
          Rollback: that is the policy.
          UserError: the run stops: that is the policy, or there have been too many.
        """
        if self.policy == "stop":
            raise UserError(
                f"{refusal}. The run stops (guard.policy='stop'); what is saved is from before. "
                "The same command with guard.policy=skip or rollback continues"
            )
        logging.warning("%s", refusal)
        in_a_row, rollbacks = (int(refusal.values[n]) for n in ("refused_in_a_row", "rollbacks"))
        advice = "the run has diverged. Lower optimizer.learning_rate or its clip_norm, and start"
        advice += " from a checkpoint before that"
        if in_a_row >= self.max_skipped:
            raise UserError(
                f"{in_a_row} updates in a row were skipped, the last at step {refusal.step}: "
                + advice
            )
        if self.policy == "rollback":
            if rollbacks >= self.max_rollbacks:
                raise UserError(f"{refusal}, after {rollbacks} rollbacks: {advice}")
            raise Rollback(refusal.step, refusal.batch)


def init() -> dict[str, Array]:
    """The guard's part of a fresh state.

    grad_norm: running average of the accepted updates' gradient norms. refused_in_a_row: updates.
    rollbacks: how many there have been.
    """
    zero = jnp.zeros((), jnp.int32)
    return {"grad_norm": jnp.zeros(()), "refused_in_a_row": zero, "rollbacks": zero}


class Rollback(Exception):
    """The run must go back: the update of `step`, with batch number `batch`, was refused."""

    def __init__(self, step: int, batch: int):
        super().__init__(f"the update of step {step} was refused")
        self.step = step
        self.batch = batch


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A refused update, as the host learns of it.

    Attributes:
      batch: how many batches the run had taken, this one included: its place in the data.
      values: the step's metrics.
      keys: of the batch's records, of the first MAX_KEYS if there are more.
    """

    step: int
    batch: int
    values: dict[str, float]
    keys: list[str]

    @classmethod
    def of(cls, step: int, values: dict[str, float], keys: list[str]) -> "Refusal":
        """Called on every process, each with the keys of its own rows."""
        batch = step + int(values["data/jumped"])
        return cls(step, batch, values, _gather(keys[: MAX_KEYS // jax.process_count()]))

    def line(self) -> dict[str, Any]:
        """For incidents.jsonl; numbers that JSON cannot name as text."""
        measured = {name: self.values[name] for name in (*_WATCHED, "grad_norm_average")}
        shown = {k: v if math.isfinite(v) else str(v) for k, v in measured.items()}
        return {"batch": self.batch, "step": self.step, **shown, "keys": self.keys}

    def __str__(self) -> str:
        named = ", ".join(self.keys[:_NAMED]) + (", ..." if len(self.keys) > _NAMED else "")
        return (
            f"step {self.step} skipped: loss {self.values['loss']:g}, gradient norm "
            f"{self.values['grad_norm']:g} (average {self.values['grad_norm_average']:g}); batch "
            f"{self.batch}, its records: {named or '(without keys)'}"
        )


def _gather(keys: list[str]) -> list[str]:
    """The texts of all processes, in their order."""
    if jax.process_count() == 1:
        return keys
    text = np.frombuffer("\n".join(keys).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return [
        key
        for row, size in zip(rows, sizes, strict=True)
        for key in bytes(row[:size]).decode().split("\n")
        if key
    ]
