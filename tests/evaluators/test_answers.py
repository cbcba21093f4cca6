"""Questions and statements: answers by ranking and by generation, in the benchmarks' own files."""

import dataclasses
import json

import numpy as np
import oracles
import pytest
from PIL import Image

from big_mm.data.contract import Decoding
from big_mm.evaluators import run_all
from big_mm.evaluators.annotations import JsonLines
from big_mm.evaluators.answering import Generation, Ranking
from big_mm.evaluators.scoring import Likelihood
from big_mm.evaluators.statements import ENTAILMENT, Statements
from big_mm.evaluators.vqa import VQA, DataFile, RecordQuestions, VqaFiles
from big_mm.metrics import vqa
from big_mm.spec import UserError

COLOURS = ("red", "green", "blue", "white")
WHO = ["yes"] * 6 + ["no"] * 4


@pytest.fixture(scope="module")
def contract(tmp_path_factory):
    return oracles.contract(tmp_path_factory.mktemp("contract"))


def asked(i):
    """Eight of ten people name the colour; every third question is a yes or no."""
    if i % 3 == 0:
        return {"question": ["red"], "answers": WHO, "answer_type": [b"yes/no"]}
    people = [COLOURS[i % 4]] * 8 + ["ring", "star"]
    return {"question": ["white"], "answers": people, "answer_type": ["other"], "question_id": [i]}


def likes(n, text):
    """Prefers the true colour, and "no" to "yes", which people said less often."""
    answer = text.split()[-1]
    return (
        -1.0 if answer in (COLOURS[n % 4], "no") and not (n % 3 == 0) ^ (answer == "no") else -5.0
    )


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_vqa_by_ranking(contract, batch_size):
    source = oracles.Numbered(13, asked, damaged=(4,))
    evaluator = VQA(source, answerer=Ranking(("yes", "no", *COLOURS)), batch_size=batch_size)
    result = evaluator.evaluate(oracles.Oracle(contract, log_likelihood=likes), 0)
    sound = [i for i in range(13) if i != 4]
    own = [vqa.accuracy("no", WHO) if i % 3 == 0 else 1.0 for i in sound]
    assert result.values["accuracy"] == pytest.approx(np.mean(own))
    assert result.values["accuracy_yes_no"] == pytest.approx(vqa.accuracy("no", WHO))
    assert result.values["accuracy_other"] == 1.0
    assert result.values["questions"] == result.values["images"] == len(result.keys) == 12
    assert result.protocol["candidates"] == 6 and "text" in result.protocol["answers"]
    assert 0 < result.values["accuracy_chance"] < result.values["accuracy"]


def test_vqa_by_generation_cuts_the_prompt_off(contract):
    source = oracles.Numbered(8, lambda i: {"question": ["star"], "answers": [COLOURS[i % 4]] * 10})
    oracle = oracles.Oracle(contract, says=lambda n: COLOURS[n % 4] if n else "a ring")
    evaluator = VQA(source, answerer=Generation(Decoding(max_len=8)), prompt="a {} ")
    result = evaluator.evaluate(oracle, 0)
    assert result.values["accuracy"] == 7 / 8
    assert result.artifacts["answers"]["queries"][0]["results"] == [
        {"text": "a ring", "right": False}
    ]
    assert result.protocol["decoding"]["max_len"] == 8


def test_the_mean_over_tokens_ranks_otherwise(contract):
    oracle = oracles.Oracle(
        contract, log_likelihood=lambda n, text: -1.0 * len(text.split()) ** 0.5
    )
    images, prompts = np.stack([oracles.picture(0)]), [""]
    for per, best in (("text", "a"), ("token", "a red star")):
        ranking = Ranking(("a red star", "a"), Likelihood(per))
        assert ranking(oracle, images, prompts) == [best]


@pytest.fixture
def official(tmp_path):
    """VQA's files: two questions about image 3, one about image 1."""
    questions = [
        {"question_id": 30, "image_id": 3, "question": "red"},
        {"question_id": 31, "image_id": 3, "question": "blue"},
        {"question_id": 10, "image_id": 1, "question": "red"},
    ]
    annotations = [
        {
            "question_id": q["question_id"],
            "answer_type": "number",
            "answers": [{"answer": "Two.", "answer_id": n} for n in range(10)],
        }
        for q in questions
    ]
    paths = str(tmp_path / "q.json"), str(tmp_path / "a.json")
    contents = {"questions": questions}, {"annotations": annotations}
    for path, content in zip(paths, contents, strict=True):
        with open(path, "w") as file:
            json.dump(content, file)
    return paths


