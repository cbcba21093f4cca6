"""Whole runs: interruption, devices, damaged data, divergence, evaluation, what is written."""

import dataclasses
import importlib
import json
import math
import os
import pathlib
import signal
import time
from typing import Any

import jax
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.evaluators import base as evaluators
from big_mm.mesh import MeshConfig
from big_mm.spec import UserError
from big_mm.training import checkpoint, loop, optimizer, writers
from big_mm.training.guard import Guard
from big_mm.training.run import prepare
from tests.training import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of the toy on eight devices."""
    directory = tmp_path_factory.mktemp("whole")
    runs.train(runs.config(directory), directory / "run")
    return directory / "run"


def test_sigterm_saves_and_the_continued_run_is_the_uninterrupted_one(whole, tmp_path):
    fault = {"at": 2, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    made = runs.config(tmp_path, fault=fault)
    before = signal.getsignal(signal.SIGTERM)
    assert runs.train(made, tmp_path / "run") is None
    assert signal.getsignal(signal.SIGTERM) == before
    assert [step for step, _ in runs.losses(tmp_path / "run")] == [1, 2, 3]
    assert checkpoint.find_checkpoint(tmp_path / "run").name == "3"
    runs.train(made, tmp_path / "run")
    assert runs.digests(tmp_path / "run") == runs.digests(whole)
    assert runs.losses(tmp_path / "run") == runs.losses(whole)


def test_sigkill_while_saving_and_the_continued_run_is_the_uninterrupted_one(whole, tmp_path):
    fault = {"at": 4, "marker": str(tmp_path / "marker"), "signal": signal.SIGKILL}
    (tmp_path / "config.json").write_text(spec.to_json(runs.config(tmp_path, fault=fault)))
    # The save of step 4 has just begun: it may or may not have been committed.
    [(code, error)] = runs.in_processes(tmp_path, {"JAX_NUM_CPU_DEVICES": "8"})
    assert code == -signal.SIGKILL, error
    [(code, error)] = runs.in_processes(tmp_path, {"JAX_NUM_CPU_DEVICES": "8"})
    assert code == 0, error
    assert runs.digests(tmp_path / "run") == runs.digests(whole)
    assert runs.losses(tmp_path / "run") == runs.losses(whole)


def test_killed_at_one_file_after_the_other_it_ends_as_if_it_never_was(
    whole, tmp_path, monkeypatch
):
    """The index, a line of metrics, a commit, a deletion: SIGKILL comes just before each."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    chaos = importlib.import_module("chaos")
    saving = spec.spec(checkpoint.Checkpoints, every=2, keep=1)  # so that some are deleted
    made = runs.config(tmp_path, checkpoint=saving)
    (tmp_path / "config.json").write_text(spec.to_json(made))
    for index in tmp_path.glob(".*.index"):
        index.unlink()
    for kill in (
        ["index build", 2, 0.0],
        ["metrics.jsonl", 4, 0.0],
        ["save commits", 6, 0.0],
        ["deletion", 3, 0.0],
        None,
    ):
        hook = {"events": chaos.EVENTS, "log": str(tmp_path / "log"), "kill": kill}
        environment = {"PYTHONPATH": str(chaos.HOOK), "CHAOS": json.dumps(hook)}
        [(code, error)] = runs.in_processes(tmp_path, environment | {"JAX_NUM_CPU_DEVICES": "8"})
        assert code == (0 if kill is None else -signal.SIGKILL), (kill, error)
    assert runs.digests(tmp_path / "run") == runs.digests(whole)
    assert runs.losses(tmp_path / "run") == runs.losses(whole)


def test_one_device_gives_the_losses_of_eight(whole, tmp_path):
    assert jax.device_count() == 8
    (tmp_path / "config.json").write_text(spec.to_json(runs.config(tmp_path)))
    [(code, error)] = runs.in_processes(tmp_path, {"JAX_NUM_CPU_DEVICES": "1"})
    assert code == 0, error
    one, eight = (np.array(runs.losses(folder)) for folder in (tmp_path / "run", whole))
    np.testing.assert_allclose(one, eight, rtol=2e-5)


