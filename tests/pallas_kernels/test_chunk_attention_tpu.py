"""The TPU kernel of chunk_attention: interpreted against float64, and compiled for TPUs without one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from benchmarks import compiled
from kamera_jax.compress.pooled import PackedPool
from pallas_kernels import chunk_attention, dispatch
from pallas_kernels.chunk_attention.call import Heads, ScaledInt8
from pallas_kernels.chunk_attention.limits import tpu_refusal
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from pallas_kernels.chunk_attention.shapes import SHAPES
from pallas_kernels.chunk_attention.tpu import chunk_attention_tpu
from pallas_kernels.chunk_attention.tpu_plan import VMEM, Tiles, choose_tiles, vmem
from pallas_kernels.chunk_attention.tpu_rotation import cos_sin
from tests.pallas_kernels.chunk_attention_cases import (
    CASES,
    DRAWN,
    arrays,
    check,
    drawn,
    in_int8,
    layered,
    poisoned,
    run,
)

kernel = partial(jax.jit(chunk_attention_tpu, static_argnames=("tiles", "interpret")), interpret=True)


PATCHED = [name for name, case in CASES.items() if case.rank]


@pytest.mark.parametrize(
    "name, absorb", [(name, True) for name in PATCHED] + [(name, False) for name in CASES if "gqa, " not in name]
)
def test_equals_float64_in_many_steps(name, absorb):
    """Tiles that divide nothing: rows, tokens and heads all take several steps."""
    case = CASES[name]
    call = arrays(case)
    heads = 1 if case.head_dim == case.value_dim else case.groups
    check(case, call, run(kernel, case, poisoned(case, call), tiles=Tiles(4, 12, heads, absorb)))


@pytest.mark.parametrize("name", ["gqa, many queries", "gqa, one query", "mla", "mla, one query"])
def test_bfloat16_with_the_tiles_chosen(name):
    case = replace(CASES[name], dtype="bfloat16")
    call = arrays(case)
    check(case, call, run(kernel, case, poisoned(case, call)))


@pytest.mark.parametrize(
    "name, dtype, tiles",
    [
        ("gqa", "float32", Tiles(4, 12, 1, True)),
        ("gqa, one query", "bfloat16", None),
        ("gqa, interleaved pairs", "float32", None),
        ("no patch", "float32", Tiles(4, 12, 2, False)),
        ("empty first, between and last", "float32", Tiles(8, 16, 1, True)),
    ],
)
def test_chunks_in_int8(name, dtype, tiles):
    case = replace(CASES[name], dtype=dtype)
    given, meant = in_int8(case, arrays(case))
    check(case, meant, run(kernel, case, given, tiles=tiles))


@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=3)
def test_equals_float64_of_any_lengths_and_ranks(name, data, seed):
    case = data.draw(drawn(name))
    call = arrays(case, seed)
    # Heads are split where they may be; every second shape absorbs its patch.
    heads = 1 if case.head_dim == case.value_dim else case.groups
    tiles = Tiles(8, 16, heads, absorb=list(DRAWN).index(name) % 2 == 0)
    check(case, call, run(kernel, case, poisoned(case, call), tiles=tiles))


@pytest.mark.parametrize("name", ["gqa, one query", "mla, one query"])
def test_no_races(name):
    """Blocks come and go, nothing unwritten is read: in the interpreter that models a TPU's memories."""
    case = CASES[name]
    call = arrays(case)
    params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    check(case, call, run(chunk_attention_tpu, case, call, tiles=Tiles(4, 16, 1, True), interpret=params))
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("name", ["gqa, one query", "mla", "no patch"])
def test_one_layer_of_many(name):
    case = CASES[name]
    call = arrays(case)
    check(case, call, run(kernel, case, layered(case, poisoned(case, call)), tiles=Tiles(8, 16, case.groups, True)))


def batch(case, batched, size=2):
    """Calls that differ in the arguments named, stacked; and how they are mapped."""
    base = arrays(case)
    others = [arrays(case, seed) for seed in range(1, size)]
    axes = {name: 0 if name in batched else None for name in base}
    call = {name: jnp.stack([x, *(o[name] for o in others)]) if name in batched else x for name, x in base.items()}
    return call, axes


