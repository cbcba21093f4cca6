"""The reading of optimised HLO, on a program small enough to count by hand."""

import pytest

from big_mm.planning import collectives, hlo, traffic
from big_mm.spec import UserError

# A loop of 5 turns over a stack of weights, each gathered by 4 devices; the gather is cut into two
# fragments, one of which overlaps an inner loop of 3. Then a gradient that is reduce-scattered in a
# fusion, and a call of a computation that passes a block on.
PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={()->f32[8]{0}}

%fused_slice (param_0.1: bf16[5,128,512], param_1.1: s32[]) -> bf16[128,512] {
  %param_0.1 = bf16[5,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %view = bf16[5,128,512]{2,1,0:T(8,128)(2,1)} bitcast(%param_0.1)
  %slice.1 = bf16[1,128,512]{2,1,0:T(8,128)(2,1)} dynamic-slice(%view, %param_1.1), dynamic_slice_sizes={1,128,512}
  ROOT %bitcast.1 = bf16[128,512]{1,0:T(8,128)(2,1)} bitcast(%slice.1)
}

%fused_update (param_0.2: f32[5,256], param_1.2: f32[256]) -> f32[5,256] {
  %param_0.2 = f32[5,256]{1,0:T(8,128)} parameter(0)
  %param_1.2 = f32[256]{0:T(256)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %wide = f32[1,256]{1,0:T(1,128)} bitcast(%param_1.2)
  ROOT %update.1 = f32[5,256]{1,0:T(8,128)} dynamic-update-slice(%param_0.2, %wide, %zero, %zero)
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input.1: f32[64,128]) -> f32[16,128] {
  %input.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,128]{1,0:T(8,128)} all-reduce(%input.1), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %where = s32[]{:T(128)} constant(0)
  ROOT %own = f32[16,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %where, %where), dynamic_slice_sizes={16,128}
}

%inner_cond (inner.1: (s32[], bf16[512,512])) -> pred[] {
  %inner.1 = (s32[]{:T(128)}, bf16[512,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %i.1 = s32[]{:T(128)} get-tuple-element(%inner.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%i.1, %three), direction=LT
}

%inner_body (inner.2: (s32[], bf16[128,512])) -> (s32[], bf16[128,512]) {
  %inner.2 = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) parameter(0)
  %shard.2 = bf16[128,512]{1,0:T(8,128)(2,1)} get-tuple-element(%inner.2), index=1
  %all-gather.2 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%shard.2), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, use_global_device_ids=true
  ROOT %out.2 = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) tuple(%inner.2, %shard.2)
}

