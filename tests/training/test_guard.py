"""The guard: injected faults are refused, named, and followed as the policy says, kills or not."""

import itertools
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.spec import UserError
from big_mm.training import checkpoint, loop, writers
from big_mm.training import guard as guards
from big_mm.training import state as states
from big_mm.training.guard import Guard
from big_mm.training.run import prepare
from tests.training import runs

STEPS, EVERY, BAD = 8, 3, 5
SAVING = {"steps": STEPS, "checkpoint": spec.spec(checkpoint.Checkpoints, every=EVERY, keep=1)}


def config(directory, poison=((BAD, "nan"),), policy="skip", **options):
    guard = spec.spec(Guard, policy=policy, **options.pop("guard", {}))
    return runs.config(directory, poison=poison, guard=guard, **(SAVING | options))


def by_hand(directory, batches):
    """The parameters after updates with these batches, numbered from 1, and nothing else."""
    run = spec.build(config(directory, poison=()))
    prepared = prepare(run, loop.open_data(run, 0)[0])
    state, data = prepared.create(), itertools.count(1)
    wanted = set(batches)
    for number, (batch, _) in zip(
        data, loop.device_batches(run, prepared.mesh, loop.open_data(run, 0)[1]), strict=False
    ):
        if number in wanted:
            state, _ = prepared.update(state, run.objective.prepare(state, batch))
            wanted.discard(number)
        if not wanted:
            return trees.digest({"params": trees.flatten(state.params)})


def found(directory, step=STEPS):
    digests = runs.digests(directory / "run", step)
    return {path: digest for path, digest in digests.items() if path.startswith("params/")}


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rolled-back")
    runs.train(config(directory, policy="rollback"), directory / "run")
    return directory


def test_a_nan_is_skipped_and_its_records_are_named(tmp_path, caplog):
    made = config(tmp_path)
    runs.train(made, tmp_path / "run")
    run = spec.build(made)
    keys = loop.open_data(run, BAD - 1)[0]["key"].tolist()
    [incident] = runs.incidents(tmp_path / "run")
    assert (incident["batch"], incident["step"], incident["loss"]) == (BAD, BAD, "nan")
    assert incident["keys"] == keys
    assert f"step {BAD} skipped: loss nan" in caplog.text and keys[0] in caplog.text
    last = writers.read_metrics(tmp_path / "run")[-1]
    assert (last["skipped"], last["refused_in_a_row"], last["data/jumped"]) == (1, 0, 0)


def test_stop_leaves_a_checkpoint_from_before_and_another_policy_continues(tmp_path):
    with pytest.raises(UserError, match=rf"step {BAD} skipped: loss nan.*its records: k\d+, k"):
        runs.train(config(tmp_path, policy="stop"), tmp_path / "run")
    assert checkpoint.find_checkpoint(tmp_path / "run").name == str(EVERY)
    assert found(tmp_path, EVERY) == by_hand(tmp_path, range(1, EVERY + 1))
    runs.train(config(tmp_path, policy="skip"), tmp_path / "run")
    assert len(runs.incidents(tmp_path / "run")) == 1


def test_a_rollback_is_the_run_without_the_window(rolled_back, tmp_path):
    first = BAD + 1
    batches = [*range(1, EVERY + 1), *range(first, first + STEPS - EVERY)]
    assert found(rolled_back) == by_hand(tmp_path, batches)
    lines = writers.read_metrics(rolled_back / "run")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["data/jumped"] for line in lines] == [0] * EVERY + [BAD - EVERY] * (STEPS - EVERY)
    assert lines[-1]["rollbacks"] == 1 and lines[-1]["skipped"] == 0
    assert [(i["batch"], i["step"]) for i in runs.incidents(rolled_back / "run")] == [(BAD, BAD)]


