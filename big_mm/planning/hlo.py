"""What an optimised HLO module does, read from its text: how often each instruction runs, which
collectives it holds, what it moves through HBM, and the cycles that the TPU compiler expects.

Nothing here comes from the compiler's own summary (`cost_analysis`), which counts the body of a
loop once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from big_mm.spec import UserError

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "f8e4m3b11fnuz": 1, "f8e4m3fnuz": 1, "f8e5m2fnuz": 1,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip
# These move nothing: names, views, and control flow whose parts are counted by themselves.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id opt-barrier add-dependency domain iota async-start async-update "
    "async-done".split()
)
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_SUBAXIS = r"'([^']+)'(?::\((\d+)\)(\d+))?"
_IOTA = r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?"
_MESH_GROUPS = rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}"
_CALLED = re.compile(
    r"\b(calls|to_apply|condition|body|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of an instruction's type.

    Attributes:
      layout: what stands in braces behind it: order of dimensions, tiles, memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Of the values alone."""
        return int(math.prod(self.dims) * BYTES.get(self.dtype, 0))

    @property
    def on_chip(self) -> bool:
        """Whether it lies in another memory than HBM, which is space 0."""
        return bool(re.search(r"S\([1-9]", self.layout))

    @property
    def hbm_bytes(self) -> int:
        """In HBM, padded to whole tiles; 0 for what lies elsewhere."""
        if self.on_chip:
            return 0
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([0-9,]+)\)", rest)
        if not tile or not order:
            return self.bytes
        physical = [self.dims[int(d)] for d in reversed(order.split(","))]
        sizes = [int(t) for t in tile[1].split(",")]
        for i, size in enumerate(reversed(sizes[-len(physical) :]), start=1):
            physical[-i] = -(-physical[-i] // size) * size
        return int(math.prod(physical) * BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `text` is what follows its operands."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """{attribute: names of the computations that it calls}."""
        return {
            kind: tuple(re.findall(r"[\w.\-]+", names))
            for kind, names in _CALLED.findall(self.text)
        }

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, if that is known."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate for one run; 0 where it has none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Collective:
    """Communication that the devices do together.

    Attributes:
      kind: one of COLLECTIVES.
      group: devices that exchange with one another.
      devices: numbers of the devices of the first group, in the order of the mesh.
      runs: how often in one step.
      sent: bytes that each device sends in one run, passed around a ring of the group.
    """

    kind: str
    group: int
    devices: tuple[int, ...]
    runs: int
    sent: int
    op_name: str


class Module:
    """A parsed module; see the functions' names."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        for name, is_entry, lines in _split(text):
            instructions = (_parse(line) for line in lines)
            self.computations[name] = {i.name: i for i in instructions if i is not None}
            self.entry = name if is_entry else self.entry
        if not self.entry:
            raise UserError("the text holds no HLO module: there is no ENTRY")

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """{computation: how often it runs in one call of the module}. Of a branch one is taken."""
        total = dict.fromkeys(self.computations, 0)
        self._visit(self.entry, 1, total)
        return total

    def _visit(self, computation: str, times: int, total: dict[str, int]) -> None:
        total[computation] += times
        for instruction in self.computations[computation].values():
            for kind, names in instruction.called.items():
                repeats = times
                if kind in ("condition", "body"):
                    repeats *= self.trips(instruction)
                for name in names:
                    if name in self.computations:
                        self._visit(name, repeats, total)

    def trips(self, loop: Instruction) -> int:
        """Turns of a while loop: what its backend knows, or the constant its condition compares
        with (loops count up from 0 by 1).

        Raises:
          UserError: neither is there.
        """
        if known := re.search(r'known_trip_count[":{n ]+(\d+)', loop.text):
            return int(known[1])
        condition = self.computations[loop.called["condition"][0]]
        bounds = [
            int(found[1])
            for instruction in condition.values()
            if (found := re.match(r"(\d+)\)", instruction.text))
            and instruction.opcode == "constant"
        ]
        if len(bounds) != 1:
            raise UserError(f"the number of turns of the loop {loop.name} cannot be read")
        return bounds[0]

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """Computations inside an instruction: what they do stays on the chip."""
        inside = set()
        for instruction in self.instructions():
            for kind, names in instruction.called.items():
                if kind in ("calls", "to_apply") and instruction.opcode != "call":
                    inside.update(names)
        return frozenset(inside)

    def instructions(self) -> Iterator[Instruction]:
        """All instructions of all computations."""
        for computation in self.computations.values():
            yield from computation.values()

    def scheduled(self) -> Iterator[tuple[Instruction, dict[str, Instruction], int]]:
        """Every instruction that runs by itself, its computation, and how often it runs."""
        for name, instructions in self.computations.items():
            if name not in self.fused and self.runs[name]:
                for instruction in instructions.values():
                    yield instruction, instructions, self.runs[name]

    def cycles(self) -> int:
        """Cycles of one call as the TPU compiler estimates them; communication has none."""
        return sum(instruction.cycles * runs for instruction, _, runs in self.scheduled())

    def costliest(self, count: int) -> list[tuple[int, int, Instruction]]:
        """(cycles in all, runs, instruction) of the instructions that the compiler expects to take
        longest.
        """
        found = [(i.cycles * runs, runs, i) for i, _, runs in self.scheduled() if i.cycles]
        return sorted(found, key=lambda row: -row[0])[:count]

    def hbm_bytes(self) -> int:
        """Bytes that one call reads from and writes to HBM, operands and results of every
        instruction that runs by itself; parts of arrays where it only touches these.
        """
        return sum(runs * self._traffic(i, inside) for i, inside, runs in self.scheduled())

    def _traffic(self, instruction: Instruction, inside: dict[str, Instruction]) -> int:
        opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
        if opcode in _FREE or instruction.opcode.endswith("-done"):
            return 0
        out = sum(shape.hbm_bytes for shape in instruction.shapes)
        if opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * out
        operands = [inside[name] for name in instruction.operands if name in inside]
        if opcode == "dynamic-update-slice":
            return 2 * sum(shape.hbm_bytes for shape in operands[1].shapes)
        read = [sum(shape.hbm_bytes for shape in operand.shapes) for operand in operands]
        body = self.computations.get(instruction.called.get("calls", ("",))[0])
        if body is None:
            return out + sum(read)
        touched = _touched(body)
        return _written(body, out) + sum(
            min(size, touched.get(number, size)) for number, size in enumerate(read)
        )

    def collectives(self) -> list[Collective]:
        """The module's communication. What the compiler has cut into fragments (of one channel) is
        counted once, as often as its least frequent fragment runs: the others overlap other loops.
        """
        found: dict[str, Collective] = {}
        for name, instructions in self.computations.items():
            for instruction in instructions.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES or not self.runs[name]:
                    continue
                one = _collective(instruction, instructions, kind, self.runs[name])
                if name.startswith("all-reduce-scatter") and kind == "all-reduce":
                    one = dataclasses.replace(one, kind="reduce-scatter", sent=one.sent // 2)
                channel = re.search(r"channel_id=(\d+)", instruction.text)
                key = f"{kind} {channel[1]}" if channel else instruction.name
                if key not in found or one.runs < found[key].runs:
                    found[key] = one
        return list(found.values())


def _split(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """(name, whether it is the entry, lines) of each computation."""
    name, lines = "", []
    entry = False
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "HloModule" not in line:
            head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
            entry, name, lines = bool(head[1]), head[2], []
        elif line == "}" and name:
            yield name, entry, lines
            name = ""
        elif name and line.startswith(" "):
            lines.append(line)
        elif name and lines:  # a kernel's metadata may hold line breaks
            lines[-1] += line


def _parse(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    start = found.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    head = re.compile(r"\s*([\w\-]+)\(").match(line, end)
    if not head:
        return None
    close = _closing(line, head.end() - 1)
    opcode, inside = head[1], line[head.end() : close]
    # A constant's value and a parameter's number are no operands.
    named = opcode in ("constant", "parameter")
    text = line[head.end() :] if named else line[close + 1 :]
    operands = () if named else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], opcode, shapes_of(line[start:end]), operands, text, bool(found[1]))


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: "(f32[2,3]{1,0}, s32[])" has two."""
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _closing(line: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise UserError(f"an HLO line with an open bracket: {line[:120]}")


def _touched(body: dict[str, Instruction]) -> dict[int, int]:
    """{number of a fusion's operand: bytes that it reads} for operands of which it reads parts."""
    out = {}
    uses: dict[str, list[Instruction]] = {}
    for instruction in body.values():
        for operand in instruction.operands:
            uses.setdefault(operand, []).append(instruction)
    for instruction in body.values():
        if instruction.opcode != "parameter":
            continue
        number = int(instruction.text.partition(")")[0])
        readers, total = _beyond_views(instruction.name, uses), 0
        for name, reader in readers:
            if reader.opcode in ("dynamic-slice", "gather", "slice") and reader.operands[0] == name:
                total += sum(shape.bytes for shape in reader.shapes)
            elif not (
                reader.opcode == "dynamic-update-slice" and reader.operands[0] == name
            ):  # updated in place: the rest is not read
                break
        else:
            out[number] = total
    return out


def _beyond_views(name: str, uses: dict[str, list[Instruction]]) -> list[tuple[str, Instruction]]:
    """(name under which it is read, reader) of a value, through bitcasts."""
    found = []
    for use in uses.get(name, []):
        found += _beyond_views(use.name, uses) if use.opcode == "bitcast" else [(name, use)]
    return found


def _written(body: dict[str, Instruction], whole: int) -> int:
    """Bytes that a fusion writes: for arrays updated in place, only the update."""
    root = next(i for i in body.values() if i.root)
    parts = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for part in parts:
        while part.opcode == "bitcast" and part.operands[0] in body:
            part = body[part.operands[0]]
        if part.opcode == "dynamic-update-slice" and part.operands[1] in body:
            part = body[part.operands[1]]
        total += sum(shape.hbm_bytes for shape in part.shapes)
    return min(total, whole)


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
    return Collective(kind, count, devices, runs, int(sent), instruction.op_name)


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
