"""The command: what it prints, what it leaves behind, one line for each mistake."""

import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from big_mm import spec, train
from big_mm.data import records
from big_mm.data.pipeline import Pipeline
from big_mm.evaluators import Retrieval
from big_mm.training import checkpoint
from tests import tiny
from tests.training import runs

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file for `runs.config(**options)`; returns its path."""

    def write(**options):
        made = runs.config(tmp_path / "data", **options)
        file = tmp_path / "config.py"
        file.write_text(
            "from big_mm import spec\n"
            f"TEXT = {spec.to_json(made)!r}\n"
            "def get_config(arg=''):\n"
            "    return spec.from_json(TEXT, trusted=('big_mm', 'tests'))\n"
        )
        return str(file)

    return write


def fails(capsys, *arguments) -> str:
    """The one line of a mistake."""
    assert train.main(list(arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    return [line for line in error if line.startswith("error: ")][0]


def test_a_config_and_an_override_give_a_workdir(config_file, tmp_path):
    """As a user would: in a process of its own, with a CoCa."""
    source = spec.spec(records.TFRecordSource, shards=str(tmp_path / "data" / "train*"))
    retrieval = spec.spec(Retrieval, source=source, captions_per_image=1)
    file = config_file(model=tiny.coca, evaluators={"retrieval": retrieval})
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "big_mm.train", "--config", file, "--workdir", str(workdir)]
    done = subprocess.run(
        [*command, "--config.steps=4", "--config.optimizer.learning_rate=1e-4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("report.html")
    assert "step 4/4" in done.stderr and "images/s" in done.stderr
    assert {p.name for p in workdir.iterdir()} >= {
        "metrics.jsonl",
        "evaluation.json",
        "report.html",
        "config.json",
        "checkpoints",
        "tensorboard",
    }
    assert "retrieval/image_to_text_r@1" in json.loads((workdir / "evaluation.json").read_text())
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["optimizer"]["learning_rate"] == 1e-4 and stored["steps"] == 4
    assert checkpoint.find_checkpoint(workdir).name == "4"
    assert all(np.isfinite(leaf).all() for leaf in runs.params(workdir).values())


def test_zero_steps_checks_and_leaves_nothing(config_file, tmp_path, capsys):
    file, workdir = config_file(), tmp_path / "run"
    arguments = ["--config", file, "--workdir", str(workdir)]
    assert train.main([*arguments, "--config.steps=0"]) == 0
    printed = capsys.readouterr().out
    assert "text/embedding" in printed and "300x8" in printed and "lr x1, decay 0.1" in printed
    assert "64 records" in printed and "activations" in printed
    assert "batch     image 16x16x16x3 uint8" in printed
    assert "outputs   caption_logits 16x12x300 float32" in printed
    assert not workdir.exists()


def test_help_shows_how(capsys):
    with pytest.raises(SystemExit) as end:
        train.main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--config.optimizer.learning_rate=" in printed and "--workdir" in printed


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optimizer.learnin_rate=1", "did you mean 'learning_rate'"),
        ("--config.nonsense=1", "no keyword 'nonsense'"),
        ("--confg.steps=1", "unknown argument"),
        ("--config.batch_size=12", "batch_size=12 is not divisible by the 8 devices"),
        ("--config.batch_size=0", "batch_size=0 must be at least 1"),
        ("--config.accumulate=2", "has a `loss` of its own"),
        ("--config.data.sources.0.shards=nowhere/x*", "nowhere/x"),
        ("--config.contract.tokenizer.path=nowhere.model", "no tokenizer model at nowhere.model"),
        ("--config.objective.model.vocab_size=299", "vocabulary of 299.*tokenizer's 300"),
        ("--config.optimizer.schedule.warmup=7", "needs 7 steps, the run has 6"),
        ("--config.optimizer.frozen=(('imag/.*',True),)", "'imag/.*' matches no parameter"),
        ("--config.mesh=big_mm.mesh.MeshConfig", None),
    ],
)
def test_one_line_for_each_mistake(config_file, tmp_path, capsys, argument, message):
    arguments = ["--config", config_file(), "--workdir", str(tmp_path / "run"), argument]
    if message is None:
        assert train.main([*arguments, "--config.steps=0"]) == 0
        return
    assert re.search(message, fails(capsys, *arguments))
    assert not list((tmp_path / "run").glob("*.json*")), "nothing that would block a later run"


def test_a_schema_that_names_an_absent_feature(config_file, tmp_path, capsys):
    file = config_file()
    arguments = ["--config", file, "--workdir", str(tmp_path / "run")]
    argument = "--config.data.sources.0.schema=big_mm.data.examples.Schema"
    line = fails(capsys, *arguments, argument, "--config.data.sources.0.schema.captions=txt")
    assert "txt" in line and "caption" in line


def test_pictures_that_all_fail(config_file, tmp_path, capsys):
    file = config_file(damaged=runs.RECORDS)
    line = fails(capsys, "--config", file, "--workdir", str(tmp_path / "run"))
    assert "undecodable_image" in line


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def as_a_user(*arguments, largest_file: int | None = None) -> subprocess.CompletedProcess:
    command = ["-m", "big_mm.train", *arguments]
    if largest_file is not None:
        command = ["-c", LIMITED, str(largest_file), *command]
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_sigterm_has_a_status_of_its_own(config_file, tmp_path):
    fault = {"at": 2, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    done = as_a_user("--config", config_file(fault=fault), "--workdir", str(tmp_path / "run"))
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGTERM and saved" in done.stderr
    assert checkpoint.find_checkpoint(tmp_path / "run").name == "3"


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(config_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = fails(capsys, "--config", config_file(), "--workdir", str(tmp_path / "file" / "run"))
    assert "results cannot be written to --workdir" in line and "Not a directory" in line


def test_a_full_disk_leaves_the_last_good_checkpoint(config_file, tmp_path, capsys):
    """Full for files of this size: the vocabulary's is written in every save."""
    arguments = ["--config", config_file(), "--workdir", str(tmp_path / "run")]
    arguments.append("--config.optimizer.schedule.warmup=0")
    assert train.main([*arguments, "--config.steps=2"]) == 0
    done = as_a_user(*arguments, largest_file=len(tiny.tokenizer_bytes()) - 1)
    assert done.returncode == 2, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "a checkpoint could not be written" in line and "last good one there: step 2" in line
    assert "step 6/6" not in done.stderr, "the run ends with the save that fails"
    assert checkpoint.find_checkpoint(tmp_path / "run").name == "2"
    assert train.main(arguments) == 0


