"""The report is one valid page that needs nothing else and leaves out what is not there."""

import html.parser
import io
import json
import re
import sys

import numpy as np
import pytest
import rich.console

sys.path.insert(0, __file__.rsplit("/", 1)[0] + "/evaluators")
import oracles  # noqa: E402

from big_mm import report  # noqa: E402
from big_mm.evaluators import (  # noqa: E402
    AttributeShares,
    Captioning,
    ClusterBias,
    GroundingGap,
    PromptBias,
    Retrieval,
    SetDistances,
    ZeroShot,
    run_all,
)
from big_mm.report import __main__ as command  # noqa: E402
from big_mm.report import curves, examples, sets  # noqa: E402
from big_mm.spec import UserError  # noqa: E402

NAMES = ("a red circle", "a red star", "a blue circle", "a blue star")


def features(i):
    return {"label": i % 4, "captions": [NAMES[i % 4], f"<b>one</b> {NAMES[i % 4][2:]}"]}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a run")
    oracle = oracles.Oracle(
        oracles.contract(tmp_path_factory.mktemp("contract")),
        image_vector=lambda n: np.eye(4)[(n + (n == 5)) % 4] + np.eye(4)[0] * (n == 2),
        text_vector=lambda text: np.eye(4)[next(i for i, x in enumerate(NAMES) if x[2:] in text)],
        says=lambda n: NAMES[0] if n % 2 else "",
        log_likelihood=lambda n, caption: -1.0 if NAMES[n % 4] == caption else -4.0,
    )
    some, others = oracles.Numbered(9, features), oracles.Numbered(2, features)
    evaluators = {
        "zero_shot": ZeroShot(some, NAMES),
        "zero_shot_unseen": ZeroShot(others, NAMES),
        "retrieval": Retrieval(some),
        "captioning": Captioning(some),
        "grounding": GroundingGap(some),
    }
    metrics = run_all(evaluators, oracle, 40, folder)
    (folder / "evaluation.json").write_text(json.dumps(metrics))
    lines = [
        {"step": s, "loss/captioning": 9.0 - s / 10, "baseline/captioning": np.log(512)}
        | {"learning_rate": 1e-3, "images_per_second": 100.0 + s, "zero_shot/accuracy": s / 40}
        for s in (10, 20, 30, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"batch_size": 32, "objective": {"model": {"_class_": "some.module.CoCa"}}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Page(html.parser.HTMLParser):
    """Collects text and references, and checks that tags are closed in order."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.references = [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.references += [v for k, v in attributes if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "pre"):
            self.text += " " + data


def read(folder):
    return Page(report.write(folder).read_text())


def test_the_page_is_self_contained_and_says_everything(workdir):
    page = read(workdir)
    assert all(r.startswith(("data:image/", "#")) for r in page.references)
    assert not re.search(r"https?://", page.text)
    for said in (
        "CoCa; 40 steps of 32 image-text pairs (1,280 pairs seen); 130 images a second",
        "Zero-shot accuracy", "chance 25.0 %", "seen", "unseen", "Image to text R@1", "CIDEr",
        "Grounding gap", "Captioning loss", "(empty)", "one</b> red circle", "9 images",
    ):  # fmt: skip
        assert said in " ".join(page.text.split()), said
    assert "<b>one</b>" in page.text  # shown as text, not obeyed


def test_the_same_folder_gives_the_same_bytes(workdir):
    assert report.write(workdir).read_bytes() == report.write(workdir).read_bytes()


def test_what_is_missing_is_left_out(workdir, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"mine/score": 0.5, "mine/score_chance": 0.25}')
    page = read(tmp_path)
    assert "score" in page.text and "chance 0.25" in page.text and "Training" not in page.text
    with pytest.raises(UserError, match="no evaluation"):
        report.write(tmp_path / "nothing")


def test_a_run_that_was_cut_off_shows_its_latest_evaluation(workdir, tmp_path):
    (tmp_path / "artifacts").symlink_to(workdir / "artifacts")
    assert [row.value for row in report.headline(tmp_path)] == [
        row.value for row in report.headline(workdir)
    ]


def test_rows_pair_metrics_with_chance_and_variants(workdir):
    rows = {(r.evaluator, r.metric): r for r in report.headline(workdir)}
    seen, unseen = rows["zero_shot", "accuracy"], rows["zero_shot_unseen", "accuracy"]
    assert (seen.family, seen.variant) == ("zero_shot", "")
    assert (unseen.family, unseen.variant) == ("zero_shot", "unseen")
    assert (seen.value, seen.chance) == (pytest.approx(7 / 9), 0.25)
    assert not any(row.metric.endswith("_chance") for row in rows.values())
    families = list(dict.fromkeys(r.family for r in report.headline(workdir)))
    assert families == ["zero_shot", "retrieval", "captioning", "grounding"]


def test_the_table_for_the_terminal(workdir):
    console = rich.console.Console(file=io.StringIO(), width=100)
    report.print_table(report.headline(workdir), console)
    lines = console.file.getvalue().splitlines()
    assert lines[1].split() == ["seen", "chance", "unseen", "chance"]
    accuracy = next(line for line in lines if "Zero-shot" in line)
    assert accuracy.split()[2:] == ["77.8", "%", "25.0", "%", "100.0", "%", "25.0", "%"]


def test_classes_that_form_a_grid_are_shown_as_one():
    rows, columns, cells = examples.as_grid(NAMES)
    assert (rows, columns) == (["red", "blue"], ["circle", "star"])
    assert cells["blue", "star"] == 3
    assert examples.as_grid(("airplane", "bird")) is None
    assert examples.as_grid(("red circle", "blue star", "red star")) is None


def test_unseen_classes_are_outlined(workdir):
    text = report.write(workdir).read_text()
    heat = text[text.index('class="heat"') :]
    # Both evaluators have examples of the first two classes; seen ones come first.
    assert heat[: heat.index("</table>")].count("<td") == 4


def test_only_results_above_the_right_one_are_mistakes():
    verdicts = [kind for kind, _ in examples._verdicts([False, True, False])]
    assert verdicts == ["bad", "good", "note"]
    assert [kind for kind, _ in examples._verdicts([False, False])] == ["bad", "bad"]


def test_answers_are_shown_with_what_asked():
    shown = {"image": "data:asked", "text": "is it <red>?", "truth": ["yes (9)"]}
    said = {"results": [{"text": "no", "right": False}]}
    found = {"results": [{"image": "data:found", "right": True}]}
    page = examples.queries({"queries": [shown | said, shown | found]})
    assert page.count("data:asked") == 2 and "is it &lt;red&gt;?" in page
    assert page.count("truth: yes (9)") == 1 and "data:found" in page


def test_wrong_words_are_marked_as_words():
    marked = examples._marked("a red star, Red!", ["red"])
    assert marked == "a <u>red</u> star, <u>Red</u>!"
    assert examples._marked("reddish <i>", ["red"]) == "reddish &lt;i&gt;"


def test_of_several_depths_the_first_is_drawn(workdir):
    rows = [row for row in report.headline(workdir) if row.family == "retrieval"]
    lines = [{"step": s} | {f"retrieval/{r.metric}": 0.5 for r in rows} for s in (1, 2)]
    titles = [panel.title for panel in curves.history(lines, rows)]
    assert titles == ["Image to text R@1, %", "Text to image R@1, %"]


def test_the_command(workdir, capsys, tmp_path):
    assert command.main(["--workdir", str(workdir)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert command.main(["--workdir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_sets_of_images_are_drawn(tmp_path_factory):
    """Shares, distances, clusters and unasked objects, whatever sets are called."""
    folder = tmp_path_factory.mktemp("bias")
    names = ("a <nurse>", "pilot", "كاتب")
    oracle = oracles.Oracle(
        oracles.contract(tmp_path_factory.mktemp("words")),
        image_vector=lambda n: np.eye(4)[n % 2] + 0.1 * n * np.eye(4)[2] + 0.01 * n % 7,
        text_vector=lambda text: np.eye(4)[int("red" in text)] + 0.1,
        says=lambda n: "a circle <i>" if n % 3 else "a star",
    )
    source = oracles.Numbered(24, lambda i: {"group": [names[i % 3]], "prompt": ["a star"]})
    suite = {
        "shares": AttributeShares(source, ("red & hot", "blue")),
        "distances": SetDistances(source, names[0]),
        "clusters": ClusterBias(source, names[:2], clusters=3),
        "objects": PromptBias(source),
    }
    run_all(suite, oracle, 0, folder)
    page = read(folder)
    said = " ".join(page.text.split())
    assert all(said.count(name) >= 2 for name in names)
    assert "red & hot" in said and "Frechet distance of each set's" in said
    assert "Each column is a cluster" in said and "circle 16" in said
    many = {f"set {i}": {"a": i / 100, "b": 1 - i / 100} for i in range(40)}
    page = Page(sets.shares({"reference": {"a": 0.5, "b": 0.5}, "sets": many}))
    assert "30 of 40 are shown" in page.text and "set 0" in page.text and "set 39" not in page.text
    assert "No object was shown" in sets.objects({"unasked": {}})
