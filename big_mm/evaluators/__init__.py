"""Evaluators: from a predictor to metrics and things to look at."""

from big_mm.evaluators.base import Evaluator, Result
from big_mm.evaluators.captioning import Captioning, SceneAccuracy
from big_mm.evaluators.grounding import GroundingGap
from big_mm.evaluators.retrieval import Retrieval
from big_mm.evaluators.suite import run_all
from big_mm.evaluators.zero_shot import ZeroShot

__all__ = [
    "Captioning",
    "Evaluator",
    "GroundingGap",
    "Result",
    "Retrieval",
    "SceneAccuracy",
    "ZeroShot",
    "run_all",
]
