"""The command that scores files of captions: both forms of both files, and what is refused."""

import json
import pathlib

import pytest

from big_mm.metrics import captioning

CASES = json.loads((pathlib.Path(__file__).parent / "golden" / "coco_scores.json").read_text())
CASE = CASES["captions"]


@pytest.fixture
def score(tmp_path, capsys):
    """Runs the command on files of these contents: its status, and what it printed."""

    def run(references, predictions, *options):
        paths = []
        for name, content in (("references", references), ("predictions", predictions)):
            paths.append(tmp_path / f"{name}.json")
            text = content if isinstance(content, str) else json.dumps(content)
            paths[-1].write_text(text)
        arguments = ["--references", str(paths[0]), "--predictions", str(paths[1]), *options]
        status = captioning.main(arguments)
        said = capsys.readouterr()
        return status, said.err if status else json.loads(said.out)

    return run


def plain():
    references = {f"image {i}": captions for i, captions in enumerate(CASE["references"])}
    return references, {f"image {i}": caption for i, caption in enumerate(CASE["predictions"])}


def coco():
    count = len(CASE["predictions"])
    annotations = [
        {"image_id": i, "id": 100 * i + k, "caption": caption}
        for i, captions in enumerate(CASE["references"])
        for k, caption in enumerate(captions)
    ]
    references = {"images": [{"id": i} for i in range(count)], "annotations": annotations}
    results = [{"image_id": i, "caption": c} for i, c in enumerate(CASE["predictions"])]
    return references, results[::-1]


@pytest.mark.parametrize("form", [plain, coco])
def test_files_of_both_forms_have_the_official_scores(score, form, tmp_path):
    out, rows = tmp_path / "out.json", tmp_path / "rows.json"
    status, printed = score(*form(), "--out", str(out), "--per_image", str(rows))
    assert status == 0 and printed.pop("images") == len(CASE["predictions"])
    assert printed == pytest.approx(CASE["scores"], rel=0, abs=1e-12)
    assert json.loads(out.read_text())["cider"] == printed["cider"]
    by_image = list(json.loads(rows.read_text()).values())
    for name in ("cider", "rouge_l", *(f"bleu_{n}" for n in range(1, 5))):
        assert [row[name] for row in by_image] == pytest.approx(CASE[name], abs=1e-12)


def test_forms_may_be_mixed(score):
    references, _ = coco()
    predictions = {str(i): caption for i, caption in enumerate(CASE["predictions"])}
    assert score(references, predictions)[1]["cider"] == pytest.approx(CASE["scores"]["cider"])


def test_a_subset_is_scored_only_if_asked_for(score):
    references, predictions = plain()
    kept = dict(list(predictions.items())[:9])
    status, error = score(references, kept)
    assert status == 2 and "no prediction for image image 9 (and " in error
    status, printed = score(references, kept, "--subset")
    expected = captioning.score(CASE["predictions"][:9], CASE["references"][:9])
    assert status == 0 and printed == expected | {"images": 9}


@pytest.mark.parametrize(
    "references, predictions, message",
    [
        ({"a": ["x"]}, {"a": "x", "b": "y", "c": "z"}, "predicted image b (and 1 more)"),
        ({"a": ["x"], "b": []}, {"a": "x", "b": "y"}, "no reference caption for image b"),
        ({"images": [{"id": 7}], "annotations": []}, [], "no reference caption for image 7"),
        ({"a": "x"}, {"a": "x"}, "image a has no list of captions"),
        ({"a": ["x", 3]}, {"a": "x"}, "image a has no list of captions"),
        ({"a": ["x"]}, {"a": ["x"]}, "image a has no caption but"),
        ({"a": ["x"]}, '{"a": "x", "a": "y"}', "'a' is there twice"),
        (
            {"1": ["x"]},
            [{"image_id": 1, "caption": "x"}, {"image_id": "1", "caption": "y"}],
            "image 1 has more than one prediction",
        ),
        ({"1": ["x"]}, [{"image_id": 1}], "no 'caption'"),
        ({"1": ["x"]}, [{"caption": "x"}], "no 'image_id'"),
        (["x"], {}, "references are"),
        ({"a": ["x"]}, "x", "is no JSON"),
        ({"a": ["x"]}, "3", "predictions are"),
        ({}, {}, "no image to score"),
    ],
)
def test_what_is_refused(score, references, predictions, message):
    status, error = score(references, predictions)
    assert status == 2 and error.startswith("error: ") and message in error
    assert error.count("\n") == 1


def test_an_absent_file_is_named(tmp_path, capsys):
    path = str(tmp_path / "absent.json")
    assert captioning.main(["--references", path, "--predictions", path]) == 2
    assert path in capsys.readouterr().err
