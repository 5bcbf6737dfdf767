"""relocate_patch's reference against float64 numpy, and how the door to it refuses."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamera_jax import rope
from kamera_jax.rope import RopeSpec
from pallas_kernels import relocate_patch
from tests import oracles

L, T, M = 3, 16, 4


def spec(head_dim=16, rotary_dim=None, **fields):
    return RopeSpec(tuple(rope.inverse_frequencies(rotary_dim or head_dim, 1e4).tolist()), head_dim, **fields)


# name: RoPE, heads, free width
CASES = {
    "gqa": (spec(), 2, 32),
    "gqa-interleaved-pairs": (spec(layout="interleaved"), 2, 32),
    "partial": (spec(16, 8), 2, 32),
    "partial-interleaved-pairs": (spec(16, 8, layout="interleaved"), 2, 24),
    "mrope": (spec(sections=(2, 3, 3)), 2, 32),
    "yarn": (spec(scale=1.3), 2, 32),
    "mla": (spec(64, layout="interleaved"), 1, 512),
}
every_case = pytest.mark.parametrize("name", CASES)
jitted = jax.jit(relocate_patch, static_argnames=("rotary_dim", "layout", "implementation"))


def arrays(name, dtype=jnp.float32, seed=0):
    case, heads, width = CASES[name]
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    kv = {"rot": normal(L, T, heads * case.head_dim), "free": normal(L, T, width)}
    factors = {"u": normal(L, M, T), "v": normal(L, M, heads * case.head_dim + width)}
    # Small angles: what f32 loses in an angle is not what is tested here.
    positions = jnp.asarray(rng.integers(0, 8, (case.axes, T)) / 4, jnp.float32)
    return kv, factors, positions


def relocated(name, kv, positions, *factors, relocate=jitted, **options):
    case = CASES[name][0]
    cos, sin = rope.tables(case, positions)
    return relocate(
        kv["rot"], kv["free"], cos, sin, *factors, rotary_dim=case.rotary_dim, layout=case.layout, **options
    )


def close(given, expected, dtype):
    """Relative error 2e-5 per layer in f32; in narrower dtypes one rounding, each value within one ulp."""
    for array, wanted in zip(given, expected, strict=True):
        assert array.dtype == dtype and array.shape == wanted.shape
        if dtype == jnp.float32:
            assert oracles.relative(array, wanted).max() <= 2e-5
        else:
            rounded = wanted.astype(dtype).astype(np.float64)
            ulp = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(np.maximum(np.abs(rounded), 1e-30)))
            assert (np.abs(np.asarray(array, np.float64) - rounded) <= ulp).all()


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("patched", [True, False])
def test_equals_float64(name, dtype, patched):
    kv, factors, positions = arrays(name, dtype)
    factors = tuple(factors.values()) if patched else ()
    given = relocated(name, kv, positions, *factors, length=jnp.int32(11))
    close(given, oracles.relocate(CASES[name][0], kv["rot"], kv["free"], positions, 11, *factors), dtype)


@given(
    length=st.integers(0, T),
    ranks=st.lists(st.integers(0, M), min_size=L, max_size=L),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_nothing_past_length_or_rank_is_read(length, ranks, seed):
    kv, factors, positions = arrays("mrope", seed=seed)
    clean = oracles.relocate(CASES["mrope"][0], kv["rot"], kv["free"], positions, length, *factors.values(), ranks)
    padding, unused = np.arange(T) >= length, np.arange(M)[None, :] >= np.array(ranks)[:, None]
    kv = {name: jnp.where(padding[None, :, None], jnp.nan, rows) for name, rows in kv.items()}
    u = jnp.where(unused[..., None] | padding[None, None, :], jnp.nan, factors["u"])
    v = jnp.where(unused[..., None], jnp.inf, factors["v"])
    positions = jnp.where(padding[None, :], jnp.nan, positions)
    given = relocated("mrope", kv, positions, u, v, jnp.array(ranks, jnp.int32), length=jnp.int32(length))
    close(given, clean, jnp.float32)
    assert all((np.asarray(array)[:, length:] == 0).all() for array in given)


def test_all_rows_all_ranks_and_all_dims_by_default():
    kv, factors, positions = arrays("gqa")
    cos, sin = rope.tables(CASES["gqa"][0], positions)
    given = relocate_patch(kv["rot"], kv["free"], cos, sin, factors["u"], factors["v"])
    explicit = relocated("gqa", kv, positions, *factors.values(), jnp.full(L, M, jnp.int32), length=T)
    assert all(np.allclose(a, b, rtol=0, atol=1e-5) for a, b in zip(given, explicit, strict=True))
    named = relocate_patch(kv["rot"], kv["free"], cos, sin, factors["u"], factors["v"], implementation="xla")
    assert all((a == b).all() for a, b in zip(given, named, strict=True))


def test_vmap():
    rows = [arrays("mrope", seed=seed) for seed in (0, 1)]
    kv, factors, positions = jax.tree.map(lambda *arrays: jnp.stack(arrays), *rows)
    ranks, lengths = jnp.array([[4, 2, 0], [1, 1, 4]]), jnp.array([16, 5])

    def one(kv, factors, positions, ranks, length):
        return relocated("mrope", kv, positions, *factors.values(), ranks, length=length, relocate=relocate_patch)

    batched = jax.jit(jax.vmap(one))(kv, factors, positions, ranks, lengths)
    for i, (kv, factors, positions) in enumerate(rows):
        single = relocated("mrope", kv, positions, *factors.values(), ranks[i], length=lengths[i])
        assert all(np.allclose(a[i], b, rtol=0, atol=1e-5) for a, b in zip(batched, single, strict=True))


def wrong(**changes):
    kv, factors, positions = arrays("gqa")
    cos, sin = rope.tables(CASES["gqa"][0], positions)
    return {**kv, "cos": cos, "sin": sin, **factors, **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"free": jnp.zeros((L, T + 1, 32))}, "free must start with"),
        ({"cos": jnp.zeros((T + 1, 16)), "sin": jnp.zeros((T + 1, 16))}, "cos and sin must be"),
        ({"cos": jnp.zeros((T, 12)), "sin": jnp.zeros((T, 12))}, "D dividing 32"),
        ({"cos": jnp.zeros((T, 8))}, "cos and sin must be"),
        ({"cos": jnp.zeros(T), "sin": jnp.zeros(T)}, "cos and sin must be"),
        ({"u": None}, "both factors u and v; got v"),
        ({"v": None}, "both factors u and v; got u"),
        ({"u": None, "v": None, "ranks": jnp.zeros(L, jnp.int32)}, "both factors u and v; got ranks"),
        ({"u": jnp.zeros((L, M, T + 1))}, "patch factors must be"),
        ({"u": jnp.zeros((M, T))}, "patch factors must be"),
        ({"v": jnp.zeros((L, M + 1, 64))}, "patch factors must be"),
        ({"v": jnp.zeros((L, M, 63))}, "patch factors must be"),
        ({"ranks": jnp.zeros(L + 1, jnp.int32)}, "ranks must be"),
        ({"implementation": "pallas_tpu"}, "no 'pallas_tpu' backend.*'xla'"),
        ({"implementation": "mosaic_gpu"}, "no 'mosaic_gpu' backend.*'xla'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        relocate_patch(**wrong(**changes))


@pytest.mark.parametrize("changes", [{"implementation": "cuda"}, {"layout": "spiral"}])
def test_unknown_names_are_refused(changes, monkeypatch):
    # As in production, where no annotation is checked.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="unknown (implementation 'cuda'|layout 'spiral')"):
        relocate_patch(**wrong(**changes))
