"""relocate_patch compiled for real TPUs without one: what crosses HBM, temporaries, aliasing, no collectives."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import compiled
from pallas_kernels.relocate_patch.reference import relocate_patch_reference
from pallas_kernels.relocate_patch.shapes import SHAPES
from pallas_kernels.relocate_patch.tpu import relocate_patch_tpu
from pallas_kernels.relocate_patch.tpu_into import relocate_patch_into_tpu

PROMISED = ["qwen2.5-vl-7b", "qwen2.5-vl-7b long", "kimi-vl", "deepseek-v3"]
"""GQA L = 28 at T = 4096 and 32768, MLA L = 27 and 61."""
OTHERS = [name for name in SHAPES if name not in PROMISED]


def size(arrays):
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in arrays)


def check_moves(program, shape):
    """One kernel that reads the chunk once and writes what it became; nothing beside."""
    assert compiled.hbm_bytes(program) <= 1.05 * shape.ideal_bytes()
    assert compiled.temporaries(program) == 0


def check_written_in_place(program, cache):
    assert compiled.kernels(program) == ["relocate_patch_into"]
    assert compiled.aliased(program) == size([cache.rot, cache.free])


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("target", compiled.targets("v5e", "v6e"))
def test_moves_what_it_must_and_no_more(target, name):
    shape = SHAPES[name]
    program = compiled.compile_for(target, relocate_patch_tpu, shape.chunk())
    assert compiled.kernels(program) == ["relocate_patch"]
    check_moves(program, shape)


IN_PLACE = [(name, None) for name in PROMISED] + [
    *[("qwen2.5-vl-7b", 16), ("qwen2.5-vl-7b", 256), ("kimi-vl", 128), ("llava-1.5-7b", 64)]
]


@pytest.mark.parametrize("name, page", IN_PLACE)
@pytest.mark.parametrize("target", compiled.targets("v5e", "v6e"))
def test_writes_in_place(target, name, page):
    shape = SHAPES[name]
    call = shape.into(shape.tokens, page=page)
    program = compiled.compile_for(target, relocate_patch_into_tpu, *call, donate=(0,))
    check_written_in_place(program, call[0])
    check_moves(program, shape)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("target", compiled.targets("v5e"))
def test_every_shape_compiles(target, name, dtype):
    shape = SHAPES[name]
    program = compiled.compile_for(target, relocate_patch_tpu, shape.chunk(dtype))
    assert compiled.kernels(program) == ["relocate_patch"]
    call = shape.into(shape.tokens, dtype)
    program = compiled.compile_for(target, relocate_patch_into_tpu, *call, donate=(0,))
    check_written_in_place(program, call[0])


UNREADABLE = "this jax cannot read a program with asynchronous copies that libtpu compiled for TPU7x"
UNFUSED = "on v5p XLA writes the f32 patch to HBM"


@pytest.mark.parametrize(
    "name, target",
    [
        pytest.param(name, *target.values, marks=target.marks)
        for name in PROMISED
        for target in compiled.targets(
            "v5e", "v6e", tpu7x=UNREADABLE, **({"v5p": UNFUSED} if name.startswith("qwen") else {})
        )
    ],
)
def test_the_fallback_stays_within_its_bound(name, target):
    shape = SHAPES[name]
    program = compiled.compile_for(target, relocate_patch_reference, shape.chunk())
    assert compiled.kernels(program) == []
    assert compiled.hbm_bytes(program) <= 1.6 * shape.ideal_bytes()


@pytest.mark.parametrize("target", compiled.targets("v5e", "v6e", v5p="XLA copies the batch's scalars, 16 KiB"))
def test_a_batch_is_one_kernel_in_place(target):
    shape = SHAPES["qwen2.5-vl-3b"]
    call = shape.into(shape.tokens)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((4, *x.shape), x.dtype), call)
    program = compiled.compile_for(target, jax.vmap(relocate_patch_into_tpu), *batch, donate=(0,))
    check_written_in_place(program, batch[0])
    assert compiled.temporaries(program) == 0


@pytest.mark.parametrize("target", compiled.targets("v5e", "v6e", v5p="XLA copies each device's part of v, 0.5 MB"))
def test_heads_split_over_devices_without_talking(target):
    shape = SHAPES["qwen2.5-vl-7b"]
    mesh = jax.sharding.Mesh(compiled.mesh(target).devices[: shape.heads], ("heads",))
    split = P(None, None, "heads")
    whole = P()
    cache, place, chunk = shape.into(shape.tokens)
    # The columns of v are those of rot and then those of free: each splits over the heads by itself.
    v = chunk.patch.v
    v = jax.ShapeDtypeStruct((*v.shape[:2], 2, v.shape[2] // 2), v.dtype)
    arrays, structure = jax.tree.flatten(replace(chunk, patch=replace(chunk.patch, v=v)))
    over = {"rot": split, "free": split, "v": P(None, None, None, "heads")}
    names = ("rot", "free", "cos", "sin", "u", "v", "ranks", "length")
    specs = (split, whole, *(over.get(name, whole) for name in names))

    @partial(jax.shard_map, mesh=mesh.abstract_mesh, in_specs=specs, out_specs=(split, split))
    def into(cache, place, *arrays):
        chunk = jax.tree.unflatten(structure, arrays)
        v = chunk.patch.v
        patch = replace(chunk.patch, v=v.reshape(*v.shape[:2], -1))
        return relocate_patch_into_tpu(cache, place, replace(chunk, patch=patch))

    program = compiled.compile_for(mesh, into, cache, place, *arrays, donate=(0,), specs=specs)
    assert compiled.kernels(program) == ["relocate_patch_into"]
    assert not compiled.collectives(program)
    assert compiled.temporaries(program) == 0
    assert compiled.aliased(program) == size([cache.rot, cache.free]) // mesh.devices.size
