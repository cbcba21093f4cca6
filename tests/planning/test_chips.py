"""Slices: which there are, and how fast a group of chips in them exchanges."""

import pytest

from big_mm.planning import chips
from big_mm.spec import UserError


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:16x16", 256), ("v6e:2x4", 8), ("v5p:8x8x4", 256), ("v4:2x2x1", 4), ("h100:32x8", 256)],
)
def test_slices(name, count):
    assert chips.parse(name).chips == count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "no chip 'v9'.* v4, v5e, v5p, v6e, h100, h200"),
        ("h100", "does not say its extent, as in h100:32x8"),
        ("h100:32x16", "no slice of h100: it is nodes x GPUs of a node, and of these 1, 2, 4, 8"),
        ("h200:8", "does not say its extent, as in h200:32x8"),
        ("h100:0x8", "no slice of h100"),
        ("v5e", "does not say its extent, as in v5e:16x16"),
        ("v5p:8by8", "as in v5p:8x8x4"),
        ("v5e:32x32", "no slice of v5e: there are 2x2, .*16x16"),
        ("v5p:6x4x4", "multiples of 4"),
        ("v5p:32x32x32", "up to 6144 chips"),
        ("v5p:16x16", "three sizes"),
    ],
)
def test_what_is_no_slice(name, message):
    with pytest.raises(UserError, match=message):
        chips.parse(name)


def test_bandwidth_counts_links_and_rings():
    pod, part = chips.parse("v5e:16x16"), chips.parse("v5e:4x8")
    link = pod.chip.link
    row, column = [(x, 0) for x in range(16)], [(0, y) for y in range(16)]
    assert pod.bandwidth(row) == pod.bandwidth(column) == 2 * link  # a ring: both ways
    assert pod.bandwidth(row[:8]) == link  # a line
    assert pod.bandwidth([(x, y) for x in range(16) for y in range(16)]) == 4 * link
    assert part.bandwidth([(x, 0) for x in range(4)]) == link  # no ring in a part of a pod
    cube = chips.parse("v5p:4x4x4")
    assert cube.bandwidth([(0, 0, z) for z in range(4)]) == 2 * cube.chip.link


def test_bandwidth_of_gpus_is_of_nvlink_or_of_the_adapters():
    slice_ = chips.parse("h100:4x8")
    node = [(0, 0, gpu) for gpu in range(8)]
    assert slice_.bandwidth(node) == slice_.bandwidth(node[:2]) == slice_.chip.link
    network = slice_.chip.network
    assert slice_.bandwidth([(0, 0, 3), (1, 0, 3)]) == network
    assert slice_.bandwidth([(n, 0, g) for n in range(2) for g in range(4)]) == 4 * network
    assert slice_.bandwidth([*node, (1, 0, 0)]) == network  # through the one in the other node


def test_the_memory_of_a_gpu_is_what_jax_would_take(monkeypatch):
    whole = chips.CHIPS["h200"].memory
    assert chips.parse("h200:1x8").chip.hbm == 0.75 * whole
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", ".9")
    assert chips.parse("h200:1x8").chip.hbm == 0.9 * whole
    for bad in ("much", "0", "1.5"):
        monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", bad)
        with pytest.raises(UserError, match=f"XLA_CLIENT_MEM_FRACTION={bad} is no share"):
            chips.parse("h200:1x8")
