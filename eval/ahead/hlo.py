"""What a compiled program moves to and from device memory, counted in its optimised HLO.

Bytes are those at the boundaries of what XLA runs as one (a fusion, a custom call, a copy): operands and results that
lie in device memory, a slice counted as the slice, loops as often as they run. XLA's own count ("bytes accessed") takes
a Pallas call's word for it, and counts the body of a loop once.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

BYTES = {
    **{"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1},
    **{"s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8},
}
FREE = {
    *("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "iota", "partition-id"),
    *(
        "copy-done",
        "slice-done",
        "dynamic-slice-done",
        "dynamic-update-slice-done",
        "async-done",
        "opt-barrier",
        "fusion-done",
    ),
}
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


class UncountedError(ValueError):
    """A program whose bytes cannot be counted: how often a loop of it runs is not known."""


@dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
        dtype: HLO's name.
        dims: its shape.
        layout: HLO's text, with the memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self) -> int:
        """Bytes in device memory: other memory spaces are annotated S(n)."""
        return 0 if re.search(r"S\(\d+\)", self.layout) else self.size

    @property
    def size(self) -> int:
        """Bytes, wherever it lies."""
        return BYTES[self.dtype] * math.prod(self.dims)


@dataclass(frozen=True)
class Instruction:
    """A line of HLO.

    Attributes:
        name: of its result.
        op: of HLO.
        arrays: of its result.
        argument: the text within its parentheses.
        rest: the text behind them.
        root: whether it is its computation's result.
    """

    name: str
    op: str
    arrays: tuple[Array, ...]
    argument: str
    rest: str
    root: bool

    @property
    def operands(self) -> tuple[str, ...]:
        """Names of what it reads."""
        return tuple(re.findall(r"%([\w.\-]+)", self.argument))

    @property
    def bytes(self) -> int:
        """Bytes of its result in device memory."""
        return sum(array.bytes for array in self.arrays)

    @property
    def size(self) -> int:
        """Bytes of its result, wherever it lies."""
        return sum(array.size for array in self.arrays)

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found and found.group(1)


Computations = Mapping[str, Sequence[Instruction]]


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Computations of an HLO module by name, each a list of instructions; and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if line.rstrip().endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations.setdefault(head.group(2), [])
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            root, name, shape, op, rest = found.groups()
            arrays = tuple(
                Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout or "")
                for dtype, dims, layout in ARRAY.findall(shape)
                if dtype in BYTES
            )
            end = _closing(rest)
            current.append(Instruction(name, op, arrays, rest[:end], rest[end:], bool(root)))
    return computations, entry


def _closing(text: str) -> int:
    """Where the bracket closes that was opened before a text."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return place
    return max(len(text) - 1, 0)


def hbm_bytes(text: str) -> int:
    """Bytes to and from device memory of one run of a program on each device, loops counted as often as they run.

    Loops whose bounds are data (attention that ends where the keys do) and that read blocks of the same arrays run
    over each block once between them; they are counted as the dearest of them over all blocks. Of grouped products all
    experts are counted, for which of them are read is data too.

    Args:
        text: the optimised HLO of the program.

    Raises:
        UncountedError: how often a loop runs is not known.
    """
    computations, entry = parse(text)
    return _bytes(computations, entry)


def _bytes(computations: Computations, name: str) -> int:
    instructions = {i.name: i for i in computations[name]}
    total = 0
    blocks: dict[tuple[str, ...], int] = {}
    for i in computations[name]:
        if i.op == "while" and times(computations, i) is None:
            count, read = _blocks(computations, i)
            moved = count * _bytes(computations, _of(i, "body"))
            blocks[read] = max(blocks.get(read, 0), moved)
        else:
            total += _moved(computations, instructions, i)
    return total + sum(blocks.values())


def _of(i: Instruction, attribute: str) -> str:
    called = i.called(attribute)
    if called is None:
        raise UncountedError(f"{i.name} names no {attribute}")
    return called