def test_the_official_files_are_read_and_a_submission_is_written(contract, official, tmp_path):
    out = tmp_path / "out" / "submission.json"
    says = oracles.Oracle(contract, log_likelihood=lambda n, text: -float("2" not in text))
    source = oracles.Numbered(5)
    withheld = VqaFiles(official[0], key="n{}")
    ranked = Ranking(("1", "2"))
    result = VQA(source, withheld, ranked, submission=str(out)).evaluate(says, 0)
    assert result.values == {"questions": 3, "images": 2} and result.keys == ["n1", "n3"]
    assert json.loads(out.read_text()) == [
        {"question_id": 10, "answer": "2"},
        {"question_id": 30, "answer": "2"},
        {"question_id": 31, "answer": "2"},
    ]
    judged = VQA(source, VqaFiles(*official, key="n{}"), ranked).run(says)
    assert judged["accuracy_number"] == 0.0  # all say "Two.", so nothing is normalised


@pytest.mark.parametrize(
    "rule, expected",
    [("textvqa", 1.0), ("stvqa", 1.0), ("anls", 1.0), ("vqa", 0.0), ("chartqa", 1.0)],
)
def test_benchmarks_about_text_in_images(contract, tmp_path, rule, expected):
    """A page of DocVQA's kind: its own names for things, and its benchmark's rule."""
    path = tmp_path / "val.json"
    row = {"questionId": 7, "question": "red", "image": "3.png", "answers": ["Stop"] * 10}
    path.write_text(json.dumps({"data": [row, row | {"questionId": 8}]}))
    questions = DataFile(str(path), id="questionId", image="image", key="doc/{}")
    source = oracles.Numbered(5, lambda i: {"key": f"doc/{i}.png"})
    says = oracles.Oracle(contract, log_likelihood=lambda n, text: -float("stop" not in text))
    result = VQA(source, questions, Ranking(("stop", "go")), rule=rule).evaluate(says, 0)
    assert result.values["accuracy"] == expected and result.values["questions"] == 2
    assert result.artifacts["answers"]["queries"][0]["results"][0]["right"] == (expected > 0)
    with pytest.raises(UserError, match="entry 0 has no 'question_id'"):
        VQA(source, DataFile(str(path)), Ranking(("stop", "go"))).run(says)