def test_a_read_that_hangs_ends_the_run(config_file, tmp_path):
    shards = spec.spec(records.TFRecordSource, shards=runs.shards(tmp_path))
    source = spec.spec(runs.Stuck, source=shards, stuck_at=40)
    data = spec.spec(Pipeline, sources=(source,), shuffle=False, num_threads=2, timeout=8.0)
    file = config_file(data=data, batch_size=8)
    done = as_a_user("--config", file, "--workdir", str(tmp_path / "run"))
    assert done.returncode == 74, done.stderr
    assert "the input pipeline is the limit" in done.stderr
    assert "no batch for 8 s" in done.stderr and "released.wait" in done.stderr
    assert "step 3/6" in done.stderr


def test_no_workdir_and_no_config_file(config_file, tmp_path, capsys):
    assert "--workdir DIR is needed" in fails(capsys, "--config", config_file())
    missing = str(tmp_path / "missing.py")
    assert "missing.py" in fails(capsys, "--config", missing, "--workdir", str(tmp_path))


def test_a_workdir_of_another_config_and_a_checkpoint_of_another_architecture(
    config_file, tmp_path, capsys
):
    arguments = ["--config", config_file(), "--workdir", str(tmp_path / "run")]
    assert train.main([*arguments, "--config.steps=2", "--config.optimizer.schedule.warmup=0"]) == 0
    line = fails(capsys, *arguments)
    assert "another config" in line
    wider = ["--config.objective.model.width=4", "--config.optimizer.schedule.warmup=0"]
    assert "another config" in fails(capsys, *arguments, *wider)
    (tmp_path / "run" / "config.json").unlink()
    assert "another model" in fails(capsys, *arguments, *wider)


def test_another_optimizer_from_the_command_line(config_file, capsys):
    argument = "--config.optimizer=big_mm.training.optimizer.Lion"
    arguments = ["--config", config_file(), argument, "--config.optimizer.learning_rate=1e-4"]
    assert train.main([*arguments, "--config.steps=0"]) == 0
    # One moment, in half the bytes, where AdamW has two.
    assert "decay 0" in capsys.readouterr().out
