"""What holds for all evaluators of tasks, on a real model."""

import json

import oracles
import pytest
import tiny

from big_mm import spec
from big_mm.data.records import TFRecordSource
from big_mm.evaluators import (
    VQA,
    Arena,
    AttributeShares,
    Captioning,
    CaptionSets,
    Choice,
    ComposedRetrieval,
    GroupGap,
    Pairs,
    PromptBias,
    Statements,
    run_all,
    suite,
)
from big_mm.evaluators.annotations import JsonLines
from big_mm.evaluators.answering import Generation, Ranking
from big_mm.evaluators.arena import ByScore
from big_mm.evaluators.caption_figures import Fit, Lexicon
from big_mm.evaluators.caption_graph import GraphF1
from big_mm.evaluators.choice import Counts, Options
from big_mm.evaluators.composed_benchmarks import FashionIq, Triplets
from big_mm.evaluators.composition import CaptionAndRewrite, PromptDirection
from big_mm.evaluators.data_types import PROMPTS, DataTypes
from big_mm.evaluators.scoring import Likelihood
from big_mm.evaluators.statements import ENTAILMENT
from big_mm.evaluators.vqa import VqaFiles
from big_mm.mesh import MeshConfig, single_device_mesh
from big_mm.predictor import Predictor
from big_mm.spec import UserError

COUNT = 13


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    built = spec.build(tiny.config(tmp_path_factory.mktemp("tiny")))
    model, contract = built["objective"].model, built["contract"]
    return Predictor(model, tiny.parameters(model, contract), contract, single_device_mesh())


def record(i):
    text = tiny.TEXTS[i]
    return {
        "captions": [text, "a ring"],
        "negatives": [tiny.TEXTS[i + 1]],
        "question": [text],
        "answers": [text.split()[-1]] * 10,
        "statement": [text],
        "answer": ["true" if i % 2 else "false"],
        "label": i % 4,
        "group": [f"pair {i // 2}"],
        "prompt": ["a " + text.split()[-1]],
    }


def ranked(folder, batch_size):
    """Those that score texts and images."""
    edits = folder / "edits.json"
    rows = [
        {"id": i, "reference": f"n{i}", "edit": tiny.TEXTS[i], "targets": [f"n{(i + 1) % COUNT}"]}
        for i in range(COUNT)
    ]
    edits.write_text(json.dumps(rows))
    source = oracles.Numbered(COUNT, record)
    given = {"source": source, "batch_size": batch_size}
    return {
        "vqa": VQA(**given, answerer=Ranking(tiny.SHAPES), prompt="{} "),
        "statements": Statements(**given, prompt="{} "),
        "swaps": Choice(**given),
        "likely": Choice(**given, scorer=Likelihood("token")),
        "gap": GroupGap(Choice(**given, candidates=Options(tiny.TEXTS[:4])), "group"),
        "edits": ComposedRetrieval(**given, benchmark=Triplets(str(edits))),
        "shares": AttributeShares(**given, attributes=tiny.COLOURS, prompt="prompt"),
    }


def written(folder, batch_size):
    """Those that need captions."""
    rivals = folder / "rivals.json"
    rivals.write_text(json.dumps({"other": {f"n{i}": "a red ring" for i in range(COUNT)}}))
    source = oracles.Numbered(COUNT, record)
    given = {"source": source, "batch_size": batch_size}
    benchmark = ranked(folder, batch_size)["edits"].benchmark
    return {
        "generated": VQA(**given, answerer=Generation(), prompt="{} "),
        "captions": Captioning(**given, figures=(Fit(bag=3), Lexicon())),
        "sets": CaptionSets(**given, samples=2),
        "arena": Arena(**given, rivals=str(rivals), judge=lambda a, b, r: float(len(a) > len(b))),
        "rewritten": ComposedRetrieval(**given, benchmark=benchmark, composition=PromptDirection()),
        "unasked": PromptBias(**given, objects=str.split),
    }


def test_devices_and_batches_change_nothing(predictor, tmp_path):
    one = run_all(ranked(tmp_path, 64), predictor)
    eight = Predictor(
        predictor.model, predictor.params, predictor.contract, MeshConfig().make(), batch_size=16
    )
    many = run_all(ranked(tmp_path, 5), eight)
    assert one.keys() == many.keys() and len(one) > 25
    for name, value in one.items():
        assert many[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_results_are_stored_with_statistics_and_protocol(predictor, tmp_path):
    made = ranked(tmp_path, 8) | written(tmp_path, 8)
    metrics = run_all(made, predictor, 0, tmp_path, bootstrap=2)
    stored = suite.stored(tmp_path)
    json.dumps(stored, allow_nan=False)
    for name in made:
        assert stored[name]["protocol"], name
        keys, statistics = suite.stored_statistics(tmp_path, name)
        assert statistics and keys, name
        for metric, statistic in statistics.items():
            assert statistic.value() == pytest.approx(metrics[f"{name}/{metric}"]), metric
            assert f"{name}/{metric}_low" in metrics


def test_a_model_that_lacks_what_is_scored_is_refused(predictor, tmp_path):
    model = Predictor(oracles.OnlyPictures(), {}, predictor.contract, single_device_mesh())
    for name, evaluator in (ranked(tmp_path, 8) | written(tmp_path, 8)).items():
        with pytest.raises(UserError, match=f"evaluator '{name}': OnlyPictures .*has no "):
            run_all({name: evaluator}, model)


def test_all_can_stand_in_a_config():
    """Written as specs, saved as JSON, and built again to equal components."""
    source = spec.spec(TFRecordSource, shards="test-*.tfrecord")
    made = {
        "vqa": spec.spec(
            VQA,
            source=source,
            questions=spec.spec(VqaFiles, questions="q.json", key="{:012d}"),
            answerer=spec.spec(Ranking, candidates="answers.txt", scorer=spec.spec(Likelihood)),
            submission="out.json",
        ),
        "entailment": spec.spec(
            Statements,
            source=spec.spec(JsonLines, path="x.jsonl", images=source, field="image"),
            labels=ENTAILMENT,
            answerer=spec.spec(Generation),
        ),
        "gap": spec.spec(
            GroupGap,
            evaluator=spec.spec(Choice, source=source, candidates=spec.spec(Counts)),
            group="place",
        ),
        "types": spec.spec(
            Choice,
            source=spec.spec(DataTypes, source=source),
            candidates=spec.spec(Options, texts=PROMPTS),
        ),
        "fashion": spec.spec(
            ComposedRetrieval,
            source=source,
            benchmark=spec.spec(FashionIq, captions={"dress": "d.json"}, gallery="union"),
            composition=spec.spec(PromptDirection, mapper=spec.spec(CaptionAndRewrite)),
        ),
        "captions": spec.spec(
            Captioning,
            source=source,
            scorer=spec.spec(GraphF1),
            figures=(spec.spec(Fit, checkpoint="clip"), spec.spec(Lexicon)),
        ),
        "arena": spec.spec(
            Arena,
            source=source,
            rivals="rivals.json",
            judge=spec.spec(ByScore, scorer=spec.spec(GraphF1), metric="capture"),
        ),
        "unasked": spec.spec(PromptBias, source=source),
    }
    for name, written in made.items():
        again = spec.from_json(spec.to_json(spec.resolve(written)))
        assert spec.build(again) == spec.build(written), name


def test_a_pair_of_one_is_refused(predictor):
    with pytest.raises(UserError, match="group 'pair 6' has 1 sound records, not two"):
        Pairs(oracles.Numbered(COUNT, record)).run(predictor)
