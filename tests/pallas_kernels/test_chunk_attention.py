"""chunk_attention's reference against float64 numpy, against the materialised window, and how its door refuses."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kamera_jax import rope
from pallas_kernels import chunk_attention, merge_states, relocate_patch
from pallas_kernels.chunk_attention.api import refusals
from pallas_kernels.chunk_attention.call import heads_of
from pallas_kernels.chunk_attention.reference import chunk_attention_reference
from tests import oracles
from tests.pallas_kernels.chunk_attention_cases import (
    CASES,
    DRAWN,
    Case,
    arrays,
    check,
    drawn,
    in_int8,
    layered,
    poisoned,
    run,
)

reference = jax.jit(chunk_attention_reference)


def attend(case, call, **options):
    return chunk_attention(**call, **case.options, **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equals_float64(name, dtype):
    case = replace(CASES[name], dtype=dtype)
    call = arrays(case)
    check(case, call, run(reference, case, poisoned(case, call)))


@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=3)
def test_equals_float64_of_any_lengths_and_ranks(name, data, seed):
    case = data.draw(drawn(name))
    call = arrays(case, seed)
    check(case, call, run(reference, case, poisoned(case, call)))


@pytest.mark.parametrize("name", ["gqa", "gqa, interleaved pairs", "m-rope, yarn", "mla"])
def test_merged_buckets_equal_attention_over_the_materialised_window(name):
    """relocate_patch writes what chunk_attention attends to; another bucket and an empty part join by merging."""
    case = CASES[name]
    parts = []
    keys = []
    values = []
    q = arrays(case)["q"]
    for seed, lengths, tokens in ((0, case.lengths, case.tokens), (1, (16, 3), 16), (2, (0,), 64)):
        other = replace(case, lengths=lengths, tokens=tokens)
        call = arrays(other, seed) | {"q": q}
        parts.append(jax.jit(partial(attend, other))(call))
        for c, length in enumerate(lengths):
            cos, sin = rope.tables(case.spec, call["positions"][c] + call["bases"][c])
            patch = (call[name][c][None] for name in ("u", "v"))
            rot, free = relocate_patch(
                *(call[name][c][None] for name in ("rot", "free")),
                cos,
                sin,
                *patch,
                call["ranks"][c][None],
                length=length,
                rotary_dim=case.spec.rotary_dim,
                layout=case.layout,
            )
            keys.append(np.concatenate([free, rot], -1)[0, :length] if case.latent else rot[0, :length])
            values.append(free[0, :length])
    out, lse = merge_states(*zip(*parts, strict=True))
    keys, values = (np.concatenate(x).astype(np.float64) for x in (keys, values))
    keys, values = (x.reshape(len(x), case.groups, -1).repeat(case.per_group, 1) for x in (keys, values))
    scores = case.scale * np.einsum("qnd,snd->qns", np.asarray(q, np.float64), keys)
    weights = np.exp(scores)
    assert (
        oracles.relative(out, np.einsum("qns,snd->qnd", weights / weights.sum(-1, keepdims=True), values)).max() <= 2e-5
    )
    assert np.allclose(lse, np.log(weights.sum(-1)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gqa, one query", "mla", "no patch"])
def test_one_layer_of_many(name):
    """With ``layer``, arrays lead with layers and one of them is read."""
    case = CASES[name]
    call = arrays(case)
    many = layered(case, call) | {"layer": jnp.int32(1)}
    del many["first"]
    for field in ("rot", "free", "u", "v"):
        if field in many:
            many[field] = many[field].reshape(3, -1, *many[field].shape[1:])
    if "ranks" in call:
        many["ranks"] = jnp.stack([jnp.zeros_like(call["ranks"]), call["ranks"], jnp.zeros_like(call["ranks"])])
    for got, wanted in zip(attend(case, many), attend(case, call), strict=True):
        assert np.allclose(got, wanted, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"rot \[L, C, T, Fr\]"):
        attend(case, call | {"layer": 1})
    with pytest.raises(ValueError, match=r"rot \[C, T, Fr\]"):
        attend(case, {name: array for name, array in many.items() if name != "layer"})


@pytest.mark.parametrize("name", ["gqa", "m-rope, yarn", "mla", "empty first, between and last"])
def test_a_bias_of_log_n_is_n_tokens(name):
    case = CASES[name]
    call = arrays(case)
    times = np.random.default_rng(2).integers(1, 4, case.tokens)
    lengths = tuple(int(times[:length].sum()) for length in case.lengths)
    again = dict(call)
    for part in ("rot", "free", "positions", "u"):
        again[part] = jnp.asarray(np.repeat(np.asarray(call[part]), times, axis=1 if part in ("rot", "free") else 2))
    again["lengths"] = jnp.asarray(lengths, jnp.int32)
    bias = jnp.tile(jnp.log(jnp.asarray(times, jnp.float32)), (len(lengths), 1))
    given = attend(case, call, bias=bias)
    check(replace(case, tokens=int(times.sum()), lengths=lengths), again, given)
    assert np.abs(np.asarray(given[0]) - attend(case, call)[0]).max() > 1e-3
    heads = heads_of(call["q"].shape, call["rot"].shape[-1], call["free"].shape[-1])
    refused = refusals(heads, 8, biased=True)
    assert refused["xla"] is None and "it adds no bias to the scores" in refused["pallas_tpu"]
    with pytest.raises(ValueError, match=r"bias must be \[\d+, 32\], one for each token"):
        attend(case, call, bias=bias[:, 1:])


@pytest.mark.parametrize("name", ["gqa", "gqa, interleaved pairs", "no patch", "mla", "empty first, between and last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_in_int8_are_what_they_stand_for(name, dtype):
    case = replace(CASES[name], dtype=dtype)
    given, meant = in_int8(case, arrays(case))
    check(case, meant, attend(case, given))


@dataclass(frozen=True)
class Doubled:
    """KV that is stored as half of itself, in rows of pairs of features."""

    def __call__(self, stored, length):
        rot, free = (2 * stored[name].astype(jnp.float32) for name in ("rot", "free"))
        return (rot + stored["more"]).reshape(len(rot), -1), free.reshape(len(free), -1)


def test_chunks_are_unpacked_as_the_caller_says():
    case = CASES["gqa, one query"]
    call = arrays(case)
    more = jnp.float32(0.25)
    pairs = {name: call[name].reshape(*call[name].shape[:2], -1, 2) / 2 for name in ("rot", "free")}
    packed = {"more": jnp.full((len(case.lengths),), more)}
    given = call | pairs | {"packed": packed, "unpack": Doubled()}
    for got, wanted in zip(attend(case, given), attend(case, call | {"rot": call["rot"] + more}), strict=True):
        assert np.allclose(got, wanted, rtol=0, atol=1e-6)
    many = {name: jnp.stack([jnp.zeros_like(array), array]) for name, array in given.items() if name in LED}
    many["packed"] = {"more": jnp.stack([packed["more"] * 0, packed["more"]])}
    for got, wanted in zip(attend(case, given | many, layer=1), attend(case, given), strict=True):
        assert np.allclose(got, wanted, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="nothing says how to unpack them; give unpack"):
        attend(case, call | {"packed": packed})
    with pytest.raises(ValueError, match=r"what chunks are packed in leads with \[3\]"):
        attend(case, given | {"packed": {"more": jnp.zeros(2)}})
    refused = refusals(heads_of((4, 8, 64), 256, 256), 32, unpack=Doubled())
    assert refused["xla"] is None and "not packed as Doubled() unpacks them" in refused["pallas_tpu"]


LED = ("rot", "free", "u", "v", "ranks")
"""Arguments that lead with layers, where ``layer`` says which."""


def test_no_temporary_holds_all_chunks():
    case = Case(queries=1, tokens=128, lengths=(128,) * 24, groups=2, head_dim=64, value_dim=64)
    call = arrays(case)
    compiled = jax.jit(partial(attend, case)).lower(call).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    # Of one chunk: keys and values in f32, and then some; of all of them there are 24.
    assert analysis.temp_size_in_bytes < (call["rot"].nbytes + call["free"].nbytes) / 4


def test_moving_a_chunk_changes_bases_alone():
    case = CASES["m-rope, yarn"]
    call = arrays(case)
    moved = call | {"positions": call["positions"] + 2.5, "bases": call["bases"] - 2.5}
    for a, b in zip(attend(case, call), attend(case, moved), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-6)


def test_default_ranks_and_scale_of_rope():
    case = CASES["gqa"]
    call = arrays(case)
    explicit = attend(case, call)
    implied = chunk_attention(**{k: v for k, v in call.items() if k != "ranks"}, scale=case.scale)
    named = attend(case, call, implementation="xla")
    for a, b, c in zip(explicit, implied, named, strict=True):
        assert (a == b).all() and (a == c).all()


def test_vmap():
    case = CASES["m-rope, yarn"]
    rows = [arrays(case, seed) | {"lengths": jnp.array(lengths)} for seed, lengths in ((0, [3, 0, 32]), (1, [0, 0, 5]))]
    batched = jax.jit(jax.vmap(partial(attend, case)))(jax.tree.map(lambda *x: jnp.stack(x), *rows))
    for i, row in enumerate(rows):
        for a, b in zip(batched, attend(case, row), strict=True):
            assert np.allclose(a[i], b, rtol=0, atol=1e-5)


def test_gradients_are_finite():
    case = CASES["empty first, between and last"]
    call = poisoned(case, arrays(case))

    def loss(q):
        out, lse = attend(case, call | {"q": q})
        return out.sum() + lse.sum()

    assert np.isfinite(jax.grad(loss)(call["q"])).all()


def test_shard_map():
    """Over heads, and over chunks, merged across devices: here one, which types the program as many would."""
    case = CASES["no patch"]
    call = arrays(case)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    over = jax.sharding.PartitionSpec
    specs = {name: over() for name in call} | {
        "q": over(None, "x"),
        "rot": over(None, None, "x"),
        "free": over(None, None, "x"),
    }
    sharded = jax.shard_map(partial(attend, case), mesh=mesh, in_specs=(specs,), out_specs=over(None, "x"))
    chunks = {name: over() if name in ("q", "inv_freq") else over("x") for name in call}

    def part(call):
        return tuple(x[None] for x in attend(case, call))

    parts = jax.shard_map(part, mesh=mesh, in_specs=(chunks,), out_specs=over("x"))
    for results in (jax.jit(sharded)(call), merge_states(*jax.jit(parts)(call))):
        check(case, call, results)


def wrong(**changes):
    return arrays(CASES["gqa"]) | changes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": jnp.zeros((3, 4))}, r"expected q \[Tq, N, D\]"),
        ({"free": jnp.zeros((3, 31, 32))}, r"expected q \[Tq, N, D\]"),
        ({"rot": jnp.zeros((0, 32, 32)), "free": jnp.zeros((0, 32, 32))}, "at least one chunk"),
        ({"q": jnp.zeros((3, 4, 16), jnp.bfloat16)}, "cast the queries"),
        ({"rot": jnp.zeros((3, 32, 32), jnp.float16)}, "all be bfloat16 or all float32"),
        ({"q": jnp.zeros((3, 4, 12))}, "queries of width 12 fit neither"),
        ({"q": jnp.zeros((3, 3, 16))}, "G dividing 3"),
        ({"inv_freq": jnp.zeros((1, 9))}, "0 < R <= 16"),
        ({"inv_freq": jnp.zeros((2, 8))}, r"expected positions \[3, A, 32\]"),
        ({"inv_freq": jnp.zeros(8)}, r"inv_freq \[A, R/2\]"),
        ({"positions": jnp.zeros((3, 1, 31))}, r"expected positions \[3, A, 32\]"),
        ({"lengths": jnp.zeros(2, jnp.int32)}, r"lengths and bases must be \[3\]"),
        ({"bases": jnp.zeros((3, 1))}, r"lengths and bases must be \[3\]"),
        ({"u": None}, "both factors u and v; got v"),
        ({"v": None}, "both factors u and v; got u"),
        ({"u": None, "v": None}, "both factors u and v; got ranks"),
        ({"u": jnp.zeros((3, 4, 31))}, "patch factors must be"),
        ({"v": jnp.zeros((3, 5, 64))}, "patch factors must be"),
        ({"u": jnp.zeros((3, 0, 32)), "v": jnp.zeros((3, 0, 64))}, "m at least 1"),
        ({"u": jnp.zeros((3, 4, 32), jnp.bfloat16)}, "u and v must both be"),
        ({"u": jnp.zeros((3, 4, 32), jnp.int8), "v": jnp.zeros((3, 4, 64), jnp.int8)}, "got int8 and int8"),
        ({name: jnp.zeros((3, 32, 32), jnp.int8) for name in ("rot", "free")}, "cast the queries"),
        ({"ranks": jnp.zeros(4, jnp.int32)}, r"ranks must be \[3\]"),
        ({"implementation": "pallas_tpu"}, "cannot use 'pallas_tpu': it runs on a tpu"),
        ({"implementation": "mosaic_gpu"}, "cannot use 'mosaic_gpu': it"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        attend(CASES["gqa"], wrong(**changes))


@pytest.mark.parametrize("dtypes, refused", [(["float16"], "float16"), (["bfloat16", "float32"], None)])
def test_a_tpu_kernel_says_which_dtypes_it_takes(dtypes, refused):
    heads = heads_of((4, 8, 64), 256, 256)
    reasons = refusals(heads, 32, dtypes)
    assert reasons["xla"] is None
    assert reasons["pallas_tpu"] == (refused and f"it needs arrays in bfloat16 or float32, not {refused}")


def test_scores_beyond_float16_stay_finite():
    """Products of queries and keys are f32, as in the dtypes that reach further."""
    case = replace(CASES["gqa"], dtype="float16")
    call = arrays(case)
    call |= {"q": call["q"] * 300, "rot": call["rot"] * 300}
    out, lse = run(reference, case, call)
    assert np.abs(np.asarray(lse)).max() > 65504 and np.isfinite(np.asarray(lse)).all()
    wide = {name: array.astype(jnp.float32) if array.dtype == jnp.float16 else array for name, array in call.items()}
    wanted, wanted_lse = run(reference, replace(case, dtype="float32"), wide)
    assert np.allclose(lse, wanted_lse, rtol=2e-3)
    assert np.isfinite(np.asarray(out, np.float32)).all() and out.dtype == jnp.float16


@pytest.mark.parametrize("changes", [{"implementation": "cuda"}, {"layout": "spiral"}])
def test_unknown_names_are_refused(changes, monkeypatch):
    # As in production, where no annotation is checked.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="unknown (implementation 'cuda'|layout 'spiral')"):
        chunk_attention(**wrong(), **{"scale": 0.3} | changes)
