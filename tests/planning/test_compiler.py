"""What is read from programs of the real TPU compiler, where theory says what must be in them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_mm import mesh
from big_mm.planning import chips, compiler
from big_mm.spec import UserError

SLICE = "v5e:2x4"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What an earlier run of the tests compiled proves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_a_refusal_is_condensed():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (50.53G) exceeds available HBM (15.75G).\n\nLargest program allocations: ..."
    )
    assert compiler.condense(message) == (
        "Ran out of memory on HBM, the total memory required for HLO temporaries (50.53G) exceeds "
        "available HBM (15.75G)."
    )


def test_a_result_survives_json():
    one = compiler.Collective("all-gather", 4, (0, 1, 2, 3), 5, 100, 200, "where")
    result = compiler.Compiled(peak_bytes=3, collectives=(one,), costliest=((9, 1, "a", "b"),))
    assert compiler.from_json(compiler.to_json(result)) == result


@functools.cache
def compiled(name):
    """`programs[name]` for eight chips."""
    topology = chips.parse(SLICE)
    devices = mesh.MeshConfig(data=2, fsdp=4).make(compiler.devices(topology))
    function, *shapes = PROGRAMS[name]
    split = jax.shard_map(
        function,
        mesh=devices,
        in_specs=tuple(spec for _, spec in shapes),
        out_specs=PartitionSpec(mesh.BATCH_AXES),
        check_vma=False,
    )
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, spec))
        for shape, spec in shapes
    ]
    lowered = jax.jit(split).trace(*arguments).lower(lowering_platforms=("tpu",))
    return compiler.compile(lowered, topology)


def exchange(x, weights):
    """Five turns, each gathering a matrix of 512 x 512; then one of every other kind."""

    def turn(x, weight):
        whole = jax.lax.all_gather(weight, "fsdp", tiled=True)  # [128, 512] of each
        return jnp.tanh(x @ whole), None

    x, _ = jax.lax.scan(turn, x, weights)
    summed = jax.lax.psum(x, "data")
    scattered = jax.lax.psum_scatter(jnp.sin(summed), "fsdp", tiled=True)
    moved = jax.lax.ppermute(scattered, "data", [(0, 1), (1, 0)])
    return jax.lax.all_to_all(moved.reshape(4, -1), "fsdp", 0, 0)


def too_large(x):
    rows = jnp.sin(x @ x.T)  # [90000, 90000]: 32 GB
    return jnp.cos(rows @ rows @ x)


ROWS = PartitionSpec(mesh.BATCH_AXES)
PROGRAMS = {
    "exchange": (exchange, ((2048, 512), ROWS), ((5, 512, 512), PartitionSpec(None, "fsdp"))),
    "too large": (too_large, ((8 * 90_000, 128), ROWS)),
}


@pytest.mark.tpu_compiler
def test_collectives_are_those_of_the_program():
    found = {}
    for one in compiled("exchange").collectives:
        runs, sent, group = found.get(one.kind, (0, 0, one.group))
        found[one.kind] = (runs + one.runs, sent + one.runs * one.sent, group)
    rows = 2048 // 8 * 512 * 4  # bytes of the activation of a device
    assert found["all-gather"] == (5, 5 * 512 * 512 * 4 * 3 // 4, 4)
    assert found["all-reduce"] == (1, rows, 2)  # 2 * (n - 1) / n of them
    assert found["reduce-scatter"] == (1, rows * 3 // 4, 4)
    assert found["collective-permute"] == (1, rows // 4, 2)
    assert found["all-to-all"] == (1, rows // 4 * 3 // 4, 4)


@pytest.mark.tpu_compiler
def test_memory_and_traffic():
    result = compiled("exchange")
    arguments = 2048 // 8 * 512 * 4 + 5 * 128 * 512 * 4
    assert not result.refusal and result.argument_bytes == arguments
    assert result.peak_bytes >= arguments
    # At the least: what comes in is read.
    assert result.hbm_bytes >= arguments


@pytest.mark.tpu_compiler
def test_what_does_not_fit_is_a_result():
    result = compiled("too large")
    assert "exceeds available HBM (15.75G)" in result.refusal and not result.peak_bytes


@pytest.mark.tpu_compiler
def test_a_program_is_compiled_once(tmp_path):
    compiled.cache_clear()
    first = compiled("too large")
    (kept,) = (tmp_path / "big_mm" / "plans").iterdir()
    kept.write_text(kept.read_text().replace("15.75G", "15.76G"))
    compiled.cache_clear()
    second = compiled("too large")
    compiled.cache_clear()
    assert "15.75G" in first.refusal and "15.76G" in second.refusal


def test_no_private_directory_no_cache(tmp_path, monkeypatch):
    shared = tmp_path / "big_mm" / "plans"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.private_cache("plans") is None


def test_the_compiler_is_asked_for(monkeypatch):
    monkeypatch.setattr(compiler.importlib.metadata, "version", _absent)
    with pytest.raises(UserError, match=r"pip install -e '.\[plan\]'.*--analytic"):
        compiler.devices(chips.parse(SLICE))


def _absent(name):
    raise compiler.importlib.metadata.PackageNotFoundError(name)
