"""Choosing among nearly right texts: swaps, numbers, kinds of data, associations, groups."""

import dataclasses

import numpy as np
import oracles
import pytest

from big_mm.data import scenes
from big_mm.data.scenes import language
from big_mm.evaluators import Choice, GroupGap, Pairs, run_all
from big_mm.evaluators.choice import Attributes, Counts, Negatives, Options
from big_mm.evaluators.scoring import Likelihood, Similarity
from big_mm.metrics.choice import chosen, winoground
from big_mm.metrics.groups import AllRight, Gap, Informedness, Worst
from big_mm.spec import UserError


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def two_kinds(i):
    """Two single objects of different colours and shapes, from the embedded world."""
    world = scenes.World(count_weights=(0.0, 1.0), kind_weights=(0.0, 1.0))
    for seed in range(100):
        scene = scenes.sample("train", seed, i, world).scene
        if len({o.colour for o in scene.objects}) == len({o.shape for o in scene.objects}) == 2:
            return scene
    raise AssertionError


SCENES = [two_kinds(i) for i in range(12)]


def said(first, second):
    return f"a {first[0]} {first[1]} and a {second[0]} {second[1]}"


def swaps(i):
    """The colours exchanged, one object exchanged, the objects in another order of words."""
    (a, b), (c, d) = (o.kind for o in SCENES[i].objects)
    other = next(s for s in scenes.SHAPES if s not in (b, d))
    wrong = [said((c, b), (a, d)), said((a, other), (c, d))]
    kind = "attribute" if i % 2 else "object"
    return {"captions": [said((a, b), (c, d))], "negatives": wrong, "kind": [kind]}


def reads(contract, sees):
    """Of image n and a text: `sees(claims, scene)`."""
    return oracles.Oracle(
        contract, log_likelihood=lambda n, text: float(sees(scenes.parse_caption(text), SCENES[n]))
    )


def knows(claims, scene):
    return claims.kinds() == {kind: len(m) for kind, m in scene.groups().items()}


def bag_of_words(claims, scene):
    """Which colours and which shapes there are, but not which belong together."""
    colours, shapes = ({kind[i] for kind in claims.kinds()} for i in (0, 1))
    return colours == {o.colour for o in scene.objects} and shapes == {
        o.shape for o in scene.objects
    }


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_swaps_of_attributes_and_objects(contract, batch_size):
    source = oracles.Numbered(12, swaps, damaged=(3,))
    evaluator = Choice(source, scorer=Likelihood(), category="kind", batch_size=batch_size)
    values = evaluator.evaluate(reads(contract, knows), 0).values
    assert values["accuracy"] == values["accuracy_attribute"] == values["accuracy_object"] == 1
    assert values["accuracy_chance"] == pytest.approx(1 / 3) and values["examples"] == 11
    # A bag of words cannot tell the exchanged colours from the true ones: equal scores are wrong.
    assert evaluator.run(reads(contract, bag_of_words))["accuracy"] == 0
    objects = Choice(
        oracles.Numbered(12, lambda i: swaps(i) | {"negatives": swaps(i)["negatives"][1:]}),
        scorer=Likelihood(),
    )
    assert objects.run(reads(contract, bag_of_words))["accuracy"] == 1


def test_similarity_chooses_by_the_embeddings(contract):
    """The picture's number and the text's last word say the direction."""
    oracle = oracles.Oracle(
        contract,
        image_vector=lambda n: np.eye(5)[n % 5],
        text_vector=lambda text: np.eye(5)[int(text[-1])] * 3,
    )
    source = oracles.Numbered(10, lambda i: {"captions": [f"a {i % 5}"], "negatives": ["a 0"]})
    with pytest.raises(UserError, match="'n0': 'a 0' is both right and wrong"):
        Choice(source).run(oracle)
    texts = tuple(f"a {i}" for i in range(5))
    source = oracles.Numbered(10, lambda i: {"label": i % 5 if i != 7 else 0})
    values = Choice(source, Options(texts), prefix="so ").run(oracle)
    assert values["accuracy"] == 9 / 10
    # Picture 7 looks like a 2 but is a 0: one of three zeros missed, one of nine a false 2.
    rates = [2 / 3, 1, 1 - 1 / 9, 1, 1]
    assert values["informedness"] == pytest.approx(np.mean(rates))
    with pytest.raises(UserError, match="'n0': label -1 is none of the 5 texts"):
        Choice(oracles.Numbered(2), Options(texts)).run(oracle)


