"""The TPU kernels against float64 in interpret mode, under poison and race detection, batched, and as lowered."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import dispatch, relocate_patch, relocate_patch_into
from pallas_kernels.relocate_patch import limits
from pallas_kernels.relocate_patch.chunk import Cache
from pallas_kernels.relocate_patch.shapes import SHAPES
from pallas_kernels.relocate_patch.tpu import relocate_patch_tpu
from pallas_kernels.relocate_patch.tpu_into import relocate_patch_into_tpu
from pallas_kernels.relocate_patch.tpu_plan import Tiles, laid_out, plan_call, traffic
from tests.pallas_kernels.calls import Call, caches, close, placed, poisoned, spec

# Memory starts as NaN, copies happen as late as they may, and whatever is read before it is written is a race.
INTERPRET = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", dma_execution_mode="on_wait")
BF16 = jnp.bfloat16

# The call, and its tiles: several blocks of tokens where tiles are given.
CASES = {
    "gqa": (Call(spec(128), 2, 256, 3, 256, 8), Tiles(128, 2)),
    "gqa, bf16, m-rope": (Call(spec(128, sections=(16, 24, 24)), 2, 256, 2, 200, 8, BF16), Tiles(128, 1)),
    "mla, bf16": (Call(spec(64, layout="interleaved"), 1, 512, 2, 256, 16, BF16), Tiles(128, 1)),
    "mla, f32": (Call(spec(64), 1, 512, 2, 128, 8), None),
    "D = 64, partial": (Call(spec(64, 32, layout="interleaved"), 4, 256, 2, 128, 8), None),
    "D = 80, partial": (Call(spec(80, 32), 8, 640, 1, 16, 8), None),
    "D = 80, narrow": (Call(spec(80, 32), 2, 160, 2, 128, 8, BF16), None),
    "D = 96": (Call(spec(96, layout="interleaved"), 4, 384, 1, 16, 8), None),
    "D = 256, partial": (Call(spec(256, 64), 1, 256, 2, 128, 12, BF16), None),
    "full rank": (Call(spec(128), 1, 128, 3, 136, 136), None),
    "blind": (Call(spec(128), 1, 128, 2, 128, 0), None),
    "one token": (Call(spec(128), 1, 128, 2, 1, 4), None),
}


def raced():
    return interpreter.races is not None and interpreter.races.races_found


@pytest.mark.parametrize("name", CASES)
def test_equals_float64(name):
    call, tiles = CASES[name]
    run = jax.jit(partial(relocate_patch_tpu, interpret=INTERPRET, tiles=tiles))
    for seed, length in enumerate((call.tokens, call.tokens * 2 // 5, 0)):
        drawn = call.draw(seed)
        given = run(call.chunk(poisoned(drawn, length), length))
        assert not raced()
        close(given, call.expected(drawn, length), call.dtype)
        assert all((np.asarray(array, np.float32)[:, length:] == 0).all() for array in given)


RAGGED = [
    Call(spec(64, 32), 3, 64, 1, 40, 0),
    Call(spec(80, layout="interleaved"), 1, 128, 1, 1, 9, BF16),
    Call(spec(96, 48), 2, 192, 1, 23, 3, BF16),
    Call(spec(128, 64, layout="interleaved"), 1, 64, 1, 17, 9),
    Call(spec(256), 1, 192, 1, 33, 1, BF16),
]
"""Every head dim, in tokens and ranks that divide nothing."""
ragged = jax.jit(partial(relocate_patch_tpu, interpret=INTERPRET))


@pytest.mark.parametrize("call", RAGGED, ids=lambda call: f"D = {call.rope.head_dim}")
@given(data=st.data())
@settings(max_examples=2)
def test_ragged_shapes(call, data):
    length = data.draw(st.integers(0, call.tokens))
    drawn = call.draw()
    given = ragged(call.chunk(poisoned(drawn, length), length))
    close(given, call.expected(drawn, length), call.dtype)


def test_ragged_shapes_have_every_head_dim():
    assert sorted(call.rope.head_dim for call in RAGGED) == list(limits.HEAD_DIMS)


# The call, slots, page, tiles, and (place, length) to try: whole and ragged ends, starts inside a granule.
INTO = {
    "gqa": (CASES["gqa"][0], 512, None, Tiles(128, 2), [(32, 203), (256, 256), (496, 16), (0, 0)]),
    "gqa, bf16": (Call(spec(128), 1, 128, 2, 128, 0, BF16), 160, None, None, [(32, 77), (144, 9)]),
    "gqa, pages": (Call(spec(128), 1, 128, 2, 64, 8), 128, 16, None, [([5, 1, 7, 0], 43), ([2, 3, 4, 6], 64)]),
    "mla": (CASES["mla, bf16"][0], 512, None, Tiles(128, 1), [(144, 211), (256, 256), (496, 16), (112, 144)]),
    "mla, short": (Call(spec(64), 1, 128, 2, 16, 8), 256, None, None, [(112, 16), (16, 5), (240, 16)]),
    "mla, pages": (Call(spec(64), 1, 128, 2, 256, 0), 512, 128, Tiles(128, 1), [([3, 1], 201), ([0, 2], 128)]),
}


@pytest.mark.parametrize("name", INTO)
def test_writes_its_rows_and_no_others(name):
    call, slots, page, tiles, tried = INTO[name]
    run = jax.jit(partial(relocate_patch_into_tpu, interpret=INTERPRET, tiles=tiles))
    for seed, (place, length) in enumerate(tried):
        drawn = call.draw(seed)
        cached = caches(call, slots, page, seed)
        chunk = call.chunk(poisoned(drawn, length), length)
        given = run(Cache(*cached), jnp.asarray(place, jnp.int32), chunk)
        assert not raced()
        placed(call, cached, place, given, call.expected(drawn, length), length)


def test_races_are_found_where_there_are_some():
    """The detector sees a kernel that reads what it has not waited for."""

    def racy(x, out, sem):
        copy = pltpu.make_async_copy(x, out, sem)
        copy.start()
        out[...] = out[...] + 1.0
        copy.wait()

    from jax.experimental import pallas as pl

    ones = jnp.ones((8, 128))
    pl.pallas_call(
        racy,
        out_shape=jax.ShapeDtypeStruct(ones.shape, ones.dtype),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.SemaphoreType.DMA],
        interpret=pltpu.InterpretParams(detect_races=True),
    )(ones)
    assert raced()


def test_vmap_is_one_call():
    call = Call(spec(128), 1, 128, 2, 32, 8)
    draws = [call.draw(seed) for seed in range(4)]
    rot, free = draws[0][:2]  # one chunk, put at several places with several patches
    lengths = jnp.array([[32, 11], [0, 17]])
    slots = jnp.array([[0, 16], [48, 32]])
    chunks = [call.chunk(drawn, 0) for drawn in draws]
    operands = [(chunk.cos, chunk.sin, chunk.patch) for chunk in chunks]
    batch = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 2, *x[0].shape), *operands)
    cached = caches(call, 80)

    def one(slot, length, tables_and_patch):
        cos, sin, patch = tables_and_patch
        chunk = replace(chunks[0], cos=cos, sin=sin, patch=patch, length=length)
        return relocate_patch_into_tpu(Cache(*cached), slot, chunk, interpret=INTERPRET)

    batched = jax.vmap(jax.vmap(one))
    assert str(jax.make_jaxpr(batched)(slots, lengths, batch)).count("pallas_call[") == 1
    new = jax.jit(batched)(slots, lengths, batch)
    assert not raced()
    for i, drawn in enumerate(draws):
        place = slots[divmod(i, 2)]
        length = int(lengths[divmod(i, 2)])
        expected = call.expected((rot, free, *drawn[2:]), length)
        placed(call, cached, place, [x[divmod(i, 2)] for x in new], expected, length)


def lowered(call, dtype=BF16, tokens=256, **options):
    """The program of a public call as lowered for TPU."""
    shape = Call(call.rope, call.heads, call.free, call.layers, tokens, call.rank, dtype)
    traced = jax.jit(partial(relocate_patch, **call.options, **options)).trace(*shape.operands(shape.draw()))
    return traced.lower(lowering_platforms=("tpu",)).as_text()


def test_on_tpu_the_kernel_runs_where_it_can(monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    for name in ("gqa", "mla, bf16"):
        text = lowered(CASES[name][0])
        assert "tpu_custom_call" in text and 'kernel_name = "relocate_patch"' in text
    assert "tpu_custom_call" not in lowered(CASES["gqa"][0], implementation="xla")
    assert "tpu_custom_call" not in lowered(Call(spec(16), 2, 32))  # D = 16 falls back
    call = CASES["gqa"][0]
    operands = call.operands(call.draw())
    for slots, page, place in ((512, None, 0), (512, 64, [1, 0, 3, 2])):
        traced = jax.jit(partial(relocate_patch_into, **call.options)).trace(
            *caches(call, slots, page), jnp.asarray(place, jnp.int32), *operands
        )
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert "tpu_custom_call" in text and 'kernel_name = "relocate_patch_into"' in text


@pytest.mark.parametrize(
    "call, slots, page, message",
    [
        (Call(spec(16), 2, 32), None, None, r"head dim D in \(64, .*not 16"),
        (Call(spec(128), 1, 128, dtype=jnp.float16), None, None, "not float16"),
        (Call(spec(128), 1, 128), 100, None, "multiple of 16 slots, not 100"),
        (Call(spec(64), 1, 128), 144, None, "multiple of 128 slots because the 64 features of cache_rot.*not 144"),
        (Call(spec(64), 1, 128), 144, 16, "from 128 to 1024 because the 64 features.*not 16"),
        (Call(spec(128), 1, 128, tokens=48), 144, 48, "from 16 to 1024, not 48"),
    ],
)
def test_what_the_kernel_cannot_serve_is_refused_by_name(call, slots, page, message, monkeypatch):
    monkeypatch.setattr(dispatch, "platform", lambda: "tpu")
    operands = call.operands(call.draw())
    with pytest.raises(ValueError, match=f"'pallas_tpu'.*{message}"):
        if slots is None:
            relocate_patch(*operands, implementation="pallas_tpu", **call.options)
        else:
            place = 0 if page is None else jnp.arange(call.tokens // page, dtype=jnp.int32)
            relocate_patch_into(
                *caches(call, slots, page), place, *operands, implementation="pallas_tpu", **call.options
            )


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_fit_and_move_little_more_than_they_must(name):
    shape = SHAPES[name]
    chunk = shape.chunk()
    plan = plan_call(chunk)
    assert plan.tiles.tokens % 128 == 0 and 256 <= plan.tiles.tokens <= shape.tokens
    assert chunk.rot.shape[-1] % plan.tiles.groups == 0 and chunk.free.shape[-1] % plan.tiles.groups == 0
    moved = traffic(plan, jax.eval_shape(partial(laid_out, plan), chunk))
    # With what v costs to read again for each block, which the compiled program does not show.
    assert shape.ideal_bytes() <= moved + 4 * shape.layers + 4
    assert moved <= 1.05 * shape.ideal_bytes()
