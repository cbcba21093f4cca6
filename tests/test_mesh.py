"""Mesh shapes and sharding rules, on the fake devices of the test session."""

import dataclasses

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
    assert chosen["bias"].spec == P(None)


def test_rules_name_axes_and_are_checked():
    mesh = abstract(data=1, fsdp=4, tensor=2)
    rules = (("kernel", (None, "fsdp", "tensor")),)
    assert meshes.shardings(TREE, mesh, rules)["kernel"].spec == P(None, "fsdp", "tensor")
    with pytest.raises(UserError, match="names \\['model'\\]"):
        meshes.shardings(TREE, mesh, (("kernel", ("model",)),))
    with pytest.raises(UserError, match="cannot be split"):
        meshes.shardings(TREE, abstract(data=1, fsdp=5, tensor=1), (("kernel", ("fsdp",)),))
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


@dataclasses.dataclass(frozen=True)
class Device:
    """What an arrangement looks at."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_data_crosses_slices_and_fsdp_does_not():
    devices = [Device(i, i % 2) for i in range(8)]
    mesh = MeshConfig(data=4, fsdp=2).make(devices)
    for replica in mesh.devices:
        assert len({device.slice_index for device in replica.flat}) == 1
    assert {device.slice_index for device in mesh.devices[:2].flat} == {0}


def test_a_mesh_without_data_over_slices_is_warned_of(caplog):
    mesh = MeshConfig(data=1, fsdp=8).make([Device(i, i % 2) for i in range(8)])
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert "no multiple of the 2 slices" in caplog.text


def layer(width=128, heads=4, hidden=512, depth=3):
    """Paths and shapes of a scanned block, as `models.layers` names them."""
    part = (heads, width // heads)
    shapes = {
        "attention/qkv/kernel": (depth, width, 3, *part),
        "attention/qkv/bias": (depth, 3, *part),
        "attention/out/kernel": (depth, *part, width),
        "attention/out/bias": (depth, width),
        "mlp/up/kernel": (depth, width, hidden),
        "mlp/up/bias": (depth, hidden),
        "mlp/down/kernel": (depth, hidden, width),
    }
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def test_tensor_splits_heads_and_hidden_units():
    chosen = meshes.shardings(layer(), abstract(data=1, fsdp=2, tensor=4))
    assert {path: leaf.spec for path, leaf in chosen.items()} == {
        "attention/qkv/kernel": P(None, "fsdp", None, "tensor", None),
        "attention/qkv/bias": P(None, None, "tensor", None),
        "attention/out/kernel": P(None, "tensor", None, "fsdp"),
        "attention/out/bias": P(None, None),
        "mlp/up/kernel": P(None, "fsdp", "tensor"),
        "mlp/up/bias": P(None, "tensor"),
        "mlp/down/kernel": P(None, "tensor", "fsdp"),
    }


def test_heads_that_tensor_does_not_divide_are_an_error_until_a_rule_places_them():
    mesh = abstract(data=1, fsdp=1, tensor=4)
    with pytest.raises(UserError, match="tensor=4 does not divide the 2 parts of attention/out/k"):
        meshes.shardings(layer(heads=2), mesh)
    rules = (("attention/.*", ()),)
    assert meshes.shardings(layer(heads=2), mesh, rules)["attention/qkv/kernel"].spec == P()
