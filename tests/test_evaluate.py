"""A checkpoint gets the same numbers alone as in training, and refuses what is not its own."""

import io
import json

import pytest
import tiny
from PIL import Image

import big_mm
from big_mm import evaluate, spec
from big_mm.data import examples
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource, TFRecordWriter
from big_mm.evaluators import Retrieval, ZeroShot, run_all
from big_mm.training import checkpoint


def evaluators(shards):
    source = spec.spec(TFRecordSource, shards=str(shards), schema=spec.spec(Schema, label="label"))
    return {
        "zero_shot": spec.spec(ZeroShot, source=source, classnames=tiny.TEXTS),
        "retrieval": spec.spec(Retrieval, source=source, ks=(1, 2)),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir whose checkpoint names evaluators over 11 records."""
    folder = tmp_path_factory.mktemp("evaluate")
    with TFRecordWriter(folder / "test.tfrecord") as writer:
        for i, image in enumerate(tiny.images(11)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            record = {"image": file.getvalue(), "caption": tiny.TEXTS[i], "key": f"r{i}"}
            writer.write(examples.encode(record | {"label": i}))
    config = tiny.config(folder)
    built = spec.build(config)
    config.evaluators = evaluators(folder / "test.tfrecord")
    files = {
        checkpoint.CONFIG: spec.to_json(spec.resolve(config)).encode(),
        checkpoint.TOKENIZER: tiny.tokenizer_bytes(),
    }
    store = checkpoint.Store(folder / "run" / "checkpoints", checkpoint.Checkpoints(), files)
    params = tiny.parameters(built["objective"].model, built["contract"])
    store.save(7, {"params": big_mm.trees.flatten(params)})
    store.close()
    return folder / "run"


def config_file(run):
    path = run.parent / "other.py"
    path.write_text(
        "import test_evaluate, tiny, pathlib\n"
        "from ml_collections import ConfigDict\n"
        "def get_config(arg=''):\n"
        f"    folder = pathlib.Path({str(run.parent)!r})\n"
        "    config = tiny.config(folder)\n"
        "    config.contract.image_size = 8 if arg else tiny.IMAGE_SIZE\n"
        "    config.evaluators = {'mine': test_evaluate.evaluators(folder / 'test.tfrecord')"
        "['zero_shot']}\n"
        "    return config\n"
    )
    return str(path)


def test_the_numbers_are_those_of_training(run, tmp_path, capsys):
    out = tmp_path / "scores.json"
    assert evaluate.main(["--checkpoint", str(run), "--out", str(out)]) == 0
    config = checkpoint.load_config(run)
    expected = run_all(spec.build(config.evaluators), big_mm.load(run))
    assert json.loads(out.read_text()) == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert "Zero-shot accuracy" in printed and "6.2 %" in printed  # chance among 16


def test_a_report_of_an_evaluation(run, tmp_path):
    metrics, _ = evaluate.evaluate(run, only=("zero_shot",), workdir=tmp_path)
    assert set(metrics) == {
        f"zero_shot/{m}" for m in ("accuracy", "accuracy_chance", "top5", "top5_chance", "examples")
    }
    assert json.loads((tmp_path / "evaluation.json").read_text()) == metrics
    stored = json.loads((tmp_path / "artifacts" / "zero_shot.json").read_text())
    assert stored["step"] == 7 and (tmp_path / "report.html").exists()


def test_overrides_reach_the_evaluators(run):
    metrics, _ = evaluate.evaluate(
        run, overrides=["--config.evaluators.zero_shot.limit=4"], only=("zero_shot",)
    )
    assert metrics["zero_shot/examples"] == 4


def test_evaluators_of_another_config(run):
    metrics, rows = evaluate.evaluate(run, spec.load_config(config_file(run)))
    assert metrics["mine/examples"] == 11 and rows[0].evaluator == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "no evaluator 'nonsense': the config has"),
        (["--config.evaluators.zero_shot.limits=4"], "did you mean 'limit'"),
        (["--typo"], "unknown argument '--typo'"),
        (["--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["--config", "CONFIG:other"], "the input contracts differ: image_size: 16 here, 8 there"),
    ],
)
def test_bad_input_is_one_line(run, capsys, arguments, message):
    arguments = [a.replace("CONFIG", config_file(run)) for a in arguments]
    assert evaluate.main(["--checkpoint", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
