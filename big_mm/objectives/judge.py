"""A frozen model that an objective asks: how well pairs fit, what sampled captions are worth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from big_mm.data.contract import Contract
from big_mm.objectives.base import Weighted
from big_mm.spec import UserError
from big_mm.types import Batch, Outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A trained model that is asked and never changes.

    Attributes:
      model: a Flax module, `model.apply(variables, batch, train=False) -> outputs`.
      init_from: its checkpoint (`training.init_from.InitFrom`), whose contract is the run's: it is
        shown the run's own batches.
    """

    model: nn.Module
    init_from: Any

    def init(self, rng: Array, contract: Contract) -> Any:
        """Fresh parameters, in whose place `load` puts the checkpoint's."""
        batch = {
            "image": jnp.zeros((1, contract.image_size, contract.image_size, 3), jnp.uint8),
            "tokens": jnp.zeros((1, contract.max_len), jnp.int32),
            "token_mask": jnp.ones((1, contract.max_len), bool),
        }
        return self.model.init(rng, batch, train=False)["params"]

    def load(self, params: Any, contract: Contract) -> Any:
        """The checkpoint's parameters, laid out as `params`.

        Raises:
          UserError: another contract, or a path that is missing, or of another shape.
        """
        try:
            contract.check_same(self.init_from.contract())
            return self.init_from.apply(params)
        except UserError as error:
            raise UserError(f"the judge {self.init_from.path}: {error}") from error

    def __call__(self, params: Any, batch: Batch) -> Outputs:
        """Its outputs for images and texts; no gradient passes."""
        return jax.lax.stop_gradient(self.model.apply({"params": params}, batch, train=False))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Judged(Weighted):
    """`Weighted`, with a judge whose parameters are part of the state: sharded, saved, resumed.

    A subclass asks `judge(extra["judge"], batch)`: in `forward`, or in `prepare` where the batch
    itself changes by it.

    Attributes:
      judge: None for a method that can do without.
      contract: None for the run's.
    """

    judge: Judge | None = None
    contract: Contract | None = None

    def bind(self, contract: Contract) -> "Judged":
        return dataclasses.replace(self, contract=self.contract or contract)

    def init_extra(self, rng: Array, params: Any) -> dict[str, Any]:
        """`judge`: its parameters."""
        del params
        return {} if self.judge is None else {"judge": self.judge.init(rng, self._contract)}

    def load_extra(self, extra: Any) -> Any:
        if self.judge is None:
            return extra
        return extra | {"judge": self.judge.load(extra["judge"], self._contract)}

    @property
    def _contract(self) -> Contract:
        if self.contract is None:
            raise UserError("the objective has no contract: give it one, or put it into a Run")
        return self.contract
