"""The harmonic mean of two classifiers, each among its own classes."""

import dataclasses

import numpy as np
import pytest

from big_mm.data.contract import Contract
from big_mm.evaluators import BaseToNovel, ZeroShot, base
from big_mm.predictor import Predictor
from tests.models import tiny_models as tiny

# No part of it is asked for anything.
PREDICTOR = Predictor(tiny.dual_encoder(), {}, Contract())


@dataclasses.dataclass(frozen=True)
class Scored(ZeroShot):
    """With a given accuracy."""

    accuracy: float = 0.0

    def evaluate(self, predictor, step):
        del predictor, step
        metrics = {"accuracy": self.accuracy, "accuracy_chance": 0.25}
        return base.Result(metrics, {"classes": {"kind": "classes"}}, protocol={"classes": 4})


@pytest.mark.parametrize(("a", "b", "mean"), [(0.8, 0.2, 0.32), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_the_harmonic_mean(a, b, mean):
    made = BaseToNovel(base=Scored("a", accuracy=a), novel=Scored("b", accuracy=b))
    result = made.evaluate(PREDICTOR, 0)
    assert result.values["base"] == a and result.values["novel"] == b
    np.testing.assert_allclose(result.values["harmonic_mean"], mean)
    assert result.values["harmonic_mean_chance"] == 0.25
    assert made.source == "a"
    assert set(result.artifacts) == set(result.protocol) == {"base", "novel"}
