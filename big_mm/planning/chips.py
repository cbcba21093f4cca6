"""Accelerators and the slices they are rented in: peaks, memory, links. Public vendor figures.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e system architecture) and, for the bandwidth of
one link in one direction, jax-ml.github.io/scaling-book/tpus. The usable HBM is what libtpu 0.0.42
says when it refuses a program; the clock is the peak divided by the multipliers of the chip.
"""

import dataclasses
import math
import re

from big_mm.spec import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      peak: bfloat16 operations per second.
      hbm: usable bytes.
      hbm_bandwidth: bytes per second.
      link: bytes per second of one interconnect link in one direction.
      clock: cycles per second of the matrix units.
      torus: dimensions of the interconnect: 2, or 3 in cubes of 4 x 4 x 4.
      largest: chips of the largest slice.
      compiler: the name of a topology for the TPU compiler, and the options it needs.
    """

    peak: float
    hbm: float
    hbm_bandwidth: float
    link: float
    clock: float
    torus: int
    largest: int
    compiler: str
    options: tuple[tuple[str, str], ...] = ()


_MEGACORE = (("chip_config_name", "megacore"),)
CHIPS = {
    "v4": Chip(275e12, 30.75 * GIB, 1.23e12, 4.5e10, 1.05e9, 3, 4096, "v4", _MEGACORE),
    "v5e": Chip(197e12, 15.75 * GIB, 8.2e11, 4.5e10, 1.5e9, 2, 256, "v5e"),
    "v5p": Chip(459e12, 95.74 * GIB, 2.765e12, 9e10, 1.75e9, 3, 6144, "v5", _MEGACORE),
    "v6e": Chip(918e12, 31.25 * GIB, 1.64e12, 9e10, 1.75e9, 2, 256, "v6e"),
}
# Slices of a two-dimensional torus that can be rented; only an axis of 16 closes to a ring.
FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Parts of one cube; larger slices are whole cubes, whose axes are all rings.
SMALL = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a kind of chip and the extent of its torus.

    Attributes:
      name: as `parse` takes it.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips; each is one device."""
        return math.prod(self.shape)

    def closed(self, axis: int) -> bool:
        """Whether the links along an axis form a ring."""
        if self.chip.torus == 2:
            return self.shape[axis] == 16
        return all(size % 4 == 0 for size in self.shape)

    def bandwidth(self, places: list[tuple[int, ...]]) -> float:
        """Bytes per second at which one of a group of chips sends to its neighbours, over the links
        of all axes along which the group extends: both ways where the group is a closed ring.

        Args:
          places: coordinates of the group's chips.
        """
        total = 0.0
        for axis in range(len(self.shape)):
            extent = len({place[axis] for place in places})
            ring = extent == self.shape[axis] and self.closed(axis)
            total += self.chip.link * (2 if ring else 1) * (extent > 1)
        return total or self.chip.link


def parse(name: str) -> Topology:
    """A slice by name, like v5e:16x16 or v5p:8x8x4.

    Raises:
      UserError: no such chip, or not a slice that exists.
    """
    kind, _, extent = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"no chip {kind!r} in --topology {name}: there are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"\d+(x\d+)+", extent):
        form = "16x16" if chip.torus == 2 else "8x8x4"
        raise UserError(f"--topology {name} does not say its extent, as in {kind}:{form}")
    shape = tuple(int(size) for size in extent.split("x"))
    if chip.torus == 2 and shape not in FLAT:
        slices = ", ".join("x".join(map(str, s)) for s in FLAT)
        raise UserError(f"{name} is no slice of {kind}: there are {slices}")
    if chip.torus == 3:
        cubes = len(shape) == 3 and all(size % 4 == 0 and size for size in shape)
        if not (cubes or tuple(sorted(shape)) in SMALL) or math.prod(shape) > chip.largest:
            raise UserError(
                f"{name} is no slice of {kind}: its three sizes are multiples of 4, up to "
                f"{chip.largest} chips, or 2x2x1, 2x2x2, 2x2x4, 2x4x4"
            )
    return Topology(name, chip, shape)
