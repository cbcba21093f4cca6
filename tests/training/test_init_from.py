"""Beginning with parts of another checkpoint."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_mm import spec, trees
from big_mm.spec import UserError
from big_mm.training import checkpoint, init_from, loop
from big_mm.training import run as run_lib
from tests import tiny
from tests.training import runs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkpoint of a tiny CoCa, and its parameters."""
    workdir = tiny.workdir(tmp_path_factory.mktemp("source"))
    return str(workdir), runs.params(workdir)


def created(directory, source=None, model=tiny.coca, **options):
    """The parameters that a run begins with."""
    if source is not None:
        options["init_from"] = spec.spec(init_from.InitFrom, path=source, **options.pop("rules"))
    run = spec.build(runs.config(directory, model=model, **options))
    state = run_lib.prepare(run, loop.open_data(run, 0)[0]).create()
    return {path: np.asarray(leaf) for path, leaf in trees.flatten(state.params).items()}, state


def test_one_tower(source, tmp_path):
    path, theirs = source
    rules = {"rules": (("image/.*", r"\g<0>"), (".*", None))}
    fresh, _ = created(tmp_path)
    ours, state = created(tmp_path, path, rules=rules)
    for name, value in ours.items():
        expected = theirs[name] if name.startswith("image/") else fresh[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)
    for name, value in state.ema.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)


def test_renamed_paths(source, tmp_path):
    path, theirs = source
    rules = {"rules": (("norm/(.*)", r"image/norm/\1"), (".*", None))}
    ours, _ = created(tmp_path, path, rules=rules)
    np.testing.assert_array_equal(ours["image/norm/scale"], theirs["norm/scale"])


def larger(vocab_size):
    made = tiny.coca(vocab_size)
    made.image.patch_size = 2
    return made


def test_positions_of_another_resolution_are_resized(source, tmp_path):
    path, theirs = source
    keep = (("image/patch/kernel", None),)
    ours, _ = created(tmp_path, path, model=larger, rules={"rules": keep})
    found, given = ours["image/position_embedding"], theirs["image/position_embedding"]
    assert found.shape == (64, 16) and given.shape == (16, 16)
    np.testing.assert_allclose(
        found.reshape(8, 8, 16), upsampled(given.reshape(4, 4, 16)), atol=1e-5
    )


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
    found = init_from.resize_grid(jnp.ones((9, 2)), 25)
    np.testing.assert_allclose(found, np.ones((25, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("imag/.*", None),), "matches no parameter"),
        (((".*", None),), "leave nothing"),
        ((("image/(.*)", r"picture/\1"),), "has no place here: there is no picture/"),
        ((("norm/scale", "image/norm/scale"),), "would both load into image/norm/scale"),
        ((("norm/scale", "text/cls"), ("norm/bias", "text/embedding"), (".*", None)), "not fit"),
    ],
)
def test_rules_that_cannot_work(source, tmp_path, rules, message):
    with pytest.raises(UserError, match=message):
        created(tmp_path, source[0], rules={"rules": rules})


def test_a_path_without_a_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in"):
        created(tmp_path, str(tmp_path / "nowhere"), rules={})


def test_a_continued_run_does_not_load_again(source, tmp_path):
    fault = {"at": 2, "marker": str(tmp_path / "marker"), "signal": 15}
    start = spec.spec(init_from.InitFrom, path=source[0])
    interrupted = runs.config(tmp_path, model=tiny.coca, fault=fault, init_from=start)
    runs.train(interrupted, tmp_path / "run")
    runs.train(interrupted, tmp_path / "run")
    runs.train(interrupted, tmp_path / "whole")
    assert runs.digests(tmp_path / "run") == runs.digests(tmp_path / "whole")
