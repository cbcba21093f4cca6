"""Evaluators on an altered predictor."""

import dataclasses

import numpy as np
import pytest
import tiny

import big_mm
from big_mm.evaluators import Altered, base
from big_mm.evaluators.altered import Fields
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class Queries(base.Evaluator):
    """What the predictor's model is."""

    about = {"queries": base.About("Queries", "of the model", unit="score")}
    place = 7

    def evaluate(self, predictor, step):
        metrics = {"queries": float(predictor.model.queries), "step": float(step)}
        return base.Result(metrics, protocol={"seen": "the model"})


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return big_mm.load(tiny.workdir(tmp_path_factory.mktemp("run")))


def test_the_evaluator_gets_the_altered_predictor(predictor):
    evaluator = Altered(Queries(), Fields({"queries": 3}))
    result = evaluator.evaluate(predictor, 11)
    assert result.values == {"queries": 3.0, "step": 11.0}
    assert result.protocol == {"seen": "the model", "altered": {"queries": 3}}
    assert (evaluator.about, evaluator.place) == (Queries.about, 7)
    assert Queries().run(predictor) == {"queries": 4.0, "step": 0.0}
    with pytest.raises(UserError, match="field of CoCa='query' is none of"):
        Altered(Queries(), Fields({"query": 3})).evaluate(predictor, 11)


def test_another_model_compiles_its_own_programs(predictor):
    texts = list(tiny.TEXTS[:3])
    before = predictor.encode_text(texts)

    class Negated(type(predictor.model)):
        def encode_text(self, tokens, token_mask, *, train=False):
            out = super().encode_text(tokens, token_mask, train=train)
            return out | {"text_embedding": -out["text_embedding"]}

    model = predictor.model
    negated = Negated(image=model.image, text=model.text, decoder=model.decoder, queries=4)
    altered = dataclasses.replace(predictor, model=negated)
    np.testing.assert_allclose(altered.encode_text(texts), -before)
