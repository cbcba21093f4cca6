"""Evaluators: from a predictor to metrics and things to look at."""

from big_mm.evaluators.altered import Altered
from big_mm.evaluators.arena import Arena
from big_mm.evaluators.base import Evaluator, Result
from big_mm.evaluators.base_to_novel import BaseToNovel
from big_mm.evaluators.caption_sets import CaptionSets
from big_mm.evaluators.captioning import Captioning, SceneAccuracy
from big_mm.evaluators.choice import Choice
from big_mm.evaluators.composed_retrieval import ComposedRetrieval
from big_mm.evaluators.grounding import GroundingGap
from big_mm.evaluators.groups import GroupGap
from big_mm.evaluators.image_sets import AttributeShares, ClusterBias, SetDistances
from big_mm.evaluators.in_context import InContext
from big_mm.evaluators.languages import Languages
from big_mm.evaluators.pairs import Pairs
from big_mm.evaluators.pointing import PointingGame
from big_mm.evaluators.probes import FewShot, LinearProbe, NearestNeighbours
from big_mm.evaluators.prompt_bias import PromptBias
from big_mm.evaluators.retrieval import Retrieval
from big_mm.evaluators.statements import Statements
from big_mm.evaluators.suite import run_all
from big_mm.evaluators.text_probe import TextProbe
from big_mm.evaluators.token_probes import AttentionalProbe, SegmentationProbe
from big_mm.evaluators.vqa import VQA
from big_mm.evaluators.zero_shot import ZeroShot

__all__ = [
    "VQA",
    "Altered",
    "Arena",
    "AttentionalProbe",
    "AttributeShares",
    "BaseToNovel",
    "CaptionSets",
    "Captioning",
    "Choice",
    "ClusterBias",
    "ComposedRetrieval",
    "Evaluator",
    "FewShot",
    "GroundingGap",
    "GroupGap",
    "InContext",
    "Languages",
    "LinearProbe",
    "NearestNeighbours",
    "Pairs",
    "PointingGame",
    "PromptBias",
    "Result",
    "Retrieval",
    "SceneAccuracy",
    "SegmentationProbe",
    "SetDistances",
    "Statements",
    "TextProbe",
    "ZeroShot",
    "run_all",
]
