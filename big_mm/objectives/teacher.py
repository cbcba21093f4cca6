"""An EMA teacher: a running average of the parameters, whose outputs are targets."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from big_mm.objectives.base import Weighted
from big_mm.spec import UserError
from big_mm.types import Aux, Batch, Outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher(Weighted):
    """`Weighted` with a teacher, whose outputs the losses find as `teacher_<name>`.

    After each update: teacher = m * teacher + (1 - m) * parameters (arXiv:1703.01780). The teacher
    sees the batch as in evaluation, and no gradient reaches it. A method with other views, a queue
    or a centre overrides `forward`, `init_extra`, `carry` and `update_extra`, and calls `teach`.

    Attributes:
      momentum: m, at the first step.
      final_momentum: m at step `momentum_steps` and after, reached along half a cosine; None keeps
        m as it is.
      momentum_steps: usually those of the run.
    """

    momentum: float = 0.996
    final_momentum: float | None = None
    momentum_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("momentum", "final_momentum"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value} must be from 0 to 1")
        if (self.final_momentum is not None) != (self.momentum_steps > 0):
            raise UserError(
                f"final_momentum={self.final_momentum} and momentum_steps={self.momentum_steps}: "
                "a schedule needs both, a constant momentum neither"
            )

    def init_extra(self, rng: Array, params: Any) -> dict[str, Any]:
        """`teacher`, which begins as the parameters, and `step`, the updates it has seen."""
        del rng
        return {"teacher": params, "step": jnp.zeros((), jnp.int32)}

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        taught = self.teach(extra, batch)
        outputs = super().forward(params, extra, batch, rng)
        return outputs | {f"teacher_{name}": value for name, value in taught.items()}

    def teach(self, extra: Any, batch: Batch) -> Outputs:
        """The teacher's outputs for a batch, which may be other views than the student's."""
        outputs = self.model.apply({"params": extra["teacher"]}, batch, train=False)
        return jax.lax.stop_gradient(outputs)

    def momentum_at(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """m of the update that follows `step` others."""
        if self.final_momentum is None:
            return jnp.float32(self.momentum)
        done = jnp.minimum(step / self.momentum_steps, 1.0)
        left = (1 + jnp.cos(math.pi * done)) / 2
        return self.final_momentum + (self.momentum - self.final_momentum) * left

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> dict[str, Any]:
        m = self.momentum_at(extra["step"])
        teacher = jax.tree.map(lambda old, new: m * old + (1 - m) * new, extra["teacher"], params)
        return super().update_extra(extra, params, aux) | {
            "teacher": teacher,
            "step": extra["step"] + 1,
        }
