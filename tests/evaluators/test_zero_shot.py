"""Zero-shot classification, with prompts of every kind, is what its papers say."""

import json

import numpy as np
import oracles
import pytest
from oracles import NAMES, classifier, labelled

from big_mm.evaluators import ZeroShot, prompts, zero_shot
from big_mm.evaluators.prompts import Templates
from big_mm.spec import UserError


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def bag_of_words(text):
    """A vector in which every word has a direction of its own."""
    rng = [np.random.default_rng(sum(map(ord, word.strip(".,")))) for word in text.split()]
    return sum(r.normal(size=64) for r in rng)


def reader(contract, image_text):
    """Pictures are what `image_text` says of their number."""
    return oracles.Oracle(contract, lambda n: bag_of_words(image_text(n)), bag_of_words)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_zero_shot_counts_every_sound_record_once(contract, batch_size):
    source = oracles.Numbered(23, labelled, damaged=(0, 6, 22))
    oracle = classifier(contract, wrong=(1, 2, 6))
    result = ZeroShot(source, NAMES, batch_size=batch_size).evaluate(oracle, 0)
    values = result.values
    assert values["accuracy"] == 18 / 20 and values["accuracy_chance"] == 1 / 4
    assert values["mean_per_class"] == pytest.approx((1 + 5 / 6 + 3 / 4 + 1) / 4)
    assert values["examples"] == 20 and "top5" not in values
    table = result.artifacts["classes"]
    assert sum(table["examples"]) == 20 and sum(table["right"]) == 18
    assert table["confusions"] == [
        {"true": "one", "predicted": "two", "count": 1, "of": 6},
        {"true": "two", "predicted": "three", "count": 1, "of": 4},
    ]
    assert [m["true"] for m in table["mistakes"]] == ["one", "two"]


def test_zero_shot_takes_names_from_the_records(contract):
    source = oracles.Numbered(8, lambda i: labelled(1 + 2 * (i % 2)))
    result = ZeroShot(source).evaluate(classifier(contract, wrong=range(0, 8, 2)), 0)
    assert result.artifacts["classes"]["classnames"] == ["one", "three"]
    assert result.metrics["accuracy_chance"] == 1 / 2


def test_a_class_is_the_normalised_mean_of_normalised_prompts(contract):
    """Two prompts of different directions: their mean decides, not the longer vector."""
    vectors = {"a x": (1, 0, 0), "the x": (0, 1, 0), "a y": (0.8, 0, 0.6), "the y": (0, 0.2, 0.9)}
    oracle = oracles.Oracle(
        contract, lambda n: (1, 1, 0), lambda text: np.array(vectors[text]) * (1 + len(text))
    )
    source = oracles.Numbered(1, lambda i: {"label": 0})
    metrics = ZeroShot(source, ("x", "y"), Templates(("a {}", "the {}"))).run(oracle, 0)
    assert metrics["accuracy"] == 1.0


def test_zero_shot_refuses_records_it_cannot_judge(contract):
    oracle = classifier(contract)
    with pytest.raises(UserError, match="'n0' has no label"):
        ZeroShot(oracles.Numbered(3), NAMES).run(oracle, 0)
    with pytest.raises(UserError, match="label 3 has no name among the 2 classnames"):
        ZeroShot(oracles.Numbered(4, labelled), NAMES[:2]).run(oracle, 0)
    with pytest.raises(UserError, match="records have no class_name"):
        ZeroShot(oracles.Numbered(4, lambda i: {"label": 0})).run(oracle, 0)
    with pytest.raises(UserError, match="must hold {} exactly once"):
        ZeroShot(oracles.Numbered(4, labelled), NAMES, Templates(("a photo",))).run(oracle, 0)
    unread = oracles.Oracle(
        contract, lambda n: (1.0, 0.0), lambda text: (1.0, np.nan if text == "two" else 0.0)
    )
    with pytest.raises(UserError, match="embedding of 'two' is not finite.*contexts of classes"):
        ZeroShot(oracles.Numbered(4, labelled), NAMES).run(unread, 0)


def test_prompts_are_a_component():
    with pytest.raises(UserError, match="must be a component such as .*Templates"):
        ZeroShot(oracles.Numbered(4, labelled), NAMES, ("a photo of a {}",))


def test_one_name_for_two_classes_is_refused(contract):
    with pytest.raises(UserError, match="classes 1 and 3 are both called 'crane'"):
        ZeroShot(oracles.Numbered(4, labelled), ("a", "crane", "b", "crane")).run(
            classifier(contract), 0
        )


def test_lists_are_read_from_files(contract, tmp_path):
    lines = write(tmp_path / "names.txt", "\n".join(NAMES) + "\n\n")
    by_set = write(tmp_path / "names.json", {"mine": list(NAMES), "other": ["x"]})
    templates = write(tmp_path / "templates.json", {"mine": ["a photo of a {c}", "{c}"]})
    source = oracles.Numbered(8, labelled)
    for names in (lines, f"{by_set}#mine"):
        evaluator = ZeroShot(source, names, Templates(f"{templates}#mine"))
        result = evaluator.evaluate(classifier(contract, wrong=(3,)), 0)
        assert result.values["accuracy"] == 7 / 8
        assert result.protocol["templates"] == ["a photo of a {c}", "{c}"]
    for names, message in (
        (by_set, "is not a list of texts .name one of mine, other"),
        (f"{by_set}#theirs", "has no 'theirs'; it has mine, other"),
        (str(tmp_path / "absent.txt"), "no file .*absent.txt"),
        (write(tmp_path / "broken.json", "["), "broken.json is not JSON"),
    ):
        with pytest.raises(UserError, match=message):
            ZeroShot(source, names).run(classifier(contract), 0)


