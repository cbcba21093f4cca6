"""A linear probe that begins at the zero-shot classifier, and their mixture."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from big_mm.evaluators.base import About
from big_mm.evaluators.probes import LinearProbe, about_accuracy
from big_mm.evaluators.prompts import Templates
from big_mm.evaluators.zero_shot import class_embeddings
from big_mm.predictor import Predictor
from big_mm.probing.logistic import Linear
from big_mm.spec import UserError


@dataclasses.dataclass(frozen=True)
class TextProbe(LinearProbe):
    """Logistic regression on image embeddings whose weights begin at the class embeddings and are
    penalised for leaving them; and the mixture of both weights (WiSE-FT, arXiv:2109.01903).

    The objective is convex, so that a start alone would change nothing: the penalty is what keeps
    the text. It is C * sum of losses + 1/2 ||w - w0||^2, w0 the unit class embeddings times the
    model's `logit_scale`; C as of `LinearProbe`.

    Attributes:
      prompts: the texts of each class, a component of `prompts`; names are the records' class_name.
      mix: share of the probe in the mixture; the rest is the zero-shot classifier's.
    """

    output: str = "image_embedding"
    prompts: Any = Templates()
    mix: float = 0.5

    place: ClassVar[int] = 51
    about: ClassVar[dict[str, About]] = (
        about_accuracy("", "Text-initialised probe", "by regression that begins at the texts")
        | about_accuracy("_zero_shot", "Zero-shot", "by the class embeddings alone", False)
        | about_accuracy("_mixed", "Mixture of both", "by the mean of both weights", False)
    )

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise UserError(f"mix={self.mix} must be from 0 to 1")

    def classify(self, predictor, train, test, validation, classes):
        """As of `Probe`."""
        names = self.names(train.features)
        vectors = class_embeddings(predictor, self.prompts.texts(names), self.prompts.renormalize)
        prior = vectors.T * _scale(predictor)
        if len(prior) != train.values.shape[1]:
            raise UserError(
                f"{self.output} has {train.values.shape[1]} components, the texts have "
                f"{len(prior)}: a probe that begins at them reads image_embedding"
            )
        model, protocol = self.fit(predictor, train, validation, classes, prior)
        mixed = Linear(self.mix * model.weights + (1 - self.mix) * prior, self.mix * model.bias)
        predicted = {
            "": model.predict(test.values)[None],
            "_zero_shot": Linear(prior, np.zeros(classes)).predict(test.values)[None],
            "_mixed": mixed.predict(test.values)[None],
        }
        return predicted, predicted[""][0], protocol | {"mix": self.mix} | self.prompts.protocol()


def _scale(predictor: Predictor) -> float:
    """The inverse temperature of the similarities."""
    tokens, token_mask = predictor.contract.text([""])
    outputs = predictor.outputs({"tokens": tokens, "token_mask": token_mask}, ["logit_scale"])
    return float(outputs["logit_scale"])
