"""The default objective, a weighted sum of loss terms over one forward pass, and the seam itself.

Another method (teacher, queue, policy gradient) is a class with the same methods, usually a
subclass of `Weighted`. The trainer knows an objective only through them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from big_mm.data.contract import Contract
from big_mm.spec import UserError
from big_mm.types import Aux, Batch, Mean, Outputs


@runtime_checkable
class Loss(Protocol):
    """A loss term: a frozen dataclass, written on the global batch as if there were one device.

    `couples` names the outputs through which it compares the rows of a batch with one another, ()
    if each row counts for itself. It reads no other outputs then: microbatches hand it those of the
    whole batch.
    """

    @property
    def couples(self) -> tuple[str, ...]: ...

    def __call__(self, outputs: Outputs, batch: Batch) -> tuple[Mean, dict[str, Mean]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
    """The sum over `losses` of weight times mean, from one forward pass of `model`.

    Attributes:
      model: a Flax module, `model.apply(variables, batch, train=...) -> outputs`.
      losses: terms by name; the name is the metric's, `loss/<name>`.
      weights: by the same names; a term that is not named weighs 1.
    """

    model: nn.Module
    losses: dict[str, Loss]
    weights: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.losses:
            raise UserError("an objective needs at least one loss in `losses`")
        if unknown := sorted(set(self.weights) - set(self.losses)):
            raise UserError(f"weights for {unknown}, but the losses are {sorted(self.losses)}")

    def bind(self, contract: Contract) -> "Weighted":
        """The objective of a run with this contract: fields left None become the contract's."""
        del contract
        return self

    def init(self, rng: Array, batch: Batch) -> Any:
        """Parameters; traced by the trainer, which places every leaf where its sharding says."""
        return self.model.init(rng, batch, train=False)["params"]

    def init_extra(self, rng: Array, params: Any) -> Any:
        """Whatever else the method keeps: teacher, queue, baseline. Traced, like `init`."""
        del rng, params
        return {}

    def load_extra(self, extra: Any) -> Any:
        """What `init_extra` made, with what comes from other checkpoints in its place: a frozen
        model that the method asks. On the host, once, when a fresh run begins.
        """
        return extra

    def prepare(self, state: Any, batch: Batch) -> Batch:
        """Runs on the host before each step; may sample from the model or compute rewards."""
        del state
        return batch

    def loss(
        self, params: Any, extra: Any, batch: Batch, rng: Array
    ) -> tuple[Float[Array, ""], Aux]:
        """The scalar to differentiate, and what it consists of: `terms` after `forward`."""
        outputs = self.forward(params, extra, batch, rng)
        terms, metrics = self.terms(outputs, batch, self.losses)
        return self.scalar(terms), Aux(terms, metrics, self.carry(outputs, batch))

    def forward(self, params: Any, extra: Any, batch: Batch, rng: Array) -> Outputs:
        """All that the terms read; a method with more passes than one (a teacher's) adds keys."""
        del extra
        return self.model.apply({"params": params}, batch, train=True, rngs={"dropout": rng})

    def terms(
        self, outputs: Outputs, batch: Batch, losses: Mapping[str, Loss]
    ) -> tuple[dict[str, Mean], dict[str, Mean]]:
        """Values and metrics of these `losses`."""
        terms, metrics = {}, {}
        for name, term in losses.items():
            terms[name], more = term(outputs, batch)
            metrics |= {f"{name}/{key}": value for key, value in more.items()}
        return terms, metrics

    def carry(self, outputs: Outputs, batch: Batch) -> Any:
        """What `update_extra` needs: arrays are rows, batch axis first; a `Mean` adds up."""
        del outputs, batch
        return None

    def scalar(
        self, terms: Mapping[str, Mean], counts: Mapping[str, Any] | None = None
    ) -> Float[Array, ""]:
        """The weighted sum of the terms' means.

        With `counts`, of total / count: a microbatch's exact share of the global batch's loss.
        """
        counts = counts or {name: term.count for name, term in terms.items()}
        means = {name: Mean(term.total, counts[name]).compute() for name, term in terms.items()}
        weighted = [self.weights.get(name, 1.0) * mean for name, mean in means.items()]
        return sum(weighted, start=jnp.zeros(()))

    def update_extra(self, extra: Any, params: Any, aux: Aux) -> Any:
        """Inside the step, after the update; `params` are the new ones."""
        del params, aux
        return extra

    def check_accumulation(self, accumulate: int) -> None:
        """Refuses microbatches where they would change the method.

        Raises:
          UserError: a subclass has a `loss` of its own.
        """
        if accumulate > 1 and type(self).loss is not Weighted.loss:
            raise UserError(
                f"accumulate={accumulate}: {type(self).__name__} has a `loss` of its own, which "
                "microbatches cannot take apart: override forward, terms or carry instead, or set "
                "accumulate=1"
            )