def times(computations: Computations, loop: Instruction) -> int | None:
    """How often a loop runs; None where its bounds are data."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known.group(1))
    # XLA's loops over an array count from 0 by 1 up to the constant their condition holds.
    bounds = [
        x
        for x in computations[_of(loop, "condition")]
        if x.op == "constant" and x.arrays and x.arrays[0].dtype == "s32"
    ]
    return int(bounds[0].argument) if len(bounds) == 1 and bounds[0].argument.isdigit() else None


def _blocks(computations: Computations, loop: Instruction) -> tuple[int, tuple[str, ...]]:
    """Over how many blocks a loop runs whose bounds are data, and the shapes of what it cuts them from."""
    sources = {
        f"{array.dtype}{list(array.dims)}": array.dims[0]
        for name in _reached(computations, _of(loop, "body"))
        for array in _cut(computations[name])
    }
    if not sources:
        raise UncountedError(f"how often {loop.name} runs is not known")
    return max(sources.values()), tuple(sorted(sources))


def _reached(computations: Computations, name: str) -> list[str]:
    """A computation and all those that it calls as fusions."""
    inner = [i.called("calls") for i in computations[name] if i.op == "fusion"]
    return [name, *(each for called in inner if called for each in _reached(computations, called))]


def _cut(body: Sequence[Instruction]) -> list[Array]:
    """Arrays that single rows of the first axis are cut from."""
    known = {i.name: i for i in body}
    cut = []
    for i in body:
        if i.op == "dynamic-slice" and i.operands and i.operands[0] in known and i.arrays:
            source = known[i.operands[0]].arrays
            if source and len(source[0].dims) > 2 and i.arrays[0].dims[0] == 1 < source[0].dims[0]:
                cut.append(source[0])
    return cut


def _moved(computations: Computations, known: Mapping[str, Instruction], i: Instruction) -> int:
    def operand(place: int) -> Instruction:
        return known[i.operands[place]]

    if i.op in FREE or any(f'custom_call_target="{name}"' in i.rest for name in ("ConcatBitcast", "AllocateBuffer")):
        return 0
    if i.op == "while":
        return (times(computations, i) or 0) * _bytes(computations, _of(i, "body"))
    if i.op == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
        names = re.findall(r"%?([\w.\-]+)", branches.group(1)) if branches else []
        names += [name for name in (i.called("true_computation"), i.called("false_computation")) if name]
        return max((_bytes(computations, name) for name in names), default=0)
    if i.op in ("call", "async-start") and i.called("to_apply" if i.op == "call" else "calls"):
        return _bytes(computations, _of(i, "to_apply" if i.op == "call" else "calls"))
    if i.op in ("copy-start", "slice-start"):
        # (destination, source, context): what is sliced is read, not the whole source.
        into, source = i.arrays[:2] if i.op == "copy-start" else (i.arrays[-2], i.arrays[0])
        return sum(into.size for side in (into, source) if side.bytes)
    if i.op in ("dynamic-slice", "gather"):
        return i.bytes + (i.size if operand(0).bytes else 0)
    if i.op == "dynamic-update-slice":
        update = operand(1)
        return update.bytes + (update.size if i.bytes else 0)
    if i.op == "fusion":
        return _fusion(computations, i, known)
    if i.op == "fusion-start":
        # ((operands), results, context): a fusion that others run beside.
        given = sum(len(known[name].arrays) for name in i.operands)
        return _fusion(computations, replace(i, arrays=i.arrays[given:-1]), known)
    aliasing = i.rest.split("output_to_operand_aliasing=")[1:]
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", aliasing[0]) if aliasing else []
    updated = {int(place): int(output or 0) for output, place in pairs}
    read = {origin(known, name) for place, name in enumerate(i.operands) if place not in updated and name in known}
    beside = [name for place, name in enumerate(i.operands) if place not in updated and name in known]
    given = [array for name in beside for array in known[name].arrays]
    written = sum(
        _updated(array, given) if place in updated.values() else array.bytes for place, array in enumerate(i.arrays)
    )
    return written + sum(known[name].bytes for name in read)


def _updated(buffer: Array, given: Sequence[Array]) -> int:
    """Bytes that a kernel writes into a buffer it updates in place: as many as it is given rows for it, else all."""

    def dims(array: Array) -> list[int]:
        return [size for size in array.dims if size > 1]

    whole = dims(buffer)
    rows = [
        array.size
        for array in given
        if array.dtype == buffer.dtype
        and len(dims(array)) == len(whole)
        and sum(mine != theirs for mine, theirs in zip(whole, dims(array), strict=True)) == 1
    ]
    return min(max(rows), buffer.bytes) if rows else buffer.bytes


def origin(known: Mapping[str, Instruction], name: str) -> str:
    """What a chain of bitcasts starts from: two views of an array are one."""
    while known[name].op == "bitcast":
        name = known[name].operands[0]
    return name


def _fusion(computations: Computations, fusion: Instruction, known: Mapping[str, Instruction]) -> int:
    """A fusion reads of an operand what it slices out of it, and writes of a buffer updated in place the update."""
    body = computations[_of(fusion, "calls")]
    inside = {i.name: i for i in body}
    root = next(i for i in body if i.root)

    total = 0
    in_place: set[str] = set()
    for array, name in zip(fusion.arrays, root.operands if root.op == "tuple" else [root.name], strict=False):
        result = inside[origin(inside, name)]
        if result.op == "dynamic-update-slice":
            in_place.add(origin(inside, result.operands[0]))
            total += inside[result.operands[1]].size if array.bytes else 0
        else:
            total += array.bytes
    for place, name in enumerate(fusion.operands):
        if known[name].bytes and _parameter(body, place).name not in in_place:
            total += min(_read(computations, body, _parameter(body, place)), known[name].bytes)
    return total


def _parameter(body: Sequence[Instruction], place: int) -> Instruction:
    return next(i for i in body if i.op == "parameter" and i.argument == str(place))


def _is_view(fusion: Instruction, called: Sequence[Instruction], inner: Instruction) -> bool:
    """Whether a fusion in a fusion gives what it is given as it lies there: by bitcasts, or in other tiles."""
    known = {i.name: i for i in called}
    root = next(i for i in called if i.root)
    if root.op == "copy" and "output_to_operand_aliasing={{}: (0, {})" in fusion.rest:
        root = known[root.operands[0]]
    return origin(known, root.name) == inner.name


def _read(computations: Computations, body: Sequence[Instruction], value: Instruction) -> int:
    """Bytes of ``value`` that a fused computation reads: slices one by one, all else once."""
    slices = 0
    whole = 0
    for user in body:
        for place, name in enumerate(user.operands):
            if name != value.name:
                continue
            if user.op == "bitcast":
                slices += _read(computations, body, user)
            elif user.op == "fusion":
                called = computations[_of(user, "calls")]
                inner = _parameter(called, place)
                if _is_view(user, called, inner):
                    slices += _read(computations, body, user)  # a view of it
                else:
                    slices += _read(computations, called, inner)
            elif user.op in ("dynamic-slice", "slice") or (user.op == "gather" and place == 0):
                slices += user.size
            else:
                whole = value.size
    return slices + whole
