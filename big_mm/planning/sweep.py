"""The points of a sweep: configs that differ in mesh, rematerialisation and microbatches."""

import copy
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import ml_collections

from big_mm.models.layers import REMAT
from big_mm.planning.chips import Topology
from big_mm.spec import CLASS, UserError, locate

AXES = ("mesh", "remat", "microbatch")
MICROBATCHES = (1, 2, 4, 8)
# Tensor parallelism communicates in every layer: it is tried among close neighbours only.
TENSOR = (1, 2, 4)


def points(
    config: ml_collections.ConfigDict, topology: Topology, axes: list[str]
) -> Iterator[tuple[dict[str, Any], ml_collections.ConfigDict]]:
    """(settings, config) of every combination; just ({}, config) where nothing is swept.

    Raises:
      UserError: an axis that there is not.
    """
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise UserError(f"--sweep {unknown[0]}: there are {', '.join(AXES)}")
    choices: list[list[tuple[str, Any]]] = []
    if "mesh" in axes:
        choices.append([("mesh", sizes) for sizes in meshes(topology.chips, config.batch_size)])
    if "remat" in axes:
        choices.append([("remat", name) for name in REMAT])
    if "microbatch" in axes:
        counts = (n for n in MICROBATCHES if config.batch_size % (n * topology.chips) == 0)
        choices.append([("accumulate", n) for n in counts])
    for combination in itertools.product(*choices):
        settings = dict(combination)
        point = copy.deepcopy(config)
        with point.unlocked(), point.ignore_type():
            if "mesh" in settings:
                point.mesh.update(settings.pop("mesh"))
            if "remat" in settings:
                set_everywhere(point, "remat", settings["remat"])
            if "accumulate" in settings:
                point.accumulate = settings["accumulate"]
        yield settings, point


def meshes(chips: int, batch_size: int) -> list[dict[str, int]]:
    """Meshes worth a try: parameters on all chips, on none, or on 4, 8, 16, ... of them, with
    tensor parallelism of 2 and 4 beside it; every chip has rows.
    """
    out = []
    for tensor in TENSOR:
        rest = chips // tensor
        sizes = {n for n in (1, *(2**i for i in range(2, 14)), rest) if n <= rest}
        for fsdp in sorted(sizes):
            whole = rest % fsdp == 0 and chips % tensor == 0 and batch_size % rest == 0
            if whole and (tensor == 1 or 1 < fsdp):
                out.append({"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor})
    return out


def set_everywhere(config: Any, key: str, value: Any) -> int:
    """Sets a keyword of every component of the config that has it; returns their number."""
    if isinstance(config, (list, tuple)):
        return sum(set_everywhere(part, key, value) for part in config)
    if not isinstance(config, ml_collections.ConfigDict):
        return 0
    count = sum(set_everywhere(config[name], key, value) for name in list(config))
    if CLASS in config and key in inspect.signature(locate(config[CLASS])).parameters:
        config[key] = value
        count += 1
    return count