def test_two_processes_stop_together_and_one_continues(whole, tmp_path):
    fault = {"at": 2, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    made = runs.config(tmp_path, fault=fault)
    (tmp_path / "config.json").write_text(spec.to_json(made))
    ended = runs.in_processes(tmp_path, *runs.two_processes())
    assert [code for code, _ in ended] == [0, 0], ended
    runs.train(made, tmp_path / "run")
    np.testing.assert_allclose(runs.losses(tmp_path / "run"), runs.losses(whole), rtol=2e-5)


def test_sharded_parameters_give_the_same_losses_and_restore_onto_another_mesh(whole, tmp_path):
    fault = {"at": 3, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    rules = (("text/embedding", (None, "tensor")),)
    mesh = spec.spec(MeshConfig, data=2, fsdp=2, tensor=2, rules=rules)
    made = runs.config(tmp_path, fault=dict(fault), mesh=mesh)
    runs.train(made, tmp_path / "run")
    made = runs.config(tmp_path, fault=dict(fault), mesh=spec.spec(MeshConfig, data=1, fsdp=8))
    runs.train(made, tmp_path / "run")
    np.testing.assert_allclose(runs.losses(tmp_path / "run"), runs.losses(whole), rtol=2e-5)


def test_moments_and_averages_lie_like_their_parameters(tmp_path):
    mesh = spec.spec(MeshConfig, data=2, fsdp=4)
    run = spec.build(runs.config(tmp_path, mesh=mesh))
    state = prepare(run, loop.open_data(run, 0)[0]).state
    found = {
        path: leaf.sharding.spec
        for path, leaf in trees.flatten(state).items()
        if path.endswith("image/in/kernel")
    }
    assert len(found) == 4, "the parameter, two moments, the average"
    assert set(found.values()) == {jax.sharding.PartitionSpec("fsdp", None)}


def test_each_line_has_the_terms_their_baselines_and_the_rates(whole):
    lines = writers.read_metrics(whole)
    for line in lines:
        assert line["baseline/contrastive"] == math.log(16)
        assert line["baseline/captioning"] == math.log(300)
        total = line["loss/contrastive"] + line["loss/captioning"]
        assert line["loss"] == pytest.approx(total, rel=1e-6)
        assert line["skipped"] == line["data/bad"] == 0
        assert {"grad_norm", "param_norm", "update_norm", "learning_rate"} <= line.keys()
    rates = [line["learning_rate"] for line in lines]
    cosine = [0.5 * (1 + math.cos(math.pi * max(step - 2, 0) / 4)) for step in range(6)]
    expected = [3e-3 * c * min(1, (i + 1) / 2) for i, c in enumerate(cosine)]
    assert rates == pytest.approx(expected, rel=1e-5)
    assert list((whole / "tensorboard").iterdir())


def test_damaged_records_are_counted_named_and_limited(tmp_path, caplog):
    made = runs.config(tmp_path, damaged=3, max_bad_share=0.5)
    runs.train(made, tmp_path / "run")
    last = writers.read_metrics(tmp_path / "run")[-1]
    assert 3 <= last["data/bad"] <= 6
    named = [r.getMessage() for r in caplog.records if "undecodable_image" in r.getMessage()]
    assert len(named) >= 3 and all(".tfrecord" in line for line in named)
    # 4 in 1,000 rows is the least that more than a share of 0.003 can be.
    with pytest.raises(UserError, match="damaged records by step.*max_bad_share=0.003"):
        runs.train(runs.config(tmp_path, damaged=32, max_bad_share=0.003), tmp_path / "other")


def test_a_diverged_run_stops_and_names_its_records(tmp_path, caplog):
    made = runs.config(tmp_path, guard=spec.spec(Guard, max_skipped=3))
    made.optimizer = spec.spec(optimizer.AdamW, learning_rate=1e39)
    with pytest.raises(UserError, match="3 updates in a row were skipped.*diverged"):
        runs.train(made, tmp_path / "run")
    skipped = [r.getMessage() for r in caplog.records if "skipped: loss" in r.getMessage()]
    assert len(skipped) == 3 and "its records: k" in skipped[0]


@dataclasses.dataclass(frozen=True)
class Probe(evaluators.Evaluator):
    """Reports which parameters it was given."""

    fail_at: int = -1
    marker: str = ""

    def evaluate(self, predictor: Any, step: int) -> evaluators.Result:
        marker = pathlib.Path(self.marker)
        if step == self.fail_at and not marker.exists():
            marker.touch()
            raise RuntimeError("the machine went away")
        embedding = trees.flatten(predictor.params)["text/embedding"]
        total = float(np.abs(np.asarray(embedding)).sum())
        return evaluators.Result({"sum": total, "step": float(step)})


def test_evaluations_run_when_due_on_the_averaged_parameters(tmp_path):
    probe = spec.spec(Probe)
    made = runs.config(tmp_path, evaluators={"probe": probe}, eval_every=2)
    final = runs.train(made, tmp_path / "run")
    lines = {int(line["step"]): line for line in writers.read_metrics(tmp_path / "run")}
    assert [step for step, line in lines.items() if "probe/step" in line] == [2, 4, 6]
    assert all(lines[step]["probe/step"] == step for step in (2, 4, 6))
    assert json.loads((tmp_path / "run" / loop.EVALUATION).read_text()) == final
    average = np.abs(runs.params(tmp_path / "run", "ema")["text/embedding"]).sum()
    assert final["probe/sum"] == pytest.approx(average, rel=1e-6)
    latest = np.abs(runs.params(tmp_path / "run", "params")["text/embedding"]).sum()
    assert abs(latest - average) > 1e-3


@pytest.mark.parametrize("step", [4, 6])
def test_an_evaluation_that_died_is_made_up_for(tmp_path, step):
    probe = spec.spec(Probe, fail_at=step, marker=str(tmp_path / "marker"))
    made = runs.config(tmp_path, evaluators={"probe": probe}, eval_every=2)
    with pytest.raises(RuntimeError, match="went away"):
        runs.train(made, tmp_path / "run")
    runs.train(made, tmp_path / "run")
    lines = writers.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert [line["step"] for line in lines if "probe/sum" in line] == [2, 4, 6]


@dataclasses.dataclass(frozen=True)
class Scored(evaluators.Evaluator):
    """A metric that is best at step 4; before it says so at step 6, SIGTERM comes, once."""

    marker: str

    def evaluate(self, predictor: Any, step: int) -> evaluators.Result:
        marker = pathlib.Path(self.marker)
        if step == 6 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return evaluators.Result({"score": -abs(step - 4.0)})


def test_sigterm_does_not_wait_for_an_evaluation_and_the_best_checkpoint_stays(tmp_path):
    marker, saving = str(tmp_path / "marker"), {"every": 3, "keep": 1, "best": "scored/score"}
    made = runs.config(
        tmp_path,
        steps=8,
        evaluators={"scored": spec.spec(Scored, marker=marker)},
        eval_every=2,
        checkpoint=spec.spec(checkpoint.Checkpoints, **saving),
    )
    begun = time.monotonic()
    assert runs.train(made, tmp_path / "run") is None
    assert time.monotonic() - begun < 50
    assert checkpoint.find_checkpoint(tmp_path / "run").name == "6"
    # The scores of before are read from metrics.jsonl, or step 4 would not be known as the best.
    assert runs.train(made, tmp_path / "run") == {"scored/score": -4.0}
    steps = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == [4, 6, 8], "the best, the last that was due, the newest"
    scores = [line.get("scored/score") for line in writers.read_metrics(tmp_path / "run")]
    assert scores == [None, -2.0, None, 0.0, None, -2.0, None, -4.0]


def test_the_best_of_an_unknown_metric_is_refused(tmp_path):
    saving = spec.spec(checkpoint.Checkpoints, best="retrival/r@1")
    with pytest.raises(UserError, match="'retrival/r@1' must be EVALUATOR/METRIC.*scored"):
        scored = spec.spec(Scored, marker="")
        spec.build(
            runs.config(tmp_path, evaluators={"scored": scored}, eval_every=2, checkpoint=saving)
        )


def test_a_profile_is_traced_on_request(tmp_path):
    runs.train(runs.config(tmp_path, profile=(2, 3)), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


def test_a_finished_run_cannot_be_shortened(whole, tmp_path):
    made = spec.from_json((whole / "config.json").read_text(), trusted=("big_mm", "tests"))
    made.steps = 4
    with pytest.raises(UserError, match="is at step 6, past the steps=4"):
        runs.train(made, whole)