def test_informedness_is_zero_without_looking():
    label = np.array([0, 0, 1, 2, 2, 2])
    for answer in (np.zeros(6, int), np.full(6, 2)):
        assert Informedness(label, answer).value() == 0
    assert Informedness(label, label).value() == 1
    hits = np.mean([1 / 2 - 0 / 4, 1 - 1 / 5, 2 / 3 - 1 / 3])
    said = np.array([0, 2, 1, 2, 2, 1])
    assert Informedness(label, said).value() == pytest.approx(hits)


def test_counting(contract):
    """Numbers in the embedded world; a model that is one off, except at the end."""
    words = language.COUNT_WORDS[1:6]
    source = oracles.Numbered(5, lambda i: {"captions": [f"A picture of {words[i]} red stars"]})

    def off_by_one(n, text):
        return float(words.index(text.split()[3]) == min(n + 1, 4))

    exact = oracles.Oracle(contract, log_likelihood=lambda n, text: float(words[n] in text))
    near = oracles.Oracle(contract, log_likelihood=off_by_one)
    evaluator = Choice(source, Counts(words=words), Likelihood())
    assert evaluator.run(exact)["accuracy"] == 1 and evaluator.run(exact)["deviation"] == 0
    assert evaluator.run(near)["accuracy"] == 1 / 5 and evaluator.run(near)["deviation"] == 4 / 5
    with pytest.raises(UserError, match="'n0': 'number 0' must have exactly one of the words two"):
        Choice(oracles.Numbered(1), Counts()).run(exact)


def test_concept_association(contract):
    """A model that looks, and one that answers with the colour that is not yet in the prompt."""

    def probe(i):
        first, second = SCENES[i].objects
        prompt = f"the {first.shape} is {{}} beside a {first.colour}"
        return {"prompt": [prompt], "attribute": [first.colour], "other_attribute": [second.colour]}

    def looks(n, text):
        return float(text.split()[3] == SCENES[n].objects[0].colour)

    def associates(n, text):
        first, second = SCENES[n].objects
        return float(text.split()[3] == second.colour)

    evaluator = Choice(oracles.Numbered(12, probe), Attributes(scenes.COLOURS), Likelihood())
    for sees, bias in ((looks, 0), (associates, 1)):
        values = evaluator.run(oracles.Oracle(contract, log_likelihood=sees))
        assert values["lured"] == bias and values["accuracy"] == 1 - bias
    same = Choice(
        oracles.Numbered(2, lambda i: probe(i) | {"other_attribute": probe(i)["attribute"]}),
        Attributes(scenes.COLOURS),
    )
    with pytest.raises(UserError, match="'n0': both objects have"):
        same.run(oracles.Oracle(contract))


def test_pairs_of_the_same_words(contract):
    """Each scene and the same with its colours exchanged."""
    mirrored = []
    for scene in SCENES[:4]:
        first, second = scene.objects
        exchanged = (
            dataclasses.replace(first, colour=second.colour),
            dataclasses.replace(second, colour=first.colour),
        )
        mirrored += [scene, dataclasses.replace(scene, objects=exchanged)]

    def record(i):
        kinds = [o.kind for o in mirrored[i].objects]
        return {"captions": [said(*kinds)], "group": [f"pair {i // 2}"]}

    def sees(how):
        return oracles.Oracle(
            contract,
            log_likelihood=lambda n, text: float(how(scenes.parse_caption(text), mirrored[n])),
        )

    evaluator = Pairs(oracles.Numbered(8, record), scorer=Likelihood())
    result = evaluator.evaluate(sees(knows), 0)
    assert {k: result.values[k] for k in ("text", "image", "group")} == {
        "text": 1,
        "image": 1,
        "group": 1,
    }
    assert result.keys == [f"pair {i}" for i in range(4)] and result.values["examples"] == 4
    assert evaluator.run(sees(bag_of_words))["group"] == 0
    damaged = Pairs(oracles.Numbered(8, record, damaged=(3,)), scorer=Likelihood())
    with pytest.raises(UserError, match="group 'pair 1' has 1 sound records, not two"):
        damaged.run(sees(knows))


def test_winoground_scores():
    own, half, tie = np.array([[2, 1], [0, 3]]), np.array([[2, 1], [3, 4]]), np.ones((2, 2))
    found = winoground([own.astype(float), half.astype(float), tie])
    assert found["text"].tolist() == [True, True, False]
    assert found["image"].tolist() == [True, False, False]
    assert found["group"].tolist() == [True, False, False]


def test_equal_scores_count_as_wrong():
    scores = np.array([[1.0, 1.0, 0.0], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, -np.inf, -np.inf]])
    assert chosen(scores, np.array([0, 0, 1, 0])).tolist() == [1, 0, 0, 0]


