"""Beginning with parts of another checkpoint."""

import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import mesh as mesh_lib
from big_mm import spec, trees
from big_mm.models import vision
from big_mm.spec import UserError
from big_mm.training import checkpoint, init_from
from tests import tiny
from tests.training import runs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of a tiny CoCa, and its parameters by path."""
    workdir = tiny.workdir(tmp_path_factory.mktemp("source"))
    return str(workdir), runs.params(workdir)


def loaded(source, rules=(), **shapes):
    """{path: value} before and after loading into a model of the checkpoint's own shapes (or, by
    path, of others), whose parameters are spread over eight devices.
    """
    path, theirs = source
    rng = np.random.default_rng(0)
    fresh = {
        name: rng.normal(size=shapes.get(name, leaf.shape)).astype(leaf.dtype)
        for name, leaf in theirs.items()
    }
    placed = mesh_lib.shardings(fresh, mesh_lib.MeshConfig(fsdp=8).make())
    params = trees.unflatten({name: jax.device_put(fresh[name], placed[name]) for name in fresh})
    after = trees.flatten(init_from.InitFrom(path, rules).apply(params))
    assert all(after[name].sharding == placed[name] for name in fresh)
    return fresh, {name: np.asarray(leaf) for name, leaf in after.items()}


def test_everything(source):
    _, after = loaded(source)
    for name, value in source[1].items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_one_tower(source):
    fresh, after = loaded(source, (("image/.*", r"\g<0>"), (".*", None)))
    for name, value in after.items():
        expected = source[1][name] if name.startswith("image/") else fresh[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_renamed_paths(source):
    _, after = loaded(source, (("norm/(.*)", r"image/norm/\1"), (".*", None)))
    np.testing.assert_array_equal(after["image/norm/scale"], source[1]["norm/scale"])


def test_positions_of_another_resolution_are_resized(source):
    _, after = loaded(source, **{"image/position_embedding": (64, 16)})
    given = source[1]["image/position_embedding"].reshape(4, 4, 16)
    found = after["image/position_embedding"].reshape(8, 8, 16)
    np.testing.assert_allclose(found, upsampled(given), atol=1e-5)


def upsampled(grid):
    """Twice as many points by linear interpolation between pixel centres."""
    for axis in (0, 1):
        rows = np.moveaxis(grid, axis, 0)
        places = np.clip((np.arange(2 * len(rows)) + 0.5) / 2 - 0.5, 0, len(rows) - 1)
        low = np.floor(places).astype(int)
        high, share = np.minimum(low + 1, len(rows) - 1), (places - low)[:, None, None]
        grid = np.moveaxis((1 - share) * rows[low] + share * rows[high], 0, axis)
    return grid


def test_a_constant_grid_stays_constant():
    found = vision.resize_grid(jnp.ones((9, 2)), 25)
    np.testing.assert_allclose(found, np.ones((25, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("imag/.*", None),), "matches no parameter"),
        (((".*", None),), "leave nothing"),
        ((("image/(.*)", r"picture/\1"),), "has no place here: there is no picture/"),
        ((("norm/scale", "image/norm/scale"),), "would both load into image/norm/scale"),
        ((("norm/scale", "text/embedding"), (".*", None)), "norm/scale of shape .* does not fit"),
    ],
)
def test_rules_that_cannot_work(source, rules, message):
    with pytest.raises(UserError, match=message):
        loaded(source, rules)


def test_another_width_is_no_other_resolution(source):
    with pytest.raises(UserError, match="does not fit"):
        loaded(source, **{"image/position_embedding": (64, 8)})


def test_a_path_without_a_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        init_from.InitFrom(str(tmp_path)).apply({})


def test_the_average_begins_where_the_parameters_do_and_a_continued_run_loads_nothing(tmp_path):
    source = tmp_path / "source"
    runs.train(runs.config(tmp_path / "first", steps=2), source)
    fault = {"at": 2, "marker": str(tmp_path / "marker"), "signal": signal.SIGTERM}
    start = spec.spec(init_from.InitFrom, path=str(source))
    made = runs.config(tmp_path / "second", fault=fault, init_from=start)
    made.optimizer.learning_rate = 0.0
    runs.train(made, tmp_path / "run")
    given = runs.params(source, "ema")
    for which in ("params", "ema"):
        for name, value in runs.params(tmp_path / "run", which).items():
            np.testing.assert_allclose(value, given[name], rtol=1e-5, err_msg=name)
    shutil.rmtree(source)
    runs.train(made, tmp_path / "run")
    assert [step for step, _ in runs.losses(tmp_path / "run")] == list(range(1, 7))
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        runs.train(made, tmp_path / "new")