def test_what_does_not_fit_together_is_named(contract, official, tmp_path):
    oracle = oracles.Oracle(contract, log_likelihood=likes)
    ranked = Ranking(("yes", "no"))
    with pytest.raises(UserError, match="question 10 has no people's answers"):
        VQA(oracles.Numbered(5), VqaFiles(official[0], key="n{}"), ranked).run(oracle)
    with pytest.raises(UserError, match="question 30 is about the image 'n3', which is not among"):
        VQA(oracles.Numbered(3), VqaFiles(*official, key="n{}"), ranked).run(oracle)
    with pytest.raises(UserError, match="no record has a question"):
        VQA(oracles.Numbered(3), VqaFiles(*official), ranked).run(oracle)
    with pytest.raises(UserError, match="needs candidates"):
        VQA(oracles.Numbered(3, asked)).run(oracle)
    with pytest.raises(UserError, match="'yes' comes up twice"):
        VQA(oracles.Numbered(3, asked), answerer=Ranking(("yes", "yes"))).run(oracle)
    with pytest.raises(UserError, match="no file .*nowhere"):
        VQA(oracles.Numbered(3), VqaFiles(str(tmp_path / "nowhere"))).run(oracle)
    content = json.loads(open(official[1]).read())["annotations"]
    for change, message in (
        (content[:2], "has no answers to question 10"),
        (content + content[:1], "question 30 comes up twice"),
        ([*content, {"question_id": 9, "answers": []}], "has no question 9"),
        ([{"question_id": 9}], "entry 0 has no 'answers'"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(change))
        files = VqaFiles(official[0], str(tmp_path / "bad.json"), key="n{}")
        with pytest.raises(UserError, match=message):
            VQA(oracles.Numbered(5), files, ranked).run(oracle)
    with pytest.raises(UserError, match="rule='okvqa'"):
        VQA(oracles.Numbered(3), rule="okvqa")
    with pytest.raises(UserError, match="submission or limit"):
        VQA(oracles.Numbered(3), submission="x", limit=2)
    assert RecordQuestions().of({"question": "a", "key": "7"})[0].id == 7


LABELS = [label for label, _ in ENTAILMENT]


def judged(i):
    return {"statement": [f"ring {i // 2}"], "answer": [LABELS[i % 3].encode()]}


@pytest.mark.parametrize("answerer", [Ranking(), Generation()])
def test_statements_are_judged_by_words(contract, answerer):
    """Right except about picture 4, about which nothing readable is said."""
    words = [word for _, word in ENTAILMENT]
    says = lambda n: "ring" if n == 4 else words[n % 3]  # noqa: E731
    likes = lambda n, text: -float(text.split()[-1] != says(n))  # noqa: E731
    oracle = oracles.Oracle(contract, says=says, log_likelihood=likes)
    source = oracles.Numbered(12, judged, damaged=(6,))
    evaluator = Statements(
        source, ENTAILMENT, answerer=answerer, prompt="{} ", consistency="statement", batch_size=4
    )
    values = evaluator.evaluate(oracle, 0).values
    sound = [i for i in range(12) if i != 6]
    right = {i: i != 4 for i in sound}
    # Ranked, nothing is unreadable: of equals the first, "yes".
    assert values["unreadable"] == (0 if isinstance(answerer, Ranking) else pytest.approx(1 / 11))
    assert values["accuracy"] == pytest.approx(np.mean(list(right.values())))
    assert values["accuracy_chance"] == pytest.approx(4 / 11)
    neutral = [right[i] for i in sound if i % 3 == 1]
    assert values["accuracy_neutral"] == pytest.approx(np.mean(neutral))
    statements = [{right[i] for i in sound if i // 2 == s} for s in range(6)]
    assert values["consistency"] == pytest.approx(np.mean([False not in s for s in statements]))


def test_wrong_label_mappings_are_refused(contract):
    oracle = oracles.Oracle(contract, log_likelihood=lambda n, text: 0.0)
    with pytest.raises(UserError, match="'n0': the label 'entailment' is none of true, false"):
        run_all({"mine": Statements(oracles.Numbered(3, judged))}, oracle)
    with pytest.raises(UserError, match="words of the labels must differ"):
        Statements(oracles.Numbered(3), (("true", "Yes."), ("false", "yes")))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_snli_ve_is_read_from_its_lines(contract, tmp_path):
    rows = [
        {"Flickr30K_ID": f"n{i % 3}", "sentence2": f"ring {i}", "gold_label": LABELS[i % 3]}
        for i in range(7)
    ]
    path = lines(tmp_path / "snli_ve.jsonl", rows)
    source = JsonLines(path, oracles.Numbered(5, damaged=(4,)), "Flickr30K_ID")
    words = [word for _, word in ENTAILMENT]
    likes = lambda n, text: -float(text.split()[-1] != words[n])  # noqa: E731
    evaluator = Statements(
        source, ENTAILMENT, statement="sentence2", label="gold_label", prompt="{} "
    )
    result = evaluator.evaluate(oracles.Oracle(contract, log_likelihood=likes), 0)
    assert result.values["accuracy"] == 1.0 and result.keys[4] == "n1#4"
    with pytest.raises(UserError, match="1 images are not among the sound records, .*'n2'"):
        JsonLines(path, oracles.Numbered(2), "Flickr30K_ID")[0]
    with pytest.raises(UserError, match="snli_ve.jsonl line 0 has no 'image'"):
        JsonLines(path, oracles.Numbered(5), "image")[0]
    (tmp_path / "bad.jsonl").write_text("{}\n[")
    with pytest.raises(UserError, match="bad.jsonl line 1 is not JSON"):
        len(JsonLines(str(tmp_path / "bad.jsonl"), oracles.Numbered(5), "image"))


class Pairs(oracles.Numbered):
    """Keys as NLVR2 has them: record 2 i + j is image j of example i."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"key": f"test1-{index // 2}-0-img{index % 2}"}


def test_nlvr2_shows_both_images_in_their_order(contract, tmp_path):
    rows = [
        {"identifier": f"test1-{i}-0-{j}", "sentence": f"star {j}", "label": str(bool(i % 2 == j))}
        for i in range(3)
        for j in range(2)
    ]
    path = lines(tmp_path / "test1.json", rows)
    halves = (r"\1-img0", r"\1-img1")
    source = JsonLines(path, Pairs(6), "identifier", r"(.*)-[0-9]+", halves)
    image = source[3]["image"]
    assert isinstance(image, Image.Image) and image.size == (32, 16) and len(source) == 6
    pixels = np.asarray(image)
    assert oracles.number_of(pixels) == 2 and oracles.number_of(pixels[:, 16:]) == 3
    swapped = dataclasses.replace(source, keys=halves[::-1])
    assert oracles.number_of(np.asarray(swapped[3]["image"])) == 3
    # Right about the second statement always, about the first when the left image is even.
    says = lambda n, text: float(("true" in text) == (n % 4 == 2 if "1" in text else True))  # noqa: E731
    evaluator = Statements(
        source,
        (("True", "true"), ("False", "false")),
        statement="sentence",
        label="label",
        prompt="{} ",
        consistency="sentence",
    )
    values = evaluator.run(oracles.Oracle(contract, log_likelihood=says))
    # Squashed, a picture's first pixel is the left image's: examples 0, 2, 4 by number.
    assert values["accuracy"] == pytest.approx((3 + 2) / 6)
    assert values["consistency"] == 1 / 2
    with pytest.raises(UserError, match="line 0: identifier 'test1-0-0-0' does not match"):
        JsonLines(path, Pairs(6), "identifier", "([a-z]*)")[0]
