"""Writing into a window's state: rows past the chunk, other slots and the end of the state."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kamera_jax import rope
from kamera_jax.kv import KV, Factors, WindowState
from kamera_jax.rope import RopeSpec
from kamera_jax.window.reuse import write, write_donated, write_jit
from tests import oracles

L = 2
S = 24
F = 16
M = 3
SPEC = RopeSpec(tuple(rope.inverse_frequencies(8, 1e4).tolist()), 8, sections=(1, 1, 2))


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def sample(bucket, seed=0, junk=0.0, length=None):
    rng = np.random.default_rng(seed)
    state = WindowState(normal(rng, L, S, F), normal(rng, L, S, F), normal(rng, 3, S), jnp.asarray(rng.random(S) < 0.5))
    padding = (np.arange(bucket) >= (bucket if length is None else length))[:, None]
    kv = KV(*(jnp.where(padding, junk, normal(rng, L, bucket, F)) for _ in range(2)))
    factors = Factors(normal(rng, L, M, bucket), normal(rng, L, M, 2 * F), jnp.array([M, 1], jnp.int32))
    positions = jnp.where(padding[:, 0], junk, jnp.asarray(rng.integers(0, 9, (3, bucket)), jnp.float32))
    return state, kv, factors, positions


def expected(state, slot, kv, factors, positions, length):
    rot, free = oracles.relocate(
        SPEC, kv.rot, kv.free, positions, length, *(() if factors is None else (factors.u, factors.v, factors.ranks))
    )
    old = [np.array(leaf) for leaf in (state.rot, state.free, state.positions, state.valid)]
    for i in range(length):
        old[0][:, slot + i] = rot[:, i]
        old[1][:, slot + i] = free[:, i]
        old[2][:, slot + i] = positions[:, i]
        old[3][slot + i] = True
    return old


def check(given, wanted, slot, length):
    elsewhere = np.ones(S, bool)
    elsewhere[slot : slot + length] = False
    for array, want, axis in zip(
        (given.rot, given.free, given.positions, given.valid), wanted, (1, 1, 1, 0), strict=True
    ):
        array = np.asarray(array)
        assert (np.compress(elsewhere, array, axis) == np.compress(elsewhere, want, axis)).all()
        np.testing.assert_allclose(array, want, rtol=0, atol=1e-5)


@given(
    slot=st.integers(0, S),
    length=st.integers(0, S),
    bucket=st.sampled_from([1, 8, 16, 32]),
    patched=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_write_equals_numpy(slot, length, bucket, patched, seed):
    assume(length <= bucket and slot + length <= S)
    state, kv, factors, positions = sample(bucket, seed, np.nan, length)
    factors = factors if patched else None
    given = write_jit(state, slot, kv, factors, positions, length, spec=SPEC)
    check(given, expected(state, slot, kv, factors, positions, length), slot, length)


def test_at_the_end_only_the_chunk_need_fit():
    state, kv, factors, positions = sample(16)
    slot = S - 5
    length = 5
    given = write_jit(state, slot, kv, factors, positions, length, spec=SPEC)
    check(given, expected(state, slot, kv, factors, positions, length), slot, length)


def test_the_old_state_stays():
    state, kv, _, positions = sample(8)
    before = jax.tree.map(np.array, state)
    write_jit(state, 4, kv, None, positions, 8, spec=SPEC)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, before))


def test_donating_gives_the_same_state_and_takes_the_old_one():
    state, kv, _, positions = sample(8)
    kept = write_jit(state, 4, kv, None, positions, 6, spec=SPEC)
    donated = write_donated(state, 4, kv, None, positions, 6, spec=SPEC)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept, donated))
    assert state.rot.is_deleted() and not kv.rot.is_deleted()


def test_vmap():
    rows = [sample(8, seed) for seed in (0, 1)]
    state, kv, factors, positions = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    slots = jnp.array([0, 19])
    lengths = jnp.array([8, 5])
    batched = jax.jit(jax.vmap(lambda *row: write(*row, SPEC)))(state, slots, kv, factors, positions, lengths)
    for i, (state, kv, factors, positions) in enumerate(rows):
        slot = int(slots[i])
        length = int(lengths[i])
        one = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        check(one, expected(state, slot, kv, factors, positions, length), slot, length)
