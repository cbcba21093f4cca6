"""Learning-rate schedules: a factor between 0 and 1 on the optimizer's `learning_rate`.

A schedule is a frozen dataclass called with the step (from 0) and the run's number of steps. The
factor depends on nothing else, so a resumed or partly skipped run follows the same curve. Warm-up
is linear and reaches 1 after `warmup` steps without spending one at 0.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from big_mm.spec import UserError


@runtime_checkable
class Schedule(Protocol):
    """The factor of a step (from 0) in a run of `steps` steps."""

    def __call__(self, step: ArrayLike, steps: int) -> Float[Array, ""]: ...


@dataclasses.dataclass(frozen=True)
class WarmupCosine:
    """Half a cosine from 1 after `warmup` steps down to `final` at the end of the run."""

    warmup: int = 0
    final: float = 0.0

    def __call__(self, step: ArrayLike, steps: int) -> Float[Array, ""]:
        _check_fits(self, steps, self.warmup)
        progress = jnp.clip((_float(step) - self.warmup) / max(steps - self.warmup, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return _ramp(step, self.warmup) * (self.final + (1.0 - self.final) * cosine)


@dataclasses.dataclass(frozen=True)
class Rsqrt:
    """1 / sqrt(step) decay in units of `timescale`, with a linear `cooldown` to 0 at the end.

    Before the cooldown the factor does not depend on the run's length, so that a run can be
    extended (Zhai et al., Scaling Vision Transformers, section 3.5).
    """

    warmup: int = 0
    cooldown: int = 0
    timescale: int = 10_000

    def __call__(self, step: ArrayLike, steps: int) -> Float[Array, ""]:
        _check_fits(self, steps, self.warmup + self.cooldown)
        since = jnp.maximum(_float(step) - self.warmup, 0.0)
        decay = jnp.sqrt(self.timescale / (self.timescale + since))
        return _ramp(step, self.warmup) * decay * _cooldown(step, steps, self.cooldown)


@dataclasses.dataclass(frozen=True)
class Constant:
    """1 throughout, between an optional linear `warmup` and a linear `cooldown` to 0."""

    warmup: int = 0
    cooldown: int = 0

    def __call__(self, step: ArrayLike, steps: int) -> Float[Array, ""]:
        _check_fits(self, steps, self.warmup + self.cooldown)
        return _ramp(step, self.warmup) * _cooldown(step, steps, self.cooldown)


def _ramp(step: ArrayLike, warmup: int) -> Float[Array, ""]:
    return jnp.minimum((_float(step) + 1.0) / max(warmup, 1), 1.0)


def _cooldown(step: ArrayLike, steps: int, cooldown: int) -> Float[Array, ""]:
    return jnp.clip((steps - _float(step)) / max(cooldown, 1), 0.0, 1.0)


def _float(step: ArrayLike) -> Float[Array, ""]:
    return jnp.asarray(step, jnp.float32)


def _check_fits(schedule: Schedule, steps: int, needed: int) -> None:
    if 0 < steps < needed:
        raise UserError(f"{schedule} needs {needed} steps, the run has {steps}")
