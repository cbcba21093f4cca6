"""Mesh shapes and sharding rules, on the fake devices of the test session."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from big_mm import mesh as meshes
from big_mm import trees
from big_mm.mesh import MeshConfig
from big_mm.spec import UserError

TREE = {
    "kernel": jax.ShapeDtypeStruct((12, 128, 256), jnp.float32),
    "bias": jax.ShapeDtypeStruct((256,), jnp.float32),
}


def abstract(**sizes):
    """A mesh of one device repeated: enough for rules, whatever the session's devices."""
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_minus_one_takes_the_devices_that_are_left():
    devices = jax.devices()
    assert MeshConfig().make().shape == {"data": len(devices), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"data": 10**6}, {"data": -1, "fsdp": -1}, {"fsdp": 0}])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(UserError, match="mesh"):
        MeshConfig(**sizes).make()


def test_unnamed_parameters_are_sharded_along_their_largest_divisible_axis():
    chosen = meshes.shardings(TREE, abstract(data=2, fsdp=4, tensor=1))
    assert chosen["kernel"].spec == P(None, None, "fsdp")
    assert chosen["bias"].spec == P()


def test_rules_name_axes_and_are_checked():
    mesh = abstract(data=1, fsdp=4, tensor=2)
    rules = (("kernel", (None, "fsdp", "tensor")),)
    assert meshes.shardings(TREE, mesh, rules)["kernel"].spec == P(None, "fsdp", "tensor")
    with pytest.raises(UserError, match="names \\['model'\\]"):
        meshes.shardings(TREE, mesh, (("kernel", ("model",)),))
    with pytest.raises(UserError, match="cannot be split"):
        meshes.shardings(TREE, abstract(fsdp=5), (("kernel", ("fsdp",)),))
    with pytest.raises(UserError, match="more dimensions"):
        meshes.shardings(TREE, mesh, (("bias", (None, "fsdp")),))


def test_a_global_batch_holds_the_rows_in_order():
    mesh = MeshConfig().make()
    rows = np.arange(4 * jax.device_count()).reshape(-1, 2)
    batch = meshes.to_global({"x": rows}, mesh)
    np.testing.assert_array_equal(batch["x"], rows)


def test_the_digest_does_not_depend_on_the_sharding():
    mesh = MeshConfig(data=1, fsdp=-1).make()
    x = np.random.default_rng(0).normal(size=(64, 8 * 256)).astype(np.float32)
    sharded = jax.device_put({"x": x}, meshes.shardings({"x": x}, mesh))
    assert trees.digest(sharded) == trees.digest({"x": jnp.asarray(x)})


def test_half_announced_processes_are_an_error(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES without"):
        meshes.init_distributed()