@pytest.mark.parametrize("name", ["gqa", "mla"])
@pytest.mark.parametrize(
    "batched",
    [("q",), ("bases", "lengths"), ("q", "bases"), ("q", "rot", "free", "positions", "lengths", "bases", "u", "v")],
    ids=" ".join,
)
def test_vmap_copies_no_chunk(name, batched):
    case = CASES[name]
    call, axes = batch(case, batched)
    attend = partial(run, partial(chunk_attention_tpu, interpret=True), case)
    program = jax.make_jaxpr(jax.vmap(attend, in_axes=(axes,)))(call)
    assert not copies(program.jaxpr, call["rot"].size)
    out, lse = jax.jit(jax.vmap(attend, in_axes=(axes,)))(call)
    for i in range(2):
        one = {name: x[i] if axes[name] == 0 else x for name, x in call.items()}
        check(case, one, (out[i], lse[i]))


def test_vmap_of_vmap():
    case = CASES["gqa, one query"]
    call, axes = batch(case, ("rot", "free"))
    inner, _ = batch(case, ("q", "lengths"))
    call |= {"q": inner["q"], "lengths": jnp.array([[32, 20, 9], [1, 0, 32]], jnp.int32)}
    inside = {name: 0 if name in ("q", "lengths") else None for name in call}
    attend = partial(run, partial(chunk_attention_tpu, interpret=True), case)
    out, lse = jax.jit(jax.vmap(jax.vmap(attend, in_axes=(inside,)), in_axes=(axes,)))(call)
    for i in range(2):
        for j in range(2):
            one = {n: x[i] if axes[n] == 0 else x[j] if inside[n] == 0 else x for n, x in call.items()}
            lengths = tuple(one["lengths"].tolist())
            check(replace(case, lengths=lengths), one, (out[i, j], lse[i, j]))


def copies(jaxpr, size):
    """Equations outside the kernel, views of the arguments aside, that write as much as the keys of all chunks."""
    views = {"reshape", "transpose", "squeeze", "pallas_call"}
    copying = []
    for equation in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves(equation.params) if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        if equation.primitive.name == "pallas_call":
            continue
        for sub in inner:
            copying += copies(getattr(sub, "jaxpr", sub), size)
        written = max((out.aval.size for out in equation.outvars), default=0)
        one_view = written == max((x.aval.size for x in equation.invars), default=0)
        if (
            not inner
            and written >= size
            and not (equation.primitive.name in views or (equation.primitive.name == "broadcast_in_dim" and one_view))
        ):
            copying.append(equation)
    return copying


def test_shard_map():
    """Over heads, and over chunks: here on one device, which types the program as many would."""
    case = CASES["no patch"]
    call = arrays(case)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.PartitionSpec
    heads = {name: over() for name in call} | {"q": over(None, "x")}
    heads |= {name: over(None, None, "x") for name in ("rot", "free")}
    chunks = {name: over() if name in ("q", "inv_freq") else over("x") for name in call}

    def attend(call):
        return run(chunk_attention_tpu, case, call)

    def part(call):
        return tuple(x[None] for x in attend(call))

    for function, specs, out in ((attend, heads, over(None, "x")), (part, chunks, over("x"))):
        sharded = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=out))
        text = sharded.trace(call).lower(lowering_platforms=("tpu",)).as_text()
        assert "tpu_custom_call" in text


@pytest.mark.parametrize("reach, error", [(1e4, 2e-7), (1e5, 4e-6)])
def test_cos_and_sin(reach, error):
    angles = np.random.default_rng(0).uniform(0, reach, 100_000).astype(np.float32)
    angles[:4] = 0, np.pi / 4, np.pi / 2, np.pi
    cos, sin = jax.jit(cos_sin)(jnp.asarray(angles))
    exact = angles.astype(np.float64)
    assert np.abs(np.asarray(cos, np.float64) - np.cos(exact)).max() <= error
    assert np.abs(np.asarray(sin, np.float64) - np.sin(exact)).max() <= error


