"""Captioners judged by dual encoders, parsers and one another."""

import dataclasses
import json

import numpy as np
import oracles
import pytest
import tiny

import big_mm
from big_mm.data import scenes
from big_mm.data.contract import Decoding
from big_mm.evaluators import Arena, Captioning, CaptionSets, base, run_all
from big_mm.evaluators.arena import ByScore
from big_mm.evaluators.caption_figures import Fit, Lexicon
from big_mm.evaluators.caption_graph import GraphF1, SceneParser
from big_mm.evaluators.captioning import SceneAccuracy
from big_mm.metrics import clip_score
from big_mm.spec import UserError

COUNT = 16


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def bag(text):
    said = text.split()
    return np.array([said.count(w) for w in (*tiny.COLOURS, *tiny.SHAPES)] + [0.2])


def judge(contract, wrong=()):
    """Says what is in the picture, except that pictures in `wrong` are taken for the next one."""
    return oracles.Oracle(
        contract,
        image_vector=lambda n: bag(tiny.TEXTS[n]),
        text_vector=bag,
        says=lambda n: tiny.TEXTS[(n + (n in wrong)) % COUNT],
    )


SOURCE = oracles.Numbered(COUNT, lambda i: {"captions": [tiny.TEXTS[i], "a ring"]}, damaged=(7, 8))
SOUND = [i for i in range(COUNT) if i not in (7, 8)]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_captions_fit_their_images(contract, batch_size):
    wrong = (2, 5, 11)
    oracle = judge(contract, wrong)
    figures = (Fit(ks=(1, 2), bag=4), Lexicon())
    evaluator = Captioning(SOURCE, figures=figures, batch_size=batch_size)
    result = evaluator.evaluate(oracle, 0)
    values = result.values
    said = [tiny.TEXTS[i + (i in wrong)] for i in SOUND]
    image = oracle.encode_image([oracles.picture(i) for i in SOUND]).astype(np.float64)
    caption = oracle.encode_text([clip_score.PREFIX + text for text in said])
    cosine = (image * caption).sum(axis=1)
    assert values["clip_score"] == pytest.approx(2.5 * np.maximum(cosine, 0).mean(), rel=1e-5)
    truths = [[tiny.TEXTS[i], "a ring"] for i in SOUND]
    nearest = [
        max(oracle.encode_text([clip_score.PREFIX + t for t in row]) @ own)
        for row, own in zip(truths, caption, strict=True)
    ]
    harmonic = [2 / (1 / (2.5 * c) + 1 / n) for c, n in zip(cosine, nearest, strict=True)]
    assert values["ref_clip_score"] == pytest.approx(np.mean(harmonic), rel=1e-5)
    assert values["self_r@1"] == pytest.approx(1 - 3 / 14)
    assert values["self_r@1_chance"] == pytest.approx(1 / 14)
    # The next picture has the same colour or shape, so it is among the four most alike.
    assert values["self_bag_r@1"] <= values["self_r@2"] <= 1
    assert values["self_bag_r@1_chance"] == 1 / 4
    assert values["vocabulary"] == 9 and values["words_median"] == values["words_longest"] == 3
    assert result.protocol["fit"]["judge"] == "the model itself"
    assert evaluator.about["clip_score"].headline and "distinct_1" in evaluator.about
    run_all({"mine": evaluator}, oracle, bootstrap=3)


