"""Programs compiled for TPUs without one, and what they move: HBM bytes, temporaries and aliasing, as compiled.

Bytes are those at the boundaries of what XLA runs as one (a fusion, a custom call, a copy): operands and results that
live in HBM, a slice counted as the slice. XLA's own count ("bytes accessed") takes a Pallas call's word for it.
"""

import math
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import jax
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache.compilation_cache import reset_cache

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
FREE = {
    *("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "iota", "partition-id"),
    *("copy-done", "slice-done", "dynamic-slice-done", "dynamic-update-slice-done", "async-done", "opt-barrier"),
}
ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


def targets(*every_run, **failing):
    """For `pytest.mark.parametrize`: all targets, those not compiled for on every run behind the mark `soak`.

    What is known to fail on a target is named with its reason, and must fail.
    """
    return [
        pytest.param(
            name,
            marks=[
                *([] if name in every_run else [pytest.mark.soak]),
                *([pytest.mark.xfail(reason=failing[name])] if name in failing else []),
            ],
        )
        for name in TOPOLOGIES
    ]


@cache
def mesh(target):
    """All devices of a target, along "heads". libtpu is a test dependency: its absence is a failure."""
    # No metadata server, no device and so nothing to lock: several test workers may compile at once.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[target]).devices
    return jax.sharding.Mesh(devices, ("heads",))


def one_device(target):
    return jax.sharding.Mesh(mesh(target).devices[:1], ("heads",))


@contextmanager
def uncached():
    """Without the persistent compilation cache: a program for a device that is not there is kept, and does not load."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX asks once whether there is a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        reset_cache()


def compile_for(target, function, *arguments, donate=(), specs=None):
    """Compile for a target or a mesh; arguments are pytrees of anything with a shape and a dtype, sharded by ``specs``.

    The default matmul precision is what a user has, not what these tests run with.
    """
    on = one_device(target) if isinstance(target, str) else target
    specs = [jax.sharding.PartitionSpec()] * len(arguments) if specs is None else specs
    structs = [
        jax.tree.map(
            lambda x, spec=spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.sharding.NamedSharding(on, spec)),
            tree,
        )
        for tree, spec in zip(arguments, specs, strict=True)
    ]
    # The mesh tells Pallas which generation it compiles for.
    with uncached(), jax.sharding.use_abstract_mesh(on.abstract_mesh), jax.default_matmul_precision("default"):
        traced = jax.jit(function, donate_argnums=donate).trace(*structs)
        return traced.lower(lowering_platforms=("tpu",)).compile()


@dataclass(frozen=True)
class Array:
    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def bytes(self):
        """In HBM: memory spaces are annotated S(n), and HBM is none."""
        return 0 if re.search(r"S\(\d+\)", self.layout) else self.size

    @property
    def size(self):
        return BYTES[self.dtype] * math.prod(self.dims)


@dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    arrays: tuple[Array, ...]
    argument: str
    rest: str
    root: bool

    @property
    def operands(self):
        return tuple(re.findall(r"%([\w.\-]+)", self.argument))

    @property
    def bytes(self):
        return sum(array.bytes for array in self.arrays)

    @property
    def size(self):
        return sum(array.size for array in self.arrays)

    def called(self, attribute):
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found and found.group(1)


def parse(text):
    """Computations of an HLO module by name, each a list of instructions; and the name of the entry."""
    computations = {}
    entry = None
    current = None
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
            depth = end = 0
            for end, character in enumerate(rest):  # noqa: B007
                depth += (character == "(") - (character == ")")
                if depth < 0:
                    break
            current.append(Instruction(name, op, arrays, rest[:end], rest[end:], bool(root)))
    return computations, entry


def hbm_bytes(compiled):
    """Bytes to and from HBM, loops counted as often as they run."""
    computations, entry = parse(compiled.as_text())
    return _bytes(computations, entry)


def _bytes(computations, name):
    instructions = {i.name: i for i in computations[name]}
    return sum(_moved(computations, instructions, i) for i in computations[name])


def _moved(computations, known, i):
    def operand(place):
        return known[i.operands[place]]

    if i.op in FREE or any(f'custom_call_target="{name}"' in i.rest for name in ("ConcatBitcast", "AllocateBuffer")):
        return 0
    if i.op == "while":
        if known_count := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', i.rest):
            return int(known_count.group(1)) * _bytes(computations, i.called("body"))
        # XLA's loops over an array count from 0 by 1 up to the constant their condition holds.
        bounds = [x for x in computations[i.called("condition")] if x.op == "constant" and x.arrays[0].dtype == "s32"]
        assert len(bounds) == 1, f"how often {i.name} runs is not known"
        return int(bounds[0].argument) * _bytes(computations, i.called("body"))
    if i.op in ("call", "async-start") and i.called("to_apply" if i.op == "call" else "calls"):
        return _bytes(computations, i.called("to_apply" if i.op == "call" else "calls"))
    if i.op in ("copy-start", "slice-start"):
        # (destination, source, context): what is sliced is read, not the whole source.
        into, source = i.arrays[:2] if i.op == "copy-start" else (i.arrays[-2], i.arrays[0])
        return sum(into.size for side in (into, source) if side.bytes)
    if i.op == "dynamic-slice":
        return i.bytes + (i.size if operand(0).bytes else 0)
    if i.op == "dynamic-update-slice":
        update = operand(1)
        return update.bytes + (update.size if i.bytes else 0)
    if i.op == "fusion":
        return _fusion(computations, i, known)
    # What a kernel updates in place counts once, as written: give it a cache that it fills.
    updated = {int(place) for place in re.findall(r"\((\d+), \{\}", i.rest.split("output_to_operand_aliasing=")[-1])}
    in_place = updated if "output_to_operand_aliasing=" in i.rest else set()
    read = {origin(known, name) for place, name in enumerate(i.operands) if place not in in_place}
    return i.bytes + sum(known[name].bytes for name in read)


def origin(known, name):
    """What a chain of bitcasts starts from: two views of an array are one."""
    while known[name].op == "bitcast":
        name = known[name].operands[0]
    return name


def _fusion(computations, fusion, known):
    """A fusion reads of an operand what it slices out of it, and writes of a buffer updated in place the update."""
    body = computations[fusion.called("calls")]
    inside = {i.name: i for i in body}
    root = next(i for i in body if i.root)

    total = 0
    in_place = set()
    for array, name in zip(fusion.arrays, root.operands if root.op == "tuple" else [root.name], strict=True):
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


def _parameter(body, place):
    return next(i for i in body if i.op == "parameter" and i.argument == str(place))


def _read(computations, body, value):
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
                called = computations[user.called("calls")]
                slices += _read(computations, called, _parameter(called, place))
            elif user.op in ("dynamic-slice", "slice"):
                slices += user.size
            else:
                whole = value.size
    return slices + whole


def largest_result(compiled):
    """Bytes of the largest array in HBM that anything but a Pallas kernel makes."""
    computations, entry = parse(compiled.as_text())
    return _largest(computations, entry)


def _largest(computations, name):
    largest = 0
    for i in computations[name]:
        if inner := i.called("body") or (
            i.op in ("call", "async-start") and (i.called("to_apply") or i.called("calls"))
        ):
            largest = max(largest, _largest(computations, inner))
        elif i.op not in FREE and not _is_kernel(i):
            # Of what an asynchronous copy names, the first is its destination.
            arrays = i.arrays[:1] if i.op.endswith("-start") else i.arrays
            largest = max([largest, *(array.bytes for array in arrays)])
    return largest


def _is_kernel(instruction):
    return 'custom_call_target="tpu_custom_call"' in instruction.rest


def temporaries(compiled):
    """Bytes of HBM beside arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def aliased(compiled):
    """Bytes of results that are donated arguments."""
    return compiled.memory_analysis().alias_size_in_bytes


def kernels(compiled):
    """Names of the Pallas kernels in a program."""
    computations, _ = parse(compiled.as_text())
    found = [i for body in computations.values() for i in body if _is_kernel(i)]
    return sorted(re.sub(r"[.\d]+$", "", i.name) for i in found)


def collectives(compiled):
    """Instructions by which devices talk."""
    computations, _ = parse(compiled.as_text())
    talk = ("all-", "collective-", "reduce-scatter", "send", "recv")
    return [i.name for body in computations.values() for i in body if i.op.startswith(talk)]
