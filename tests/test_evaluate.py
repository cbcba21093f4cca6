"""A checkpoint gets the same numbers alone as in training, and refuses what is not its own."""

import csv
import io
import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
import tiny
from PIL import Image

import big_mm
from big_mm import compare, evaluate, export, exported, spec
from big_mm.data import examples, tokenizers
from big_mm.data.examples import Schema
from big_mm.data.records import TFRecordSource, TFRecordWriter
from big_mm.evaluators import (
    VQA,
    ComposedRetrieval,
    FewShot,
    GroupGap,
    Retrieval,
    ZeroShot,
    run_all,
    suite,
)
from big_mm.evaluators.caption_figures import Fit
from big_mm.evaluators.composed_benchmarks import Triplets
from big_mm.evaluators.data_types import DataTypes
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
        tokenizers.SentencePiece.file_name: tiny.tokenizer_bytes(),
    }
    store = checkpoint.Store(folder / "run" / "checkpoints", checkpoint.Checkpoints(), files)
    params = tiny.parameters(built["objective"].model, built["contract"])
    store.save(7, {"params": big_mm.trees.flatten(params)})
    store.close()
    return folder / "run"


def test_an_export_has_the_same_numbers(run, tmp_path):
    export.export(run, "safetensors", tmp_path / "exported")
    config = checkpoint.load_config(run)
    found, _ = evaluate.evaluate(tmp_path / "exported", config, only=["zero_shot"])
    expected, _ = evaluate.evaluate(run, config, only=["zero_shot"])
    assert found == expected


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
    scores = json.loads(out.read_text())
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    for name in scores.keys() - expected.keys():
        bounded = scores[name.removesuffix("_low").removesuffix("_high")]
        assert scores[name] <= bounded if name.endswith("_low") else scores[name] >= bounded
    printed = capsys.readouterr().out
    assert "Zero-shot accuracy" in printed and "6.2 %" in printed  # chance among 16


def test_a_report_of_an_evaluation(run, tmp_path):
    metrics, _ = evaluate.evaluate(run, only=("zero_shot",), workdir=tmp_path, bootstrap=0)
    names = [f"{m}{end}" for m in ("accuracy", "mean_per_class", "top5") for end in ("", "_chance")]
    assert set(metrics) == {f"zero_shot/{m}" for m in [*names, "examples"]}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == metrics
    stored = json.loads((tmp_path / "artifacts" / "zero_shot.json").read_text())
    assert stored["step"] == 7 and (tmp_path / "report.html").exists()


def test_an_interrupted_suite_goes_on_with_what_is_missing(run, tmp_path):
    announced: list[str] = []
    arguments = {"workdir": tmp_path, "announce": announced.append, "bootstrap": 10}
    evaluate.evaluate(run, only=("zero_shot",), **arguments)
    whole, _ = evaluate.evaluate(run, **arguments)
    there = f"zero_shot: found in {tmp_path / 'artifacts'} (2 of 2)"
    assert announced == ["zero_shot (1 of 1)", "retrieval (1 of 2)", there]
    anew, _ = evaluate.evaluate(run, **arguments, fresh=True)
    assert anew == whole and announced[3:] == ["retrieval (1 of 2)", "zero_shot (2 of 2)"]
    other = ["--config.evaluators.zero_shot.limit=4"]
    changed, _ = evaluate.evaluate(run, overrides=other, **arguments)
    assert announced[5] == there.replace("zero_shot", "retrieval").replace("(2", "(1")
    assert changed["zero_shot/examples"] == 4


def test_tables_have_interval_and_protocol_beside_each_number(run, tmp_path):
    metrics, _ = evaluate.evaluate(run, workdir=tmp_path, bootstrap=50)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    for row in rows:
        name = f"{row['evaluator']}/{row['metric']}"
        assert float(row["value"]) == metrics[name]
        assert row["low"] == str(metrics.get(f"{name}_low", ""))
        assert json.loads(row["protocol"])["input"] == "16 pixels, squash, area"
    text = (tmp_path / "evaluation.md").read_text()
    assert text.count("\n") == len(rows) + 2 and text.count("templates: {}") == 4
    page = (tmp_path / "report.html").read_text()
    assert "16 pixels, squash, area" in page


@pytest.fixture(scope="module")
def scored(run, tmp_path_factory):
    """Two folders of the same evaluators, the second one's records in another order."""
    folder = tmp_path_factory.mktemp("scored")
    evaluate.evaluate(run, workdir=folder / "a", bootstrap=0)
    evaluate.evaluate(run, workdir=folder / "b", bootstrap=0)
    path = folder / "b" / "artifacts" / "zero_shot.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["keys"] = arrays["keys"][::-1]
    arrays["accuracy/total"] = 1 - arrays["accuracy/total"][::-1]
    np.savez(path, **arrays)
    return folder


