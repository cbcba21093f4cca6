"""Slices: which there are, and how fast a group of chips in them exchanges."""

import pytest

from big_mm.planning import chips
from big_mm.spec import UserError


@pytest.mark.parametrize(
    ("name", "count"), [("v5e:16x16", 256), ("v6e:2x4", 8), ("v5p:8x8x4", 256), ("v4:2x2x1", 4)]
)
def test_slices(name, count):
    assert chips.parse(name).chips == count


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "no chip 'v9'.* v4, v5e, v5p, v6e"),
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