def test_another_checkpoint_judges_by_its_own_contract(contract, tmp_path):
    checkpoint = tiny.workdir(tmp_path, tiny.siglip)
    figures = (Fit(str(checkpoint)),)
    result = Captioning(SOURCE, figures=figures).evaluate(judge(contract), 0)
    loaded = big_mm.load(checkpoint)
    batches = base.examples(SOURCE, loaded.contract, 64)
    image = np.concatenate([loaded.encode_image(batch["image"]) for batch in batches])
    caption = loaded.encode_text([clip_score.PREFIX + tiny.TEXTS[i] for i in SOUND])
    expected = clip_score.clip_score(image, caption).mean()
    assert result.values["clip_score"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert result.protocol["fit"]["judge"] == str(checkpoint)


def parse(text):
    graph = SceneParser()(text)
    return graph.objects, graph.attributes, graph.relations


def test_captions_become_graphs():
    said = "two small red circles and a striped blue star. the blue star is above the red circles"
    objects, attributes, relations = parse(said)
    assert objects == ("circle", "star")
    assert sorted(attributes) == sorted(["red", "small", "2", "blue", "striped", "1"])
    assert relations == (("star", "above", "circle"),)
    assert parse("nothing here") == ((), (), ())


def test_graphs_rank_corrupted_descriptions():
    samples = [scenes.sample("test_seen", 0, i) for i in range(20)]
    scorer = GraphF1()
    totals = np.zeros(3)
    for sample in samples:
        record = {"key": "k", "captions": sample.long}
        truth = sample.long[0]
        swapped = truth
        for old, new in zip(scenes.COLOURS, (*scenes.COLOURS[1:], scenes.COLOURS[0]), strict=True):
            if old in truth:
                swapped = truth.replace(old, new)
                break
        short = truth.split(" and ")[0].split(",")[0]
        totals += [scorer(text, record)["capture"] for text in (truth, swapped, short)]
    assert totals[0] > totals[1] and totals[0] > totals[2]
    with pytest.raises(UserError, match="'k' has nothing in 'captions'"):
        scorer("a", {"key": "k"})


def test_graph_f1_scores_a_captioner(contract):
    source = oracles.Numbered(COUNT, lambda i: {"captions": [tiny.TEXTS[i]]})
    values = Captioning(source, scorer=GraphF1()).run(judge(contract, wrong=(3,)))
    # Nothing is said about relations: 10/12 at best.
    assert values["capture_chance"] < values["capture"] < 10 / 12
    assert values["object_f1"] == pytest.approx(15 / 16, abs=1e-4)  # picture 3 is taken for 4


def rivals(tmp_path, **captions):
    path = tmp_path / "rivals.json"
    path.write_text(json.dumps(captions))
    return str(path)


def scene_record(i):
    scene = scenes.sample("test_seen", 0, i).scene
    return {"scene": [scene.to_json()]}


def plain(i):
    """A short true caption, in the tokenizer's words or not."""
    groups = scenes.sample("test_seen", 0, i).scene.groups()
    return " and ".join(f"{len(m)} {c} {s}s" for (c, s), m in groups.items())


def test_the_arena_ranks_captioners_as_the_judge_sees_them(contract, tmp_path):
    """A judge that counts words in common with the truth; ties and an order bias included."""
    truth = [f"{w} {v}" for w in tiny.COLOURS for v in tiny.SHAPES]

    def better(first, second, record):
        scores = [
            len(set(text.split()) & set(truth[int(record["key"][1:])].split()))
            for text in (first, second)
        ]
        return 0.5 if scores[0] == scores[1] else float(scores[0] > scores[1])

    files = rivals(
        tmp_path,
        exact={f"n{i}": truth[i] for i in range(COUNT)},
        silent={f"n{i}": "" for i in range(COUNT)},
    )
    oracle = oracles.Oracle(contract, says=lambda n: "a " + truth[n].split()[0])
    source = oracles.Numbered(COUNT, damaged=(3,))
    result = Arena(source, files, better, batch_size=4).evaluate(oracle, 0)
    values = result.values
    assert values["rating_exact"] > values["rating"] > values["rating_silent"]
    assert values["rating_exact"] + values["rating"] + values["rating_silent"] == pytest.approx(
        3000
    )
    assert values["score"] == 0 and values["order_bias"] == 0 and values["examples"] == 15
    bounded = run_all({"arena": Arena(source, files, better)}, oracle, bootstrap=10)
    assert bounded["arena/rating_low"] <= bounded["arena/rating_high"]
    first = Arena(source, files, lambda a, b, record: 1.0).evaluate(oracle, 0)
    assert first.values["order_bias"] == 0.5
    assert first.values["rating"] == pytest.approx(1000)


def test_the_arena_judges_scenes_by_a_score(contract, tmp_path):
    files = rivals(tmp_path, right={f"n{i}": plain(i) for i in range(6)})
    oracle = oracles.Oracle(contract, says=lambda n: "a white ring")
    source = oracles.Numbered(6, scene_record)
    judge = ByScore(SceneAccuracy(), "recall")
    values = Arena(source, files, judge).run(oracle)
    assert values["score"] < 0
    with pytest.raises(UserError, match="the scorer has no 'bleu' but colours"):
        Arena(source, files, ByScore(SceneAccuracy(), "bleu")).run(oracle)
    with pytest.raises(UserError, match="'right' has no caption of 'n6'"):
        Arena(oracles.Numbered(7, scene_record), files, judge).run(oracle)
    with pytest.raises(UserError, match="'right' is the evaluated captioner's name"):
        Arena(source, files, judge, name="right").run(oracle)
    with pytest.raises(UserError, match="verdict 2.0 is not between"):
        Arena(source, files, lambda a, b, record: 2.0).run(oracle)


@dataclasses.dataclass
class Sampler:
    """Says something else about a picture at every call."""

    calls: int = 0

    def __call__(self, n):
        self.calls += 1
        return tiny.TEXTS[(self.calls // COUNT + n) % COUNT] if n % 2 else tiny.TEXTS[n]


def test_sets_of_captions(contract):
    oracle = oracles.Oracle(contract, says=Sampler())
    source = oracles.Numbered(COUNT, lambda i: {"captions": [tiny.TEXTS[i]]})
    result = CaptionSets(source, samples=3).evaluate(oracle, 0)
    values = result.values
    assert 0 < values["self_cider"] < 1 and 0 < values["mbleu4"] < 1
    assert values["cider_mean"] < values["cider_best"]
    assert values["distinct_1"] < values["distinct_2"] or values["distinct_2"] > 1 / 3
    assert result.protocol["samples"] == 3 and len(result.keys) == COUNT
    constant = oracles.Oracle(contract, says=lambda n: tiny.TEXTS[n])
    values = CaptionSets(source, samples=4).run(constant)
    assert values["self_cider"] == pytest.approx(0, abs=1e-6)
    assert values["mbleu4"] == pytest.approx(1e-15**0.25, abs=0.4)  # three words: no 4-gram
    assert values["distinct_1"] == pytest.approx(1 / 4)
    with pytest.raises(UserError, match="need a decoding that samples"):
        CaptionSets(source, Decoding())
