"""The loss of sampled captions, by what they gained over a baseline."""

import dataclasses
from typing import ClassVar

from big_mm.spec import choose
from big_mm.types import Batch, Mean, Outputs

COUNTS = ("tokens", "captions")


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """-advantage * log p(sampled caption), of `objectives.policy_gradient.PolicyGradient`.

    Attributes:
      per: what the mean is over: "tokens", as the public self-critical code has it
      (arXiv:1612.00563), or "captions", each with the sum over its tokens.
    """

    per: str = "captions"
    couples: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        choose("per", self.per, COUNTS)

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
        valid, written = batch.get("mask"), outputs["sample_mask"]
        advantage, log_probs = outputs["advantage"], outputs["sample_log_probs"]
        if valid is not None:
            written &= (valid != 0)[:, None]
        if self.per == "tokens":
            loss = Mean.of(-advantage[:, None] * log_probs, written)
        else:
            loss = Mean.of(-advantage * (log_probs * written).sum(axis=1), valid)
        names = [name for name in outputs if name.startswith("reward")]
        metrics = {name: Mean.of(outputs[name], valid) for name in ("advantage", *names)}
        lengths = Mean.of(written.sum(axis=1), valid)
        return loss, metrics | {"tokens": lengths}
