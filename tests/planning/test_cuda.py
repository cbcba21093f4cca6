"""What is read from programs of XLA's GPU compiler, where theory says what must be in them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_mm import mesh
from big_mm.planning import chips, compiler, cuda
from big_mm.planning.collectives import collectives
from big_mm.planning.hlo import Module
from big_mm.planning.traffic import hbm_bytes
from big_mm.spec import UserError

LAYERS, WIDTH, ROWS = 5, 512, 2048

# Two gathers of one channel, as all of them have it there, and a product of cuBLAS.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], f32[128,512])) -> (s32[], f32[128,512]) {
  %state = (s32[], f32[128,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %shard = f32[128,512]{1,0} get-tuple-element(%state), index=1
  %first = (f32[128,512]{1,0}, f32[512,512]{1,0}) all-gather-start(%shard), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true
  %whole = f32[512,512]{1,0} all-gather-done(%first)
  %product = (f32[128,512]{1,0}, s8[33554432]{0}) custom-call(%shard, %whole), custom_call_target="__cublas$lt$matmul"
  %out = f32[128,512]{1,0} get-tuple-element(%product), index=0
  ROOT %next = (s32[], f32[128,512]{1,0}) tuple(%i, %out)
}

%bound (state.1: (s32[], f32[128,512])) -> pred[] {
  %state.1 = (s32[], f32[128,512]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] fusion(%i.1), kind=kLoop, calls=%compared
}

%compared (i.2: s32[]) -> pred[] {
  %i.2 = s32[] parameter(0)
  %five = s32[] constant(5)
  ROOT %less.1 = pred[] compare(%i.2, %five), direction=LT
}

ENTRY %main (start: s32[], rows: f32[128,512]) -> f32[512,512] {
  %start = s32[] parameter(0)
  %rows = f32[128,512]{1,0} parameter(1)
  %carry = (s32[], f32[128,512]{1,0}) tuple(%start, %rows)
  %loop = (s32[], f32[128,512]{1,0}) while(%carry), condition=%bound, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %last = f32[128,512]{1,0} get-tuple-element(%loop), index=1
  %summing = f32[128,512]{1,0} all-reduce-start(%last), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, use_global_device_ids=true, to_apply=%add
  %summed = f32[128,512]{1,0} all-reduce-done(%summing)
  %second = (f32[128,512]{1,0}, f32[512,512]{1,0}) all-gather-start(%summed), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, use_global_device_ids=true
  ROOT %all = f32[512,512]{1,0} all-gather-done(%second)
}
"""  # noqa: E501


def test_every_collective_counts_though_they_share_a_channel():
    found = [(one.kind, one.runs, one.devices, one.sent) for one in read()]
    whole, shard = WIDTH * WIDTH * 4, 128 * WIDTH * 4
    group = (0, 1, 2, 3)
    assert sorted(found) == [
        ("all-gather", 1, group, whole * 3 // 4),
        ("all-gather", LAYERS, group, whole * 3 // 4),
        ("all-reduce", 1, (0, 4), shard),
    ]


def read():
    return collectives(Module(PROGRAM, "cuda"))


def test_the_room_that_cublas_works_in_is_no_traffic():
    whole, shard = WIDTH * WIDTH * 4, 128 * WIDTH * 4
    gather, product, reduce = shard + whole, shard + whole + shard, 2 * shard
    assert hbm_bytes(Module(PROGRAM, "cuda")) == LAYERS * (gather + product) + reduce + gather


def test_the_plugin_is_asked_for(monkeypatch):
    monkeypatch.setattr(cuda.importlib.metadata, "version", _absent)
    with pytest.raises(UserError, match=r"pip install -e '.\[plan-gpu\]'.*--analytic"):
        compiler.require([chips.parse("h100:2x4")])


def _absent(name):
    raise cuda.importlib.metadata.PackageNotFoundError(name)


@pytest.mark.cuda_compiler
def test_missing_libraries_are_asked_for(monkeypatch):
    def broken(lowered, options):
        raise jax.errors.JaxRuntimeError("INTERNAL: libdevice not found at ./libdevice.10.bc")

    cuda._check_libraries.cache_clear()
    monkeypatch.setattr(jax.stages.Lowered, "compile", broken)
    with pytest.raises(UserError, match=r"pip install -e '.\[plan-gpu\]'.*libdevice not found"):
        compiler.devices(chips.parse("h100:2x4"))


def compiled(function, topology, shapes):
    """`function` of float32 arrays split as `shapes` say, on a slice with nodes of four."""
    devices = mesh.MeshConfig(fsdp=4).make(compiler.devices(topology))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, split))
        for shape, split in shapes
    ]
    with mesh.using(devices):
        out = jax.tree.map(lambda x: x.sharding, arguments[1])
        lowered = (
            jax.jit(function, donate_argnums=1, out_shardings=out)
            .trace(*arguments)
            .lower(lowering_platforms=("cuda",))
        )
    return compiler.compile(lowered, topology)


def step(x, weights):
    """One step of gradient descent through five layers, whose weights are gathered when needed."""

    def loss(weights):
        def layer(x, weight):
            return jnp.tanh(x @ weight), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, weights)[0])

    return weights - 0.1 * jax.grad(loss)(weights)


SHAPES = (
    ((ROWS, WIDTH), PartitionSpec(mesh.BATCH_AXES)),
    ((LAYERS, WIDTH, WIDTH), PartitionSpec(None, "fsdp")),
)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """What an earlier run of the tests compiled proves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.cuda_compiler
@pytest.mark.usefixtures("own_cache")
def test_a_step_with_sharded_weights():
    result = compiled(step, chips.parse("h100:2x4"), SHAPES)
    weights = LAYERS * WIDTH * WIDTH * 4
    assert not result.refusal and not result.cycles
    assert result.argument_bytes == ROWS // 8 * WIDTH * 4 + weights // 4
    assert result.peak_bytes > result.argument_bytes
    share = weights // LAYERS * 3 // 4  # of one layer's weights, passed on by each of four
    assert sorted((one.kind, one.devices, one.runs, one.sent) for one in result.collectives) == [
        ("all-gather", (0, 1, 2, 3), LAYERS, share),  # forward
        ("all-gather", (0, 1, 2, 3), LAYERS, share),  # and computed again
        ("all-reduce", (0, 4), LAYERS, weights // LAYERS // 4),
        ("reduce-scatter", (0, 1, 2, 3), LAYERS, share),
    ]


@pytest.mark.cuda_compiler
@pytest.mark.usefixtures("own_cache")
def test_what_does_not_fit_is_a_result(monkeypatch):
    def large(x, weights):
        rows = jnp.sin(x @ x.T)  # [12,000, 96,000] on each GPU: 4.6 GB
        return weights + jnp.sum(jnp.cos(rows) @ (rows @ x))

    shapes = (((8 * 12_000, 128), PartitionSpec(mesh.BATCH_AXES)), SHAPES[1])
    assert not compiled(large, chips.parse("h100:2x4"), shapes).refusal
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.1")
    result = compiled(large, chips.parse("h100:2x4"), shapes)
    assert result.refusal.endswith(" GiB of 7.91") and not result.peak_bytes
