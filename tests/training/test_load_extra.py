"""What an objective takes from other checkpoints is there when a run begins, and is resumed."""

import dataclasses

import jax
import numpy as np
import pytest

from big_mm import mesh, spec, trees
from big_mm.objectives.judge import Judge
from big_mm.objectives.rewards import ClipScore
from big_mm.spec import UserError
from big_mm.training import init_from, loop
from big_mm.training import state as states
from big_mm.training.run import prepare
from tests import tiny
from tests.objectives import test_policy_gradient as policy
from tests.training import runs


def test_a_judge_is_loaded_sharded_and_kept(tmp_path):
    judge = tiny.workdir(tmp_path, tiny.siglip)
    config = runs.config(tmp_path / "data", steps=2, mesh=spec.spec(mesh.MeshConfig, fsdp=8))
    size = len(runs.params(judge)["text/embedding"])
    config.objective = spec.spec(
        policy.PolicyGradient,
        model=spec.spec(policy.Bigram, vocab_size=size),
        losses={"policy": spec.spec(policy.Reinforce)},
        rewards={"clip": spec.spec(ClipScore)},
        judge=spec.spec(
            Judge, model=tiny.siglip(size), init_from=spec.spec(init_from.InitFrom, path=str(judge))
        ),
        baseline="mean",
    )
    run = spec.build(config)
    example, batches = loop.open_data(run, 0)
    batches.close()
    prepared = prepare(run, example)
    state = prepared.create()
    expected = runs.params(judge)
    found = trees.flatten(state.extra["judge"])
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[path])
        assert leaf.sharding == trees.flatten(prepared.state.extra["judge"])[path].sharding
    items = jax.device_get(states.to_items(state))
    again = states.from_items(prepared.state, items).extra
    jax.tree.map(np.testing.assert_array_equal, again, jax.device_get(state.extra))
    assert set(again) == {"judge", "baseline"}
    other = dataclasses.replace(run.objective, contract=dataclasses.replace(run.contract, fill=9))
    with pytest.raises(UserError, match=f"the judge {judge}: the input contracts differ: fill: 9"):
        other.load_extra(state.extra)