def test_the_gap_between_groups(contract):
    """Pictures in one context are all recognised, in the other every second one."""
    sees = lambda n, text: float(int(text[-1]) == (n + (n % 4 == 1)) % 3)  # noqa: E731
    oracle = oracles.Oracle(contract, log_likelihood=sees)
    texts = tuple(f"a {i}" for i in range(3))

    def record(i):
        return {"label": i % 3, "place": [("snow", "sand")[i % 2] if i != 11 else "moon"]}

    inner = Choice(oracles.Numbered(12, record, damaged=(2,)), Options(texts), Likelihood())
    result = GroupGap(inner, "place", smallest=2).evaluate(oracle, 0)
    values = result.values
    sand = np.mean([i % 4 != 1 for i in range(1, 11, 2)])
    assert values["accuracy_snow"] == 1 and values["accuracy_sand"] == pytest.approx(sand)
    assert values["accuracy_worst"] == pytest.approx(sand)
    assert values["accuracy_gap"] == pytest.approx(1 - sand)
    assert values["groups"] == 2 and "accuracy_moon" not in values
    assert values["accuracy"] == inner.run(oracle)["accuracy"]
    assert result.protocol["groups by"] == "place" and result.protocol["prefix"] == ""
    bounded = run_all({"gap": GroupGap(inner, "place")}, oracle, bootstrap=20)
    assert bounded["gap/accuracy_worst_low"] <= bounded["gap/accuracy_worst"]
    with pytest.raises(UserError, match="'examples' is no mean over images: those are accuracy"):
        GroupGap(inner, "place", ("examples",)).run(oracle)
    with pytest.raises(UserError, match="'n0' has nothing in 'where'"):
        GroupGap(inner, "where").run(oracle)


def test_statistics_over_groups():
    group = np.array([0, 0, 1, 1, 3])
    right = np.array([1.0, 1.0, 1.0, 0.0, 0.0])
    ones = np.ones(5)
    assert Worst(right, ones, group).value() == 0 and Gap(right, ones, group).value() == 1
    assert AllRight(right, group).value() == pytest.approx(1 / 3)
    drawn = np.array([1, 0, 2, 0, 0])  # the wrong ones are not drawn, nor is the last group
    assert AllRight(right, group)(drawn) == 1 and Gap(right, ones, group)(drawn) == 0


def test_negatives_need_texts(contract):
    with pytest.raises(UserError, match="'n0' has nothing in 'negatives'"):
        Choice(oracles.Numbered(2), Negatives()).run(oracles.Oracle(contract))


def test_texts_longer_than_the_model_reads(contract, caplog):
    """Cut ones are counted beside the number and warned of once; no two may become one."""
    short = dataclasses.replace(contract, max_len=8)
    oracle = oracles.Oracle(short, log_likelihood=lambda n, text: float("red" in text))
    source = oracles.Numbered(
        4,
        lambda i: {
            "captions": [f"a red circle {'and a star ' * i}"],
            "negatives": [f"a blue circle {'and a star ' * i}"],
        },
    )
    evaluator = Choice(source, scorer=Likelihood(), batch_size=2)
    texts = [f"a {c} circle {'and a star ' * i}" for i in range(4) for c in ("red", "blue")]
    long = [text for text in texts if len(short.tokenizer.encode(text)) > 8 - 2]  # bos and eos
    assert 0 < len(long) < 8
    result = evaluator.evaluate(oracle, 0)
    assert result.values["accuracy"] == 1
    assert result.protocol["texts cut"] == f"{len(long)} of 8 after 8 tokens"
    warned = [r.getMessage() for r in caplog.records if "cut" in r.getMessage()]
    assert len(warned) == 1 and repr(long[0]) in warned[0]
    whole = oracles.Oracle(contract, log_likelihood=oracle.log_likelihood)
    assert "texts cut" not in evaluator.evaluate(whole, 0).protocol
    same = oracles.Numbered(
        2,
        lambda i: {
            "captions": ["a blue circle and a star and a red star"],
            "negatives": ["a blue circle and a star and a red moon"],
        },
    )
    for scorer in (Likelihood(), Similarity()):
        with pytest.raises(
            UserError, match="'a blue .* are the same text to the model, which cuts"
        ):
            Choice(same, scorer=scorer).run(oracle)
    with pytest.raises(UserError, match="are the same text to the model"):
        Choice(same, prefix="a red star and ", scorer=Likelihood()).run(oracle)
