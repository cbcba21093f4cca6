"""Optimizers: what optax computes, and rules by parameter path around it.

The update of a parameter is -learning_rate * schedule(step) * multiplier * (direction + decay *
parameter), where the direction is the optimizer's own and the multiplier and the decay come from
rules. Rules see the paths of all parameters; their patterns must match something (`big_mm.trees`).
Scanned layers carry a leading axis, so decay goes by name, never by the number of dimensions.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from big_mm import trees
from big_mm.spec import UserError
from big_mm.training.schedules import Constant, Schedule

# Matrices and embedding tables decay; biases, norms' scales, temperatures and tokens do not.
DECAYED = ((r"(.*/)?(kernel|embedding)", 1.0),)

Flat = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers share; a subclass adds `direction()`.

    Attributes:
      learning_rate: the peak.
      schedule: a factor on it by step.
      weight_decay: decoupled; it is multiplied by the learning rate, as in optax.
      clip_norm: bound of the global norm of the gradients before anything else; None does not clip.
      multipliers: ((path pattern, factor on the learning rate), ...), 1 elsewhere.
      decays: ((path pattern, factor on the weight decay), ...), 0 elsewhere.
      frozen: ((path pattern, true or false), ...), false elsewhere. A frozen parameter has no
        gradient and no optimizer state.
    """

    learning_rate: float
    schedule: Schedule = Constant()
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    multipliers: trees.Rules = ()
    decays: trees.Rules = DECAYED
    frozen: trees.Rules = ()

    def direction(self) -> optax.GradientTransformation:
        """The optimizer proper: gradients to a direction that is not yet scaled or negated."""
        raise NotImplementedError

    def trainable(self, params: Any) -> dict[str, bool]:
        """{path: false where a rule freezes the parameter}.

        Raises:
          UserError: a pattern matches nothing, or everything is frozen.
        """
        frozen = trees.match_paths(trees.flatten(params), self.frozen, False)
        if all(frozen.values()):
            raise UserError("the rules in `frozen` freeze every parameter")
        return {path: not value for path, value in frozen.items()}

    def transform(self, params: Any) -> optax.GradientTransformation:
        """Everything but the learning rate, for flat dicts {path: trainable parameter}."""
        paths = trees.flatten(params)
        multipliers = trees.match_paths(paths, self.multipliers, 1.0)
        decays = trees.match_paths(paths, self.decays, 0.0)

        def scale(updates: Flat, state: Any, params: Flat | None = None) -> tuple[Flat, Any]:
            assert params is not None
            decay = {path: self.weight_decay * decays[path] for path in updates}
            return {
                path: multipliers[path] * (update + decay[path] * params[path])
                if decay[path]
                else multipliers[path] * update
                for path, update in updates.items()
            }, state

        clip = optax.identity()
        if self.clip_norm is not None:
            clip = optax.clip_by_global_norm(self.clip_norm)
        rules = optax.GradientTransformation(lambda params: optax.EmptyState(), scale)
        return optax.chain(clip, self.direction(), rules)

    def rate(self, step: ArrayLike, steps: int) -> Float[Array, ""]:
        """The learning rate of a step, before the multipliers."""
        return self.learning_rate * self.schedule(step, steps)

    def describe(self, params: Any) -> dict[str, str]:
        """{path: what the rules say about it}, for the parameter table."""
        paths = trees.flatten(params)
        multipliers = trees.match_paths(paths, self.multipliers, 1.0)
        decays = trees.match_paths(paths, self.decays, 0.0)
        trainable = self.trainable(params)
        return {
            path: f"lr x{multipliers[path]:g}, decay {self.weight_decay * decays[path]:g}"
            if trainable[path]
            else "frozen"
            for path in paths
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101); `moment_dtype` holds the first moment."""

    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    moment_dtype: str = "float32"

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            self.b1, self.b2, self.eps, mu_dtype=jnp.dtype(self.moment_dtype)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer):
    """Adafactor with momentum, as Scaling Vision Transformers uses it (arXiv:2106.04560, sec. 3.4).

    The second moment is factored into rows and columns over the two largest axes, if both have at
    least `min_factored` entries; the first moment is in bfloat16; no relative step sizes.
    """

    b1: float = 0.9
    decay_rate: float = 0.8
    eps: float = 1e-30
    block_clip: float | None = 1.0
    min_factored: int = 128
    moment_dtype: str = "bfloat16"

    def direction(self) -> optax.GradientTransformation:
        steps = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay_rate,
                min_dim_size_to_factor=self.min_factored,
                epsilon=self.eps,
            )
        ]
        if self.block_clip is not None:
            steps.append(optax.clip_by_block_rms(self.block_clip))
        if self.b1:
            dtype = jnp.dtype(self.moment_dtype)
            steps.append(optax.ema(self.b1, debias=False, accumulator_dtype=dtype))
        return optax.chain(*steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lion(Optimizer):
    """Lion (Chen et al., arXiv:2302.06675): the sign of an interpolated momentum.

    Wants a learning rate 3 to 10 times smaller and a decay as much larger than AdamW.
    """

    b1: float = 0.9
    b2: float = 0.99
    moment_dtype: str = "bfloat16"

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_lion(self.b1, self.b2, mu_dtype=jnp.dtype(self.moment_dtype))


def apply(params: Flat, updates: Flat, rate: ArrayLike) -> Flat:
    """params - rate * updates, in the parameters' own types."""
    return jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), params, updates)
