"""What an HLO module moves through the memory of a chip."""

from big_mm.planning.collectives import COLLECTIVES, collectives
from big_mm.planning.hlo import Instruction, Module

# These move nothing: names, views, and control flow whose parts are counted by themselves.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
    "partition-id replica-id opt-barrier add-dependency domain iota async-start async-update "
    "async-done".split()
)
# These read of their first operand only what they return.
_PARTIAL = ("dynamic-slice", "slice", "gather")


def hbm_bytes(module: Module) -> int:
    """Bytes that one call reads from and writes to HBM, operands and results of every
    instruction that runs by itself; parts of arrays where it only touches these.
    """
    own = sum(runs * _traffic(module, i, inside) for i, inside, runs in module.scheduled())
    return own + sum(one.runs * one.hbm for one in collectives(module))


def _traffic(module: Module, instruction: Instruction, inside: dict[str, Instruction]) -> int:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode in _FREE or opcode in COLLECTIVES or opcode.endswith("-done"):
        return 0
    operands = [inside[name] for name in instruction.operands if name in inside]
    read = [sum(shape.hbm_bytes for shape in operand.shapes) for operand in operands]
    shapes = list(instruction.shapes)
    if 'custom_call_target="__cu' in instruction.text and len(shapes) > 1:
        shapes.pop()  # cuBLAS and cuDNN: room to work in, which they need not use
    if opcode != instruction.opcode:  # the result holds the operands too
        for shape in (shape for operand in operands for shape in operand.shapes):
            shapes.remove(shape) if shape in shapes else None
    out = sum(shape.hbm_bytes for shape in shapes)
    if opcode in _PARTIAL:
        return out + min(sum(read), sum(shape.bytes for shape in shapes))
    if opcode == "dynamic-update-slice":
        return 2 * read[1]
    body = module.computations.get(instruction.called.get("calls", ("",))[0])
    if body is None:
        return out + sum(read)
    touched = _touched(module, body)
    return _written(body, out) + sum(
        min(size, touched.get(number, size)) for number, size in enumerate(read)
    )


def _touched(module: Module, body: dict[str, Instruction]) -> dict[int, int]:
    """{number of a fusion's operand: bytes that it reads} where it reads parts or nothing."""
    uses: dict[str, list[Instruction]] = {}
    for instruction in body.values():
        for operand in instruction.operands:
            uses.setdefault(operand, []).append(instruction)
    out = {}
    for instruction in body.values():
        if instruction.opcode == "parameter":
            readers = _beyond_views(instruction.name, uses)
            parts = [_part_read(module, name, reader) for name, reader in readers]
            if None not in parts:
                out[int(instruction.text.partition(")")[0])] = sum(parts)
    return out


def _part_read(module: Module, name: str, reader: Instruction) -> int | None:
    """Bytes of the value `name` that one of its readers reads; None for all of them."""
    if reader.opcode in _PARTIAL and reader.operands[0] == name:
        return sum(shape.bytes for shape in reader.shapes)
    if reader.opcode == "dynamic-update-slice" and reader.operands[0] == name:
        return 0  # updated in place
    if reader.opcode in COLLECTIVES or (reader.opcode == "tuple" and reader.root):
        return 0  # counted with the collectives; passed through
    inner = module.computations.get(reader.called.get("calls", ("",))[0])
    if inner is None:
        return None
    touched = _touched(module, inner)
    parts = [touched.get(i) for i, operand in enumerate(reader.operands) if operand == name]
    return None if None in parts else sum(parts)


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
        if part.opcode == "parameter" or part.opcode in COLLECTIVES:
            continue
        if part.opcode == "dynamic-update-slice" and part.operands[1] in body:
            part = body[part.operands[1]]
        total += sum(shape.hbm_bytes for shape in part.shapes)
    return min(total, whole)
