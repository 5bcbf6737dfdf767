"""Programs compiled for TPUs without one, and what they move: HBM bytes, temporaries and aliasing, as compiled.

Bytes are those at the boundaries of what XLA runs as one (a fusion, a custom call, a copy): operands and results that
live in HBM, a slice counted as the slice. XLA's own count ("bytes accessed") takes a Pallas call's word for it.
"""

import os
import re
from functools import cache

import jax
import pytest
from jax.experimental import topologies

from eval.ahead import hlo
from eval.ahead.chips import uncached
from eval.ahead.hlo import FREE, parse

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}


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


def hbm_bytes(compiled):
    """Bytes to and from HBM, loops counted as often as they run."""
    return hlo.hbm_bytes(compiled.as_text())


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
