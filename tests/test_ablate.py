"""Ablations: arms over seeds, resumed, and a table that equals ten lines."""

import json

import numpy as np
import pytest
import scipy.stats

from big_mm import ablate, spec
from big_mm.report.table import Row
from tests.training import runs, toy


@pytest.fixture
def config_file(tmp_path):
    """Two arms, which differ in the learning rate."""
    made = runs.config(tmp_path / "data", evaluators={"size": spec.spec(toy.Size)})
    file = tmp_path / "config.py"
    file.write_text(
        "from big_mm import spec\n"
        f"TEXT = {spec.to_json(made)!r}\n"
        "VARIANTS = ('quick', 'still')\n"
        "def get_config(arg='quick'):\n"
        "    config = spec.from_json(TEXT, trusted=('big_mm', 'tests'))\n"
        "    config.optimizer.learning_rate = {'quick': 3e-3, 'still': 1e-9}[arg]\n"
        "    return config\n"
    )
    return str(file)


def test_arms_are_trained_once_and_compared(config_file, tmp_path, capfd):
    folder = tmp_path / "out"
    command = ["--config", config_file, "--workdir", str(folder), "--seeds", "3"]
    assert ablate.main([*command, "--config.steps=4"]) == 0
    assert capfd.readouterr().out.count("] ") == 2
    values = {
        arm: json.loads((folder / f"{arm}-3" / "evaluation.json").read_text())["size/norm"]
        for arm in ("quick", "still")
    }
    found = json.loads((folder / "ablation.json").read_text())["size/norm"]
    assert found["values"] == {arm: [value] for arm, value in values.items()}
    difference = values["quick"] - values["still"]
    assert found["differences"]["still"]["value"] == pytest.approx(difference)
    assert (folder / "ablation.md").read_text().startswith("|  | `quick` | `still` | `quick` - ")
    assert "<svg" in (folder / "ablation.svg").read_text()
    # What is finished stays; what is not goes on; what is another run is refused.
    (folder / "still-3" / "evaluation.json").unlink()
    assert ablate.main([*command, "--config.steps=4"]) == 0
    assert capfd.readouterr().out.count("] ") == 1
    assert ablate.main([*command, "--config.batch_size=8"]) == 2
    assert "batch_size: 16 there, 8 now" in capfd.readouterr().err


def test_a_difference_is_a_paired_t_interval():
    ours, theirs = np.array([0.5, 0.7, 0.9]), np.array([0.4, 0.75, 0.6])
    found = ablate.Difference.of(ours - theirs, lower_is_better=False)
    low, high = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [low, high], rtol=1e-12)
    assert (found.better, found.seeds) == (2, 3)
    assert ablate.Difference.of(ours - theirs, lower_is_better=True).better == 1
    one = ablate.Difference.of(np.array([0.1]), False)
    assert (one.value, one.low, one.better) == (0.1, None, 1)


@pytest.mark.parametrize(
    ("evaluators", "labels"),
    [
        ({"at_home": "", "abroad": ""}, ["CIDEr (at home)", "CIDEr (abroad)"]),
        ({"captioning": "", "captioning_unseen": "unseen"}, ["CIDEr", "CIDEr (unseen)"]),
    ],
)
def test_evaluators_of_one_kind_are_told_apart(evaluators, labels):
    shared = {"metric": "cider", "value": 1.0, "chance": None, "low": None, "high": None}
    shared |= {"protocol": {}, "label": "CIDEr", "text": "", "unit": "score", "family": ""}
    shared |= {"headline": True, "lower_is_better": False}
    rows = [Row(evaluator=name, variant=variant, **shared) for name, variant in evaluators.items()]
    made = ablate.to_markdown([ablate.Line(row, {"arm": [1.0]}, {}) for row in rows])
    assert [line.split(" | ")[0] for line in made.splitlines()[2:]] == [f"| {x}" for x in labels]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.stepz=3"], "did you mean 'steps'"),
        (["--metrics", "recall/r@1"], "'recall/r@1' is of none of the evaluators size"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    config_file, tmp_path, capsys, arguments, message
):
    folder = tmp_path / "out"
    assert ablate.main(["--config", config_file, "--workdir", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()