def test_a_paired_test_matches_images_by_key(scored, capsys):
    out = scored / "rows.json"
    arguments = [str(scored / "a"), str(scored / "b"), "--samples", "200", "--out", str(out)]
    assert compare.main(arguments) == 0
    rows = {f"{r['evaluator']}/{r['metric']}": r for r in json.loads(out.read_text())}
    same = rows["retrieval/image_to_text_r@1"]["difference"]
    assert (same["value"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    keys, ours = suite.stored_statistics(scored / "a", "zero_shot")
    right = ours["accuracy"].total
    expected = (1 - right).mean() - right.mean()
    assert rows["zero_shot/accuracy"]["difference"]["value"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert keys[0] == "r0" and "zero_shot" in printed and "  accuracy" in printed


def test_what_cannot_be_paired_is_refused(run, scored, tmp_path, capsys):
    config = ["--config.evaluators.zero_shot.limit=4"]
    evaluate.evaluate(run, overrides=config, only=("zero_shot",), workdir=tmp_path, bootstrap=0)
    assert compare.main([str(scored / "a"), str(tmp_path)]) == 2
    assert "zero_shot: a paired test needs the same images: 7 are in" in capsys.readouterr().err
    config = ["--config.evaluators.retrieval.prefix=a picture of "]
    evaluate.evaluate(run, overrides=config, only=("retrieval",), workdir=tmp_path, bootstrap=0)
    (tmp_path / "artifacts" / "zero_shot.json").unlink()
    assert compare.main([str(scored / "a"), str(tmp_path)]) == 2
    assert "retrieval: prefix is '' in the first folder" in capsys.readouterr().err
    assert compare.main([str(scored / "a"), str(tmp_path), "--across_protocols"]) == 0
    capsys.readouterr()
    assert compare.main([str(scored / "a"), str(tmp_path / "nowhere")]) == 2
    assert "there is nothing to compare" in capsys.readouterr().err


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


def test_what_components_read_is_part_of_what_they_depend_on(run, tmp_path):
    """Shards and files, wherever in an evaluator they are named."""
    source = spec.build(evaluators(run.parent / "test.tfrecord")["zero_shot"]).source
    file = tmp_path / "edits.json"

    def found(content):
        file.write_text(content)
        inner = ComposedRetrieval(DataTypes(source), Triplets(str(file)))
        return evaluate._data(GroupGap(inner, "group", (f"{file}#part",)))

    assert found("[]") == found("[]") != found("[1]")
    assert str(run.parent / "test.tfrecord") in found("[]")
    asked = VQA(source, submission=str(file))  # which is written, not read
    assert evaluate._data(asked) == evaluate._data(VQA(source, submission=str(tmp_path / "none")))


def test_so_is_the_checkpoint_that_judges(run, tmp_path):
    """In each form that it may have: the path stays, the parameters change."""
    loaded = big_mm.load(run)

    def ours(params, place):
        files = {
            checkpoint.CONFIG: spec.to_json(spec.resolve(checkpoint.load_config(run))).encode(),
            tokenizers.SentencePiece.file_name: tiny.tokenizer_bytes(),
        }
        store = checkpoint.Store(place / "checkpoints", checkpoint.Checkpoints(), files)
        store.save(1, {"params": big_mm.trees.flatten(params)})
        store.close()

    def portable(params, place):
        config = checkpoint.load_config(run)
        components = {"model": config.objective.model, "contract": config.contract}
        place.mkdir()
        exported.write(place, ml_collections.ConfigDict(components), params, loaded.contract)

    before, changed = (tiny.parameters(loaded.model, loaded.contract, seed=i) for i in (0, 1))
    for form in (ours, portable):
        judge, digests = Fit(checkpoint=str(tmp_path / form.__name__)), []
        assert evaluate._data(judge) == ""
        for params in (before, changed):
            form(params, pathlib.Path(judge.checkpoint))
            digests.append(evaluate._data(judge))
            assert digests[-1] == evaluate._data(judge) != ""
            shutil.rmtree(judge.checkpoint)
        assert digests[0] != digests[1]


def test_features_of_probes_are_kept_in_a_folder(run, tmp_path):
    config = spec.load_config(config_file(run))
    source = config.evaluators.mine.source
    one_shot = {"shots": (1,), "seeds": 1, "strength": 1e-3}
    probe = spec.spec(FewShot, train=source, test=source, **one_shot)
    config.evaluators = {"few_shot": probe}
    given = {"workdir": tmp_path / "scores", "bootstrap": 0, "features": tmp_path / "kept"}
    first, _ = evaluate.evaluate(run, config, **given)
    assert first["few_shot/accuracy_1shot"] == 1.0  # trained on what it is tested on
    rows = list((tmp_path / "kept").glob("*/rows.npy"))
    before = [path.stat().st_mtime_ns for path in rows]
    again, _ = evaluate.evaluate(run, config, fresh=True, **given)
    assert again == first and len(rows) == 1
    assert [path.stat().st_mtime_ns for path in rows] == before
