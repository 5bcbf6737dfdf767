"""Reuse on eight TPUs, compiled without them: every device's kernel works on its own heads, and nothing is sent."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from benchmarks import compiled
from kamera_jax.compress.pooled import packed_pool
from kamera_jax.identity import EXACT
from kamera_jax.kv import KV, ChunkPool, Factors, KVSpec, WindowState
from kamera_jax.placement import Placement
from kamera_jax.rope import RopeSpec
from kamera_jax.window.reuse import attend_in_place, write

LAYERS = 4
TOKENS = 256
SLOTS = 1024
RANK = 32
HEADS = 16
"""Of queries."""


def spec(heads, head_dim, rot, free):
    rope = RopeSpec(tuple(10000.0 ** (-2 * i / head_dim) for i in range(head_dim // 2)), head_dim)
    return KVSpec(LAYERS, rot, free, heads, rope, "bfloat16", "a model")


GQA = spec(8, 128, 8 * 128, 8 * 128)
MLA = spec(1, 64, 64, 512)


@pytest.fixture(scope="module")
def devices():
    compiled.mesh("v5e")  # sets what libtpu needs without a device
    return np.asarray(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices)


def shaped(placement, tree):
    """Shapes that lie as the placement has them."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, placement.shardings(tree)
    )


def compile_on(placement, function, arguments, donate=()):
    arguments = shaped(placement, arguments)
    mesh = placement.mesh
    own = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)  # tells Pallas which generation it compiles for
    with compiled.uncached(), own, jax.default_matmul_precision("default"):
        traced = jax.jit(function, donate_argnums=donate).trace(*arguments)
        return traced.lower(lowering_platforms=("tpu",)).compile()


def kv(of, rows):
    return KV(*(jax.ShapeDtypeStruct((LAYERS, rows, width), of.dtype) for width in (of.rot_dim, of.free_dim)))


def factors(of):
    width = of.rot_dim + of.free_dim
    shapes = ((LAYERS, RANK, TOKENS), (LAYERS, RANK, width))
    return Factors(*(jax.ShapeDtypeStruct(each, of.dtype) for each in shapes), jax.ShapeDtypeStruct((LAYERS,), "int32"))


def state(of):
    cache = kv(of, SLOTS)
    positions = jax.ShapeDtypeStruct((of.rope.axes, SLOTS), "float32")
    return WindowState(cache.rot, cache.free, positions, jax.ShapeDtypeStruct((SLOTS,), "bool"))


@pytest.mark.parametrize("of", [GQA, MLA], ids=["gqa", "mla"])
@pytest.mark.parametrize("shape, names", [((8,), ("model",)), ((2, 4), ("data", "model"))])
def test_a_chunk_is_written_by_a_kernel_of_each_device(devices, of, shape, names):
    placement = Placement.of(of, jax.sharding.Mesh(devices.reshape(shape), names))
    assert placement.split == (of is GQA)

    def written(state, kv, factors, positions, length):
        return write(state, 16, kv, factors, positions, length, of.rope, placement=placement)

    positions = jax.ShapeDtypeStruct((of.rope.axes, TOKENS), "float32")
    length = jax.ShapeDtypeStruct((), "int32")
    given = (state(of), kv(of, TOKENS), factors(of), positions, length)
    program = compile_on(placement, written, given, donate=(0,))
    assert "relocate_patch_into" in compiled.kernels(program)
    assert not compiled.collectives(program)
    parts = placement.parts if placement.split else 1
    kept = LAYERS * SLOTS * (of.rot_dim + of.free_dim) * 2 // parts
    assert compiled.aliased(program) >= kept


@pytest.mark.parametrize("of, storage", [(GQA, EXACT), (MLA, EXACT), (GQA, "int8"), (GQA, "kivi:4")])
def test_chunks_are_read_in_place_by_a_kernel_of_each_device(devices, of, storage):
    """Kernels unpack int8; what else packs chunks is unpacked by XLA, and nothing is sent either."""
    placement = Placement.of(of, jax.sharding.Mesh(devices, ("model",)))
    places = 4
    own = {name: (LAYERS, places, TOKENS, width) for name, width in (("rot", of.rot_dim), ("free", of.free_dim))}
    form = packed_pool(storage, of)
    packing: dict[str, Any] = {}
    if form is not None:
        stored = form.arrays(LAYERS, TOKENS, of.dtype)
        own = {}
        packed = {
            name: jax.ShapeDtypeStruct((LAYERS, places, *each.shape[1:]), each.dtype) for name, each in stored.items()
        }
        packing = {"rot": packed.pop("rot"), "free": packed.pop("free"), "packed": packed, "unpack": form.unpack}
    own |= {"u": (LAYERS, places, RANK, TOKENS), "v": (LAYERS, places, RANK, of.rot_dim + of.free_dim)}
    pool = ChunkPool(
        **{name: jax.ShapeDtypeStruct(shape, of.dtype) for name, shape in own.items()},
        positions=jax.ShapeDtypeStruct((places, of.rope.axes, TOKENS), "float32"),
        lengths=jax.ShapeDtypeStruct((places,), "int32"),
        bases=jax.ShapeDtypeStruct((places,), "float32"),
        ranks=jax.ShapeDtypeStruct((LAYERS, places), "int32"),
        **packing,
    )
    width = of.rope.head_dim if of is GQA else of.rot_dim + of.free_dim
    values = of.free_dim // of.heads
    heads = jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec(None, "model"))

    def attended(q, out, lse, pool, layer):
        given = (jax.lax.with_sharding_constraint(each, heads) for each in (q, out, lse))
        return attend_in_place(*given, (pool,), layer, 0.1, of.rope, placement=placement)

    q = jax.ShapeDtypeStruct((16, HEADS, width), of.dtype)
    out = jax.ShapeDtypeStruct((16, HEADS, values), of.dtype)
    lse = jax.ShapeDtypeStruct((16, HEADS), "float32")
    program = compile_on(placement, attended, (q, out, lse, pool, jax.ShapeDtypeStruct((), "int32")))
    assert ("chunk_attention" in compiled.kernels(program)) == (storage != "kivi:4")
    assert not compiled.collectives(program)
