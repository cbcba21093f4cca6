"""Accelerators and the slices they are rented in: peaks, memory, links. Public vendor figures.

Sources for TPUs: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e system architecture) and, for the
bandwidth of one link in one direction, jax-ml.github.io/scaling-book/tpus. The usable HBM is what
libtpu 0.0.42 says when it refuses a program; the clock is the peak divided by the multipliers of
the chip. For GPUs: NVIDIA's data sheets of H100 SXM and H200 SXM (dense bfloat16, NVLink 4) and of
DGX H100, which has one 400 Gbit/s adapter for each GPU; memory as the driver reports it.
"""

import collections
import contextlib
import dataclasses
import math
import os
import re
from typing import ClassVar

from big_mm.spec import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      peak: bfloat16 operations per second.
      hbm: usable bytes.
      hbm_bandwidth: bytes per second.
      link: bytes per second in one direction: of one link of a TPU's interconnect, of all the
        NVLinks of a GPU.
    """

    peak: float
    hbm: float
    hbm_bandwidth: float
    link: float


@dataclasses.dataclass(frozen=True)
class TPU(Chip):
    """A chip of a torus.

    Attributes:
      clock: cycles per second of the matrix units.
      torus: dimensions of the interconnect: 2, or 3 in cubes of 4 x 4 x 4.
      largest: chips of the largest slice.
      compiler: the name of a topology for the TPU compiler, and the options it needs.
    """

    clock: float
    torus: int
    largest: int
    compiler: str
    options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class GPU(Chip):
    """A GPU of a node; `hbm` is JAX's share of its memory.

    Attributes:
      network: bytes per second of its adapter in one direction.
      memory: bytes in all.
      name: as the driver says it.
    """

    network: float
    memory: int
    name: str


# The part of a GPU's memory that JAX takes for its programs, unless this variable says otherwise.
SHARE, SHARE_VARIABLE = 0.75, "XLA_CLIENT_MEM_FRACTION"
_MEGACORE = (("chip_config_name", "megacore"),)


def _hopper(memory: int, bandwidth: float, name: str) -> GPU:
    return GPU(989e12, SHARE * memory, bandwidth, 4.5e11, 5e10, memory, name)


CHIPS: dict[str, TPU | GPU] = {
    "v4": TPU(275e12, 30.75 * GIB, 1.23e12, 4.5e10, 1.05e9, 3, 4096, "v4", _MEGACORE),
    "v5e": TPU(197e12, 15.75 * GIB, 8.2e11, 4.5e10, 1.5e9, 2, 256, "v5e"),
    "v5p": TPU(459e12, 95.74 * GIB, 2.765e12, 9e10, 1.75e9, 3, 6144, "v5", _MEGACORE),
    "v6e": TPU(918e12, 31.25 * GIB, 1.64e12, 9e10, 1.75e9, 2, 256, "v6e"),
    "h100": _hopper(84942979072, 3.35e12, "NVIDIA H100 80GB HBM3"),
    "h200": _hopper(151397597184, 4.8e12, "NVIDIA H200"),
}
# GPUs of a node that NVLink joins.
NODES = (1, 2, 4, 8)
# Slices of a two-dimensional torus that can be rented; only an axis of 16 closes to a ring.
FLAT = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Parts of one cube; larger slices are whole cubes, whose axes are all rings.
SMALL = ((1, 2, 2), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a kind of chip and how many there are in each direction.

    Attributes:
      name: as `parse` takes it.
      platform: what JAX calls its compiler.
    """

    platform: ClassVar[str]
    name: str
    chip: TPU | GPU
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips; each is one device."""
        return math.prod(self.shape)

    def bandwidth(self, places: list[tuple[int, ...]]) -> float:
        """Bytes per second at which each of a group of chips passes data round a ring of them.

        Args:
          places: coordinates of the group's chips.
        """
        raise NotImplementedError


class Torus(Topology):
    """TPUs joined by links to their neighbours along each axis."""

    platform = "tpu"

    def closed(self, axis: int) -> bool:
        """Whether the links along an axis form a ring."""
        if self.chip.torus == 2:
            return self.shape[axis] == 16
        return all(size % 4 == 0 for size in self.shape)

    def bandwidth(self, places: list[tuple[int, ...]]) -> float:
        """Over the links of all axes along which the group extends: both ways where the group is a
        closed ring.
        """
        total = 0.0
        for axis in range(len(self.shape)):
            extent = len({place[axis] for place in places})
            ring = extent == self.shape[axis] and self.closed(axis)
            total += self.chip.link * (2 if ring else 1) * (extent > 1)
        return total or self.chip.link


class Nodes(Topology):
    """GPUs joined by NVLink within a node and by a network between nodes: shape (nodes, GPUs)."""

    platform = "cuda"

    def bandwidth(self, places: list[tuple[int, ...]]) -> float:
        """Over NVLink within a node; a ring through several nodes leaves each by the adapters of
        all its members there (as many rings as adapters), where the smallest share limits it.
        """
        members = collections.Counter(place[0] for place in places)
        if len(members) < 2:
            return self.chip.link
        return min(self.chip.link, self.chip.network * min(members.values()))


def extents() -> str:
    """Which slices there are, in a line."""
    return "; ".join(
        f"{name}, nodes x GPUs" if isinstance(chip, GPU) else f"{name}, up to {chip.largest} chips"
        for name, chip in CHIPS.items()
    )


def parse(name: str) -> Topology:
    """A slice by name: v5e:16x16, v5p:8x8x4, or of GPUs nodes x GPUs of a node, h100:32x8.

    Raises:
      UserError: no such chip, or not a slice that exists.
    """
    kind, _, extent = name.partition(":")
    if kind not in CHIPS:
        raise UserError(f"no chip {kind!r} in --topology {name}: there are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    if not re.fullmatch(r"\d+(x\d+)+", extent):
        form = "32x8" if isinstance(chip, GPU) else "16x16" if chip.torus == 2 else "8x8x4"
        raise UserError(f"--topology {name} does not say its extent, as in {kind}:{form}")
    shape = tuple(int(size) for size in extent.split("x"))
    if isinstance(chip, GPU):
        if len(shape) != 2 or not shape[0] or shape[1] not in NODES:
            counts = ", ".join(map(str, NODES))
            raise UserError(
                f"{name} is no slice of {kind}: it is nodes x GPUs of a node, and of these {counts}"
            )
        return Nodes(name, dataclasses.replace(chip, hbm=chip.memory * _share()), shape)
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
    return Torus(name, chip, shape)


def _share() -> float:
    """The part of a GPU's memory that a run would be given in this environment."""
    text = os.environ.get(SHARE_VARIABLE, "") or str(SHARE)
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1:
            return float(text)
    raise UserError(f"{SHARE_VARIABLE}={text} is no share of a GPU's memory: above 0, up to 1")