@pytest.mark.parametrize("platform, kernels", [("tpu", True), ("cpu", False)])
def test_the_kernel_is_in_the_lowered_program(platform, kernels, monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: platform)
    shape = SHAPES["qwen2.5-vl-7b decode"]
    attend = jax.jit(partial(chunk_attention, scale=0.1))
    text = attend.trace(**shape.arguments()).lower(lowering_platforms=(platform,)).as_text()
    assert ("tpu_custom_call" in text) == ("chunk_attention" in text and "while" not in text) == kernels


def test_heads_the_kernel_cannot_take_fall_back(monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    case = CASES["gqa"]
    call = arrays(case)
    check(case, call, chunk_attention(**call, **case.options))
    with pytest.raises(ValueError, match="cannot use 'pallas_tpu': it needs keys whose head dim"):
        chunk_attention(**call, **case.options, implementation="pallas_tpu")


@pytest.mark.parametrize("name", SHAPES)
def test_tiles_fit(name):
    shape = SHAPES[name]
    heads = shape.split
    for itemsize in (2, 4):
        tiles = choose_tiles(heads, shape.queries * heads.per_group, shape.tokens, shape.rank, itemsize)
        assert vmem(tiles, heads, shape.rank, itemsize) <= VMEM
        assert heads.groups % tiles.heads == 0 and tiles.rows % (32 // itemsize) == 0
        assert tiles.tokens == shape.tokens or tiles.tokens % 128 == 0
        assert tiles.absorb == (shape.rank > 0 and shape.queries < 32)


def test_decoding_absorbs_and_prefill_does_not():
    grouped = Heads(28, 4, 128, 128, latent=False)
    latent = Heads(16, 1, 64, 512, latent=True)
    assert choose_tiles(grouped, 7, 512, 32, 2) == Tiles(16, 512, 4, True)
    assert choose_tiles(latent, 16, 512, 32, 2) == Tiles(16, 512, 1, True)
    assert not choose_tiles(grouped, 3584, 512, 32, 2).absorb
    assert not choose_tiles(latent, 257, 512, 32, 2).absorb
    assert not choose_tiles(grouped, 7, 512, 0, 2).absorb


EVERY_RUN = {"qwen2.5-vl-7b decode": ("v5e", "v6e"), "kimi-vl decode": ("v5e", "v6e"), "short chunks": ("v5e",)}
compilations = [
    pytest.param(name, *target.values, marks=target.marks)
    for name in SHAPES
    for target in compiled.targets(*EVERY_RUN.get(name, ()))
]


@pytest.mark.parametrize("name, target", compilations)
def test_compiled_it_reads_the_chunks_once_and_writes_no_kv(name, target):
    shape = SHAPES[name]
    call = shape.call()
    program = compiled.compile_for(target, chunk_attention_tpu, call)
    assert compiled.kernels(program) == ["chunk_attention"]
    kv = 2 * shape.kv_values
    queries = 2 * shape.queries * shape.heads * shape.width
    # Nothing of the size of keys is made but what the queries ask for.
    positions = call.positions.size * 4
    keys = 2 * shape.chunks * shape.tokens * shape.rot
    lse = 512 * shape.queries * shape.heads
    assert compiled.largest_result(program) <= max(keys - 1, queries, lse)
    # What is as large as the queries may be laid out anew: q, out, and lse on 128 lanes of f32; where VMEM is small
    # all of it in HBM (q and out twice each, read and written, and lse, twice as large, once), and positions too.
    small = target == "v5p"
    anew = (12 if small else 8) * queries
    assert compiled.temporaries(program) <= 0.01 * kv + anew + (2 * positions if small else 0)
    ideal = sum(x.size * x.dtype.itemsize for x in shape.arguments().values()) + 2 * queries
    assert compiled.hbm_bytes(program) <= 1.05 * ideal + anew


@pytest.mark.parametrize("target", compiled.targets("v6e"))
@pytest.mark.parametrize("name", ["qwen2.5-vl-7b decode", "qwen2.5-vl-7b decode, no patch"])
def test_compiled_chunks_in_int8_are_half_the_bytes(name, target):
    shape = SHAPES[name]
    call = shape.in_int8()
    assert tpu_refusal(shape.split, shape.pairs, ["bfloat16"], tokens=shape.tokens, unpack=call.unpack) is None
    program = compiled.compile_for(target, chunk_attention_tpu, call)
    assert compiled.kernels(program) == ["chunk_attention"]
    queries = 2 * shape.queries * shape.heads * shape.width
    # As where they are not packed; the scales are few.
    scales = 4 * shape.chunks * (shape.rot + shape.tokens)
    anew = 12 * queries + (2 * 4 * call.positions.size + 2 * scales if target == "v5p" else 0)
    assert compiled.temporaries(program) <= 0.01 * shape.kv_values + anew
    others = sum(x.size * x.dtype.itemsize for x in shape.arguments().values()) - 2 * shape.kv_values + 2 * queries
    assert compiled.hbm_bytes(program) <= 1.05 * (shape.kv_values + others + scales) + anew


def test_compiled_the_fallback_reads_packed_chunks_as_they_are_packed():
    shape = SHAPES["kimi-vl decode"]
    exact = compiled.compile_for("v6e", chunk_attention_reference, shape.call())
    form = PackedPool("kivi:4", shape.rot, shape.free, heads=1)
    packed = form.arrays(shape.chunks, shape.tokens, "bfloat16")
    nbytes = sum(x.size * x.dtype.itemsize for x in packed.values())
    assert nbytes < 2 * shape.kv_values / 3
    codes = {name: packed.pop(name) for name in ("rot", "free")}
    call = replace(shape.call(), **codes, packed=packed, unpack=form)
    program = compiled.compile_for("v6e", chunk_attention_reference, call)
    saved = 2 * shape.kv_values - nbytes
    assert compiled.hbm_bytes(program) <= compiled.hbm_bytes(exact) - 0.98 * saved
    assert compiled.temporaries(program) <= 0.01 * 2 * shape.kv_values


@pytest.mark.parametrize(
    "heads, tokens, reason",
    [
        (Heads(16, 1, 64, 512, latent=True), 512, "it reads latents (MLA) as they are"),
        (Heads(32, 9, 64, 64, latent=False), 512, "features in whole lanes, not 512 and 9 heads of 64 and 64"),
        (Heads(28, 4, 128, 128, latent=False), 48, "room for a multiple of 32 tokens"),
    ],
)
def test_int8_that_the_kernel_does_not_read_is_left_to_xla(heads, tokens, reason):
    assert tpu_refusal(heads, heads.rotated // 2, ["bfloat16"], tokens=tokens) is None
    refused = tpu_refusal(heads, heads.rotated // 2, ["bfloat16"], tokens=tokens, unpack=ScaledInt8())
    assert refused is not None and reason in refused


def test_compiled_a_loop_over_layers_cuts_none_out():
    """Where layers lie behind each other, as in a window's pools, no layer's chunks are copied to be read."""
    shape = SHAPES["kimi-vl decode"]
    layers = 4
    call = shape.call()

    def of_all(array):
        return jax.ShapeDtypeStruct((layers * shape.chunks, *array.shape[1:]), array.dtype)

    patch = replace(call.patch, u=of_all(call.patch.u), v=of_all(call.patch.v))
    call = replace(call, rot=of_all(call.rot), free=of_all(call.free), patch=patch)

    def decode(call):
        def layer(q, index):
            out, _ = chunk_attention_tpu(replace(call, q=q, first=index * shape.chunks))
            return q.at[..., : out.shape[-1]].set(out), None

        return jax.lax.scan(layer, call.q, jnp.arange(layers))[0]

    program = compiled.compile_for("v5e", decode, call)
    assert compiled.kernels(program) == ["chunk_attention"]
    assert compiled.temporaries(program) <= 0.01 * 2 * shape.kv_values


def test_compiled_the_fallback_holds_one_chunk_at_a_time():
    shape = replace(SHAPES["qwen2.5-vl-7b decode"], rank=0)
    program = compiled.compile_for("v5e", chunk_attention_reference, shape.call())
    assert compiled.kernels(program) == []
    assert compiled.temporaries(program) <= 0.1 * 2 * shape.kv_values