def test_sentences_of_each_class_equal_templates_where_they_coincide(contract, tmp_path):
    templates = ("a {} here", "one {}", "{}")
    same = {name: prompts.fill(templates, name) for name in NAMES}
    source = oracles.Numbered(40, labelled)
    oracle = reader(contract, lambda n: f"{NAMES[n % 4]} {NAMES[n % 3]} {n % 7}")
    path = write(tmp_path / "sentences.json", same)
    expected = ZeroShot(source, NAMES, Templates(templates)).run(oracle, 0)
    assert ZeroShot(source, NAMES, prompts.Sentences(path)).run(oracle, 0) == expected
    halves = write(tmp_path / "halves.json", {k: v[:1] for k, v in same.items()})
    both = prompts.Sentences(halves, templates[1:])
    assert ZeroShot(source, NAMES, both).run(oracle, 0) == expected
    with pytest.raises(UserError, match="no entry for the class 'five'"):
        prompts.Sentences(path).texts(["five"])


def test_a_descriptors_score_is_the_mean_similarity(contract, tmp_path):
    table = {"zero": ["red skin", "a tail"], "one": [], "two": ["has wings"], "three": ["may fly"]}
    described = prompts.Descriptors(write(tmp_path / "descriptors.json", table))
    texts = described.texts(NAMES)
    assert texts[0] == ["zero, which has red skin", "zero, which is a tail"]
    assert texts[1:] == [["one"], ["two, which has wings"], ["three, which may fly"]]
    oracle = reader(contract, lambda n: f"{n} tail wings fly"[: 3 + n])
    classes = zero_shot.class_embeddings(oracle, texts, renormalize=False)
    image = np.random.default_rng(0).normal(size=64)
    for row, own in zip(classes, texts, strict=True):
        similarities = [image @ oracles.unit(bag_of_words(text)) for text in own]
        assert image @ row == pytest.approx(np.mean(similarities), abs=1e-6)


def test_by_another_similarity_a_class_scores_the_mean_of_its_texts(contract, tmp_path):
    table = {"zero": ["red skin", "a tail"], "one": [], "two": ["has wings"], "three": ["may fly"]}
    described = prompts.Descriptors(write(tmp_path / "descriptors.json", table))
    assert not described.renormalize
    source = oracles.Numbered(60, labelled)
    oracle = reader(
        contract, lambda n: f"{NAMES[n % 4]} {NAMES[n % 3]} {n % 7} red tail wings"[: 3 + n]
    )
    mean = ZeroShot(source, NAMES, described).run(oracle, 0)
    assert 0.3 < mean["accuracy"] < 0.9
    other = ZeroShot(source, NAMES, described, similarity=oracles.Opposed())
    assert other.run(oracle, 0) == mean
    with pytest.raises(UserError, match="second_look needs the cosine"):
        ZeroShot(source, similarity=oracles.Opposed(), second_look=prompts.Differential("x.json"))


def test_descriptions_tell_classes_with_opaque_names(contract, tmp_path):
    looks = {"zero": "red round", "one": "blue round", "two": "red square", "three": "blue square"}
    source = oracles.Numbered(16, labelled)
    oracle = reader(contract, lambda n: looks[NAMES[n % 4]])
    path = write(tmp_path / "looks.json", {k: [v] for k, v in looks.items()})
    named = ZeroShot(source, NAMES).run(oracle, 0)
    described = ZeroShot(source, NAMES, prompts.Descriptors(path)).run(oracle, 0)
    assert described["accuracy"] == 1 > named["accuracy"]


def test_the_most_frequent_name_is_taken(contract, tmp_path):
    names = {"zero": ["naught", "zero", "nil"], "one": ["one", "unity"], "two": ["pair"]}
    said = ["Zero dogs", "zeroes", "nil", "a zero, a zero", "unity", "Unity of one", "NIL", "zero"]
    path = write(tmp_path / "names.json", names)
    captions = oracles.Numbered(8, lambda i: {"captions": [said[i]]}, damaged=(7,))
    chosen = prompts.MostFrequentName(path, captions)
    assert chosen.texts(["zero", "one", "two"]) == [["zero"], ["unity"], ["pair"]]
    counts = prompts.count_names(["zero", "nil", "naught"], said)
    assert counts == {"zero": 3, "nil": 2}


def test_a_second_look_orders_only_the_likeliest(contract, tmp_path):
    """Look-alikes differ in one word that their names do not tell."""
    looks = {"zero": "striped cat", "one": "spotted cat", "two": "striped dog", "three": "bird"}
    names = tuple(f"{look.split()[-1]} {name}" for name, look in looks.items())
    tells = {
        names[0]: {names[1]: ["a striped cat"], names[2]: ["a cat"]},
        names[1]: {names[0]: ["a spotted cat"]},
        names[2]: {names[0]: ["a dog"]},
    }
    path = write(tmp_path / "pairs.json", tells)
    source = oracles.Numbered(12, labelled)
    oracle = reader(contract, lambda n: looks[NAMES[n % 4]])
    plain = ZeroShot(source, names, ks=(2, 3)).run(oracle, 0)
    for k in (1, 2, 3):
        evaluator = ZeroShot(source, names, second_look=prompts.Differential(path, k), ks=(2, 3))
        again = evaluator.run(oracle, 0)
        assert again["top3"] == plain["top3"]
        if k == 1:
            assert again == plain
        if k == 2:
            assert again["top2"] == plain["top2"]
            assert again["accuracy"] == 1 > plain["accuracy"]
    assert prompts.Differential(path).texts(names[1], names[2]) == []
