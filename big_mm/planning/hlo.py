"""An optimised HLO module, read from its text: its instructions, how often each of them runs, and
the cycles that the TPU compiler expects. `collectives` and `traffic` say what they move.

Nothing comes from the compiler's own summary (`cost_analysis`), which counts the body of a loop
once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from big_mm.spec import UserError

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4,
    "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1, "f8e4m3b11fnuz": 1, "f8e4m3fnuz": 1, "f8e5m2fnuz": 1,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
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
        """In HBM, padded to whole tiles; 0 for what lies elsewhere, as scalars do."""
        if self.on_chip or not self.dims:
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


class Module:
    """A parsed module of the compiler of a platform; see the functions' names."""

    def __init__(self, text: str, platform: str = "tpu"):
        self.platform = platform
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
