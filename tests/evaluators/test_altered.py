"""Evaluators on an altered predictor."""

import dataclasses

import numpy as np
import pytest
import tiny

import big_mm
from big_mm.evaluators import Altered, base


@dataclasses.dataclass(frozen=True)
class Depth(base.Evaluator):
    """What the predictor's model and parameters are."""

    about = {"depth": base.About("Depth", "of the model", unit="score")}
    place = 7

    def evaluate(self, predictor, step):
        metrics = {"depth": float(predictor.model.text.blocks.depth), "step": float(step)}
        return base.Result(metrics, protocol={"seen": "the model"})


@dataclasses.dataclass(frozen=True)
class Deeper:
    by: int

    def __call__(self, predictor):
        blocks = predictor.model.text.blocks
        text = predictor.model.text.clone(blocks=blocks.clone(depth=blocks.depth + self.by))
        return dataclasses.replace(predictor, model=predictor.model.clone(text=text))

    def protocol(self):
        return {"deeper": self.by}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return big_mm.load(tiny.workdir(tmp_path_factory.mktemp("run")))


def test_the_evaluator_gets_the_altered_predictor(predictor):
    evaluator = Altered(Depth(), Deeper(3))
    result = evaluator.evaluate(predictor, 11)
    assert result.values == {"depth": 5.0, "step": 11.0}
    assert result.protocol == {"seen": "the model", "altered": {"deeper": 3}}
    assert (evaluator.about, evaluator.place) == (Depth.about, 7)
    assert Depth().run(predictor) == {"depth": 2.0, "step": 0.0}


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