%outer_cond (outer.1: (s32[], bf16[5,128,512])) -> pred[] {
  %outer.1 = (s32[]{:T(128)}, bf16[5,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %five = s32[]{:T(128)} constant(5)
  %i.2 = s32[]{:T(128)} get-tuple-element(%outer.1), index=0
  ROOT %less.2 = pred[]{:T(512)} compare(%i.2, %five), direction=LT
}

%outer_body (outer.2: (s32[], bf16[5,128,512])) -> (s32[], bf16[5,128,512]) {
  %outer.2 = (s32[]{:T(128)}, bf16[5,128,512]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%outer.2), index=0
  %stack = bf16[5,128,512]{2,1,0:T(8,128)(2,1)} get-tuple-element(%outer.2), index=1
  %shard = bf16[128,512]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i.3), kind=kLoop, calls=%fused_slice, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-gather.1 = bf16[512,512]{1,0:T(8,128)(2,1)} all-gather(%shard), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/gather"}
  %state = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) tuple(%i.3, %shard)
  %overlap = (s32[]{:T(128)}, bf16[128,512]{1,0:T(8,128)(2,1)}) while(%state), condition=%inner_cond, body=%inner_body
  ROOT %out.3 = (s32[]{:T(128)}, bf16[5,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%i.3, %stack)
}

%passed (block.1: f32[32]) -> f32[32] {
  %block.1 = f32[32]{0:T(128)} parameter(0)
  ROOT %permute.1 = f32[32]{0:T(128)} collective-permute(%block.1), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
}

ENTRY %main (stack.1: bf16[5,128,512], gradient.1: f32[64,128], block: f32[32], rows.1: f32[5,256], row.1: f32[256]) -> f32[8] {
  %stack.1 = bf16[5,128,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %gradient.1 = f32[64,128]{1,0:T(8,128)} parameter(1)
  %block = f32[32]{0:T(128)} parameter(2)
  %rows.1 = f32[5,256]{1,0:T(8,128)} parameter(3)
  %row.1 = f32[256]{0:T(256)} parameter(4)
  %start = s32[]{:T(128)} constant(0)
  %carry = (s32[]{:T(128)}, bf16[5,128,512]{2,1,0:T(8,128)(2,1)}) tuple(%start, %stack.1)
  %loop = (s32[]{:T(128)}, bf16[5,128,512]{2,1,0:T(8,128)(2,1)}) while(%carry), condition=%outer_cond, body=%outer_body
  %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%gradient.1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config": {"metadata":
"{\\"block\\": 256
}}, metadata={op_name="jit(step)/kernel"}
  %scattered = f32[16,128]{1,0:T(8,128)} fusion(%gradient.1), kind=kCustom, calls=%all-reduce-scatter.1, backend_config={"window_config":{"estimated_cycles":"40"}}
  %moved = f32[32]{0:T(128)} call(%block), to_apply=%passed
  %updated = f32[5,256]{1,0:T(8,128)} fusion(%rows.1, %row.1), kind=kLoop, calls=%fused_update
  %narrow = f32[3,10]{1,0:T(8,128)} copy(%rows.1)
  ROOT %done = f32[8]{0:T(128)S(1)} copy(%row.1)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def module():
    return hlo.Module(PROGRAM)


def test_how_often_each_computation_runs(module):
    assert module.runs["main"] == module.runs["passed"] == 1
    assert module.runs["outer_body"] == module.runs["fused_slice"] == 5
    assert module.runs["inner_body"] == 15


def test_collectives(module):
    found = {one.kind: one for one in collectives.collectives(module)}
    assert len(collectives.collectives(module)) == len(found) == 3
    gather = found["all-gather"]
    assert (gather.runs, gather.group, gather.devices) == (5, 4, (0, 1, 2, 3))
    assert gather.sent == 512 * 512 * 2 * 3 // 4 and gather.op_name == "jit(step)/gather"
    scatter = found["reduce-scatter"]
    assert (scatter.runs, scatter.group, scatter.sent) == (1, 4, 64 * 128 * 4 * 3 // 4)
    assert found["collective-permute"].sent == 32 * 4


def test_cycles(module):
    assert module.cycles() == 5 * 100 + 40
    assert [(c, runs) for c, runs, _ in module.costliest(9)] == [(500, 5), (40, 1)]


def test_hbm_traffic(module):
    layer = 128 * 512 * 2
    # A layer of the stack is read and stays on the chip; the gathered weights are written once.
    loop = 5 * (layer + 4 * layer)
    kernel = 64 * 128 * 4 + 8 * 128 * 4
    scattered = 64 * 128 * 4 + 16 * 128 * 4
    permute = 2 * 128 * 4  # 32 numbers fill a tile of 128
    updated = 2 * 256 * 4  # one row of five, in place
    copied = (8 * 256 + 8 * 128) * 4 + 256 * 4  # padded to whole tiles; the result is on the chip
    assert traffic.hbm_bytes(module) == loop + kernel + scattered + permute + updated + copied


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("{{0,4},{1,5}}", (0, 4)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("mesh['a'=8] {'a':(1)4}", (0, 2, 4, 6)),
    ],
)
def test_groups(groups, devices):
    assert (
        collectives._group(f", channel_id=1, replica_groups={groups}, dimensions={{0}}") == devices
    )


def test_what_cannot_be_read_is_refused():
    with pytest.raises(UserError, match="no HLO module"):
        hlo.Module("nothing")
    unknown = PROGRAM.replace("constant(5)", "parameter(1)")
    with pytest.raises(UserError, match="turns of the loop loop cannot be read"):
        hlo.Module(unknown).cycles()


def test_the_backend_may_know_the_turns():
    known = PROGRAM.replace(
        "condition=%outer_cond, body=%outer_body",
        'condition=%outer_cond, body=%outer_body, backend_config={"known_trip_count":{"n":"12"}}',
    )
    assert hlo.Module(known).runs["outer_body"] == 12
