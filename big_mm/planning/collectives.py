"""The communication in an HLO module: who exchanges what with whom, and how often."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from big_mm.planning.hlo import Instruction, Module

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
_SUBAXIS = r"'([^']+)'(?::\((\d+)\)(\d+))?"
_IOTA = r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?"
_MESH_GROUPS = rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication that the devices do together.

    Attributes:
      kind: one of COLLECTIVES.
      group: devices that exchange with one another.
      devices: numbers of the devices of the first group, in the order of the mesh.
      runs: how often in one step.
      sent: bytes that each device sends in one run, passed around a ring of the group.
      hbm: bytes of operands and results in one run, of those that lie in HBM.
    """

    kind: str
    group: int
    devices: tuple[int, ...]
    runs: int
    sent: int
    hbm: int
    op_name: str


def collectives(module: Module) -> list[Collective]:
    """The module's communication. What the compiler has cut into fragments (of one channel) is
    counted once, as often as its least frequent fragment runs: the others overlap other loops. The
    GPU compiler cuts nothing, and gives everything the same channel.
    """
    found: dict[str, Collective] = {}
    for name, instructions in module.computations.items():
        for instruction in instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or not module.runs[name]:
                continue
            one = _collective(instruction, instructions, kind, module.runs[name])
            if name.startswith("all-reduce-scatter") and kind == "all-reduce":
                # What it returns is not written: the fusion takes each device's part of it.
                one = dataclasses.replace(
                    one, kind="reduce-scatter", sent=one.sent // 2, hbm=one.hbm // 2
                )
            channel = re.search(r"channel_id=(\d+)", instruction.text)
            cut = channel and module.platform == "tpu"
            key = f"{kind} {channel[1]}" if cut else instruction.name
            if key not in found or one.runs < found[key].runs:
                found[key] = one
    return list(found.values())


def _collective(
    instruction: Instruction, inside: dict[str, Instruction], kind: str, runs: int
) -> Collective:
    devices = _group(instruction.text)
    operands = [inside[name] for name in instruction.operands if name in inside]
    given = sum(shape.bytes for operand in operands for shape in operand.shapes)
    result = sum(shape.bytes for shape in instruction.shapes)
    if instruction.opcode.endswith("-start"):  # its result holds the operands too
        result = max(result - given, 0)
    size, count = max(given, result), len(devices)
    share = (count - 1) / count if count else 0.0
    sent = {"all-reduce": 2 * share * given, "collective-permute": given}.get(kind, share * size)
    arrays = [*instruction.shapes, *(shape for operand in operands for shape in operand.shapes)]
    hbm = sum(shape.hbm_bytes for shape in arrays)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        hbm -= sum(shape.hbm_bytes for operand in operands for shape in operand.shapes)
    return Collective(kind, count, devices, runs, int(sent), hbm, instruction.op_name)


def _group(text: str) -> tuple[int, ...]:
    """The devices of the first group; none for a form that is not known."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return int(found[1]), int(found[2])
    if found := re.search(_MESH_GROUPS, text):
        return _mesh_group(*found.groups())
    if found := re.search(rf"replica_groups=\[([0-9,]+)\]<={_IOTA}", text):
        return tuple(_iota(found[2], found[3]).reshape(_numbers(found[1]))[0].tolist())
    if found := re.search(r"replica_groups=\{\{([0-9,]*)\}", text):
        return tuple(int(d) for d in found[1].split(",") if d)
    return ()


def _mesh_group(axes: str, dims: str | None, order: str | None, names: str) -> tuple[int, ...]:
    """The first group of `mesh['a'=16,'b'=16] {'b'}`: all along b, from the first device on. A part
    of an axis is written 'b':(2)4, the middle 4 of [2, 4, rest].
    """
    chosen = {name: (before, size) for name, before, size in re.findall(_SUBAXIS, names)}
    shape: list[int] = []
    index: list[Any] = []
    for name, total in re.findall(r"'([^']+)'=(\d+)", axes):
        before, size = (int(n or 0) for n in chosen.get(name, ("", "")))
        if size:
            shape += [before, size, int(total) // (before * size)]
            index += [0, slice(None), 0]
        else:
            shape.append(int(total))
            index.append(slice(None) if name in chosen else 0)
    devices = _iota(dims, order) if dims else np.arange(math.prod(shape))
    return tuple(devices.reshape(shape)[tuple(index)].reshape(-1).tolist())


def _iota(dims: str, order: str | None) -> np.ndarray:
    """The numbers of "[16,16]T(1,0)", flat: counted along these dimensions, then transposed."""
    numbers = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (numbers.transpose(_numbers(order)) if order else numbers).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]
