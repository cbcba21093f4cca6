"""What a method that has learnt some classes can do on these and on others."""

import dataclasses
from typing import ClassVar

from big_mm.evaluators import base
from big_mm.evaluators.base import About
from big_mm.evaluators.zero_shot import ZeroShot
from big_mm.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class BaseToNovel(base.Evaluator):
    """Accuracy on the classes of the training examples, on others, and the harmonic mean of the
    two: CoCoOp's protocol (arXiv:2203.05557, section 4.1), which tells both groups apart among
    their own classes.

    Attributes:
      base, novel: classifiers by the texts of the classes of each group.
    """

    base: ZeroShot
    novel: ZeroShot

    place: ClassVar[int] = 11
    about: ClassVar[dict[str, About]] = {
        "base": About("Base classes", "images of the classes learnt from", headline=True),
        "novel": About("Novel classes", "images of other classes", headline=True),
        "harmonic_mean": About(
            "Harmonic mean", "of the accuracies on base and on novel classes", headline=True
        ),
    }

    @property
    def source(self):
        """The records learnt from are of this one's classes."""
        return self.base.source

    def evaluate(self, predictor: Predictor, step: int) -> base.Result:
        """Metrics: base, novel, harmonic_mean, and their chance levels."""
        parts = {name: getattr(self, name).evaluate(predictor, step) for name in ("base", "novel")}
        metrics = {}
        for end in ("", "_chance"):
            a, b = (part.values[f"accuracy{end}"] for part in parts.values())
            metrics |= {f"base{end}": a, f"novel{end}": b}
            metrics[f"harmonic_mean{end}"] = 2 * a * b / (a + b) if a + b else 0.0
        artifacts = {name: part.artifacts["classes"] for name, part in parts.items()}
        protocol = {name: dict(part.protocol) for name, part in parts.items()}
        return base.Result(metrics, artifacts, protocol=protocol)
