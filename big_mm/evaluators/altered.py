"""Any evaluator, on a model other than the trained one as it is."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from big_mm.evaluators import base
from big_mm.evaluators.base import About, Evaluator, Result
from big_mm.predictor import Predictor


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