@pytest.mark.parametrize("at", [EVERY, EVERY + 1], ids=["before the bad step", "in it"])
def test_a_stopped_run_rolls_back_as_far_as_one_that_was_not(rolled_back, tmp_path, at):
    """The first of these is saved off the schedule, which must not become the target."""
    fault = {"at": at, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    made = config(tmp_path, policy="rollback", fault=fault)
    assert runs.train(made, tmp_path / "run") is None
    stopped_at = checkpoint.find_checkpoint(tmp_path / "run").name
    assert stopped_at == str(EVERY + 1 if at == EVERY else EVERY)
    runs.train(made, tmp_path / "run")
    assert runs.digests(tmp_path / "run", STEPS) == runs.digests(rolled_back / "run", STEPS)
    assert runs.losses(tmp_path / "run") == runs.losses(rolled_back / "run")
    left, right = (folder / "run" / writers.INCIDENTS for folder in (tmp_path, rolled_back))
    assert left.read_text() == right.read_text()


def test_two_processes_go_back_together_and_name_the_records_of_both(rolled_back, tmp_path):
    made = config(tmp_path, policy="rollback")
    (tmp_path / "config.json").write_text(spec.to_json(made))
    ended = runs.in_processes(tmp_path, *runs.two_processes())
    assert [code for code, _ in ended] == [0, 0], ended
    both, one = (runs.losses(folder / "run") for folder in (tmp_path, rolled_back))
    np.testing.assert_allclose(both, one, rtol=2e-5)
    [left], [right] = (runs.incidents(folder / "run") for folder in (tmp_path, rolled_back))
    assert left["keys"] == right["keys"]


def test_before_the_first_checkpoint_the_initial_state_is_gone_back_to(tmp_path):
    runs.train(config(tmp_path, poison=((2, "inf"),), policy="rollback"), tmp_path / "run")
    assert found(tmp_path) == by_hand(tmp_path, range(3, 3 + STEPS))


def test_rollbacks_are_bounded(tmp_path):
    poison = tuple((number, "nan") for number in range(4, 30))
    made = config(tmp_path, poison=poison, policy="rollback", guard={"max_rollbacks": 2})
    with pytest.raises(UserError, match="step 4 skipped.*after 2 rollbacks: the run has diverged"):
        runs.train(made, tmp_path / "run")
    assert [line["batch"] for line in runs.incidents(tmp_path / "run")] == [4, 5, 6]


def test_a_spike_is_refused_and_the_largest_usual_step_is_not(tmp_path):
    options = {"guard": {"spike": 20.0, "warmup": 3}}
    runs.train(config(tmp_path, poison=((BAD, "100"),), **options), tmp_path / "run")
    [incident] = runs.incidents(tmp_path / "run")
    assert incident["batch"] == BAD
    assert incident["grad_norm"] > 20 * incident["grad_norm_average"] > 0


def test_refusals_in_a_row_are_counted_across_a_restart(tmp_path):
    poison = tuple((number, "nan") for number in range(3, 30))
    fault = {"at": 4, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    made = config(tmp_path, poison=poison, fault=fault, guard={"max_skipped": 4})
    assert runs.train(made, tmp_path / "run") is None
    with pytest.raises(UserError, match="4 updates in a row were skipped, the last at step 6"):
        runs.train(made, tmp_path / "run")


def test_the_average_is_that_of_the_accepted():
    guard, state, kept = Guard(decay=0.5), guards.init(), []
    for number, norm in enumerate([4.0, 900.0, 2.0, 8.0, 1.0, 1.0]):
        good = number != 1
        count = jnp.int32(len(kept))
        state = guard.advance(state, jnp.float32(norm), jnp.bool_(good), count)
        kept += [norm] * good
        assert state["refused_in_a_row"] == (not good)
    expected = 0.0
    for count, norm in enumerate(kept):
        decay = min(0.5, count / (10 + count))
        expected = decay * expected + (1 - decay) * norm
    np.testing.assert_allclose(state["grad_norm"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "ignore"}, "'ignore' is none of skip, stop, rollback"),
        ({"spike": 0.5}, "must be above 1"),
        ({"decay": 1.0}, "below 1"),
        ({"max_skipped": 0}, "max_skipped >= 1"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Guard(**options)


def test_a_rollback_needs_a_schedule(tmp_path):
    saving = spec.spec(checkpoint.Checkpoints, every=0)
    with pytest.raises(UserError, match="needs checkpoint.every"):
        spec.build(config(tmp_path, policy="rollback", checkpoint=saving))


def test_counters_are_stored_and_come_back(rolled_back):
    run = spec.build(json_config(rolled_back))
    prepared = prepare(run, loop.open_data(run, 0)[0])
    items = states.to_items(prepared.state)
    store = checkpoint.Store(rolled_back / "run" / "checkpoints", run.checkpoint, {})
    state = states.from_items(prepared.state, store.restore(items))
    store.close()
    assert loop.position(state) == STEPS + BAD - EVERY
    assert int(state.guard["rollbacks"]) == 1


def json_config(directory):
    text = (directory / "run" / "config.json").read_text()
    assert json.loads(text)["guard"]["policy"] == "rollback"
    return spec.from_json(text, trusted=("big_mm", "tests"))
