"""Any evaluator, on a model other than the trained one as it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from big_mm.evaluators import base
from big_mm.evaluators.base import About, Evaluator, Result
from big_mm.predictor import Predictor
from big_mm.spec import choose


@runtime_checkable
class Alter(Protocol):
    """Makes the predictor that is to be scored; usually a frozen dataclass."""

    def __call__(self, predictor: Predictor) -> Predictor:
        """For instance `dataclasses.replace(predictor, model=...)`."""

    def protocol(self) -> dict[str, Any]:
        """What it does, JSON-able."""


@dataclasses.dataclass(frozen=True)
class Altered(base.Evaluator):
    """`evaluator`, on what `alter` makes of the predictor: a control set otherwise, a second model
    that helps to decode, a part removed.
    """

    evaluator: Evaluator
    alter: Alter

    @property
    def about(self) -> Mapping[str, About]:
        return self.evaluator.about

    @property
    def place(self) -> int:
        return self.evaluator.place

    def evaluate(self, predictor: Predictor, step: int) -> Result:
        result = self.evaluator.evaluate(self.alter(predictor), step)
        protocol = {**result.protocol, "altered": self.alter.protocol()}
        return dataclasses.replace(result, protocol=protocol)


@dataclasses.dataclass(frozen=True)
class Fields:
    """The model with other values of some fields, which its parameters fit as well: what it is told
    when it writes, a mask, a depth of prompts.
    """

    fields: dict[str, Any]

    def __call__(self, predictor: Predictor) -> Predictor:
        """Raises UserError for a field that the model does not have."""
        model = predictor.model
        for name in self.fields:
            choose(f"field of {type(model).__name__}", name, model.__dataclass_fields__)
        return dataclasses.replace(predictor, model=model.clone(**self.fields))

    def protocol(self) -> dict[str, Any]:
        return dict(self.fields)
