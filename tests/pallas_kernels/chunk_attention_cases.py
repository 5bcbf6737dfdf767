"""Calls of chunk_attention, and what they give in float64 over keys and values written out."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kamera_jax import rope
from kamera_jax.rope import RopeSpec
from pallas_kernels.chunk_attention.call import Call, ScaledInt8, heads_of
from pallas_kernels.relocate_patch.chunk import Patch
from tests import oracles

UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative error of rounding, by dtype: bfloat16 has 8 significant bits."""


@dataclass(frozen=True)
class Case:
    queries: int = 3
    per_group: int = 2
    groups: int = 2
    head_dim: int = 16
    value_dim: int = 16
    latent: bool = False
    tokens: int = 32
    lengths: tuple[int, ...] = (32, 20, 9)
    rank: int = 4
    ranks: tuple[int, ...] | None = None
    rotary_dim: int | None = None
    sections: tuple[int, ...] | None = None
    layout: str = "half"
    scale: float = 0.3
    rope_scale: float = 1.0
    dtype: str = "float32"

    @property
    def spec(self):
        frequencies = rope.inverse_frequencies(self.rotary_dim or self.head_dim, 1e4)
        return RopeSpec(tuple(frequencies.tolist()), self.head_dim, self.layout, self.sections, scale=self.rope_scale)

    @property
    def options(self):
        return {"scale": self.scale, "rope_scale": self.rope_scale, "layout": self.layout}

    def __str__(self):
        return " ".join(f"{k}={v}" for k, v in vars(self).items() if v != getattr(Case, k))


CASES = {
    "gqa": Case(),
    "gqa, interleaved pairs": Case(layout="interleaved"),
    "gqa, one query": Case(queries=1, per_group=7, ranks=(4, 0, 2)),
    "gqa, many queries": Case(queries=40, groups=1, per_group=3, tokens=128, lengths=(128, 77)),
    "mha, partial rotary": Case(per_group=1, groups=3, rotary_dim=8),
    "m-rope, yarn": Case(sections=(2, 3, 3), rope_scale=1.3),
    "values wider than keys": Case(value_dim=24),
    "no patch": Case(rank=0),
    "mla": Case(groups=1, per_group=4, latent=True, value_dim=32, layout="interleaved"),
    "mla, one query": Case(queries=1, groups=1, per_group=8, latent=True, value_dim=32, ranks=(1, 4, 0)),
    "mla, no patch": Case(groups=1, per_group=4, latent=True, value_dim=32, rank=0),
    "empty first, between and last": Case(lengths=(0, 32, 0, 7, 0)),
    "all empty": Case(lengths=(0, 0)),
}


DRAWN = {
    "one head": Case(1, 1, 1, head_dim=8, value_dim=8, tokens=16, lengths=(0,)),
    "no patch": Case(2, 2, 3, value_dim=40, lengths=(0,) * 2, rank=0, rotary_dim=8),
    "partial, interleaved": Case(
        9, 3, 2, head_dim=24, tokens=64, lengths=(0,) * 3, rank=1, rotary_dim=8, layout="interleaved"
    ),
    "long, interleaved": Case(1, 4, 2, tokens=128, lengths=(0,) * 4, rank=8, layout="interleaved"),
    "mha": Case(9, 1, 3, head_dim=24, value_dim=8, lengths=(0,) * 4, rank=8),
    "mla": Case(2, 3, 1, head_dim=8, value_dim=40, latent=True, tokens=64, lengths=(0,) * 2, layout="interleaved"),
    "mla, one query": Case(1, 4, 1, head_dim=24, latent=True, tokens=16, lengths=(0,) * 3, rank=1),
    "mla, partial": Case(9, 2, 1, value_dim=8, latent=True, tokens=128, lengths=(0,), rank=8, rotary_dim=8),
}
"""Shapes whose lengths and ranks are drawn: that compiles nothing anew."""


@st.composite
def drawn(draw, name):
    """A case of the shape of this name."""
    shape = DRAWN[name]
    chunks = len(shape.lengths)

    def each(highest):
        return tuple(draw(st.lists(st.integers(0, highest), min_size=chunks, max_size=chunks)))

    return replace(shape, lengths=each(shape.tokens), ranks=each(shape.rank) if shape.rank else None)


def arrays(case, seed=0):
    """Arguments of the call, by name."""
    rng = np.random.default_rng(seed)
    chunks = len(case.lengths)
    tokens = case.tokens
    spec = case.spec
    widths = case.groups * case.head_dim, case.groups * case.value_dim
    dtype = jnp.dtype(case.dtype)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    inv_freq = np.zeros((spec.axes, len(spec.inv_freq)), np.float32)
    inv_freq[rope.section_axes(spec), np.arange(len(spec.inv_freq))] = spec.inv_freq
    call = {
        "q": normal(case.queries, case.groups * case.per_group, case.head_dim + case.latent * case.value_dim),
        "rot": normal(chunks, tokens, widths[0]),
        "free": normal(chunks, tokens, widths[1]),
        # Small angles: what f32 loses in an angle is not what is tested here.
        "positions": jnp.asarray(rng.integers(0, 8, (chunks, spec.axes, tokens)) / 4, jnp.float32),
        "inv_freq": jnp.asarray(inv_freq),
        "lengths": jnp.asarray(case.lengths, jnp.int32),
        "bases": jnp.asarray(rng.integers(0, 8, chunks) / 2, jnp.float32),
    }
    if case.rank:
        call |= {"u": normal(chunks, case.rank, tokens), "v": normal(chunks, case.rank, sum(widths))}
        ranks = [case.rank] * chunks if case.ranks is None else case.ranks
        call["ranks"] = jnp.asarray(ranks, jnp.int32)
    return call


def poisoned(case, call):
    """The same call with nan and inf in all that must not be read."""
    padding = np.arange(case.tokens)[None, :] >= np.asarray(case.lengths)[:, None]

    def spoil(name, where, value):
        # In numpy: nothing is compiled for it.
        array = np.asarray(call[name])
        return {name: jnp.asarray(np.where(where, np.asarray(value, array.dtype), array))}

    call = call | spoil("rot", padding[..., None], np.nan) | spoil("free", padding[..., None], np.inf)
    call |= spoil("positions", padding[:, None, :], np.nan)
    if case.rank:
        unused = np.arange(case.rank)[None, :] >= np.asarray(call["ranks"])[:, None]
        call |= spoil("u", unused[..., None] | padding[:, None, :], np.nan) | spoil("v", unused[..., None], np.inf)
    return call


def in_int8(case, call):
    """The call with its chunks in int8, and the call of what these stand for, in the dtype of the case."""
    rot, free = (np.asarray(call[name], np.float32) for name in ("rot", "free"))
    valid = np.arange(case.tokens)[None, :] < np.asarray(case.lengths)[:, None]
    rot, free = (np.where(valid[..., None], values, 0) for values in (rot, free))
    by_channel, by_token = (np.abs(values).max(axis, keepdims=True) / 127 for values, axis in ((rot, 1), (free, 2)))
    codes = [np.round(values / np.where(scale, scale, 1)) for values, scale in ((rot, by_channel), (free, by_token))]
    # What lies past the lengths is not read.
    by_token_or_nan = np.where(valid[..., None], by_token, np.nan)
    stored = {"rot": codes[0].astype(np.int8), "free": np.where(valid[..., None], codes[1], 99).astype(np.int8)}
    packed = {
        "rot_scale": by_channel.astype(np.float32),
        "free_scale": by_token_or_nan.swapaxes(1, 2).astype(np.float32),
    }
    given = call | jax.tree.map(jnp.asarray, stored | {"packed": packed})
    # As products in f32, which is what the codes are; the oracle takes them in float64.
    meant = {"rot": np.float32(codes[0] * by_channel), "free": np.float32(codes[1] * by_token)}
    return given | {"unpack": ScaledInt8()}, call | meant


def layered(case, call, layers=3, at=1):
    """The same chunks as layer ``at`` of several that lie behind each other, the others full of nan."""
    chunks = len(case.lengths)
    stored = {}
    for name in ("rot", "free", "u", "v"):
        if name in call:
            every = np.full((layers * chunks, *call[name].shape[1:]), np.nan, call[name].dtype)
            every[at * chunks : (at + 1) * chunks] = call[name]
            stored[name] = jnp.asarray(every)
    return call | stored | {"first": jnp.int32(at * chunks)}


def as_call(case, call):
    """What a backend takes."""
    given = dict(call)
    patch = Patch(given.pop("u"), given.pop("v"), given.pop("ranks")) if "u" in given else None
    given.setdefault("first", jnp.int32(0))
    heads = heads_of(call["q"].shape, call["rot"].shape[-1], call["free"].shape[-1])  # int8 has the features' widths
    return Call(**given, patch=patch, heads=heads, **case.options)


def run(attend, case, call, **options):
    """Call a backend of checked arguments."""
    return attend(as_call(case, call), **options)


def window(case, call):
    """What is valid, in f64: keys [S, G, D], values [S, G, Dv], and Σ|u||w| of the patch that is in each."""
    parts = []
    width = case.groups * case.head_dim
    for c, length in enumerate(case.lengths):
        factors = ()
        positions = call["positions"][c] + call["bases"][c]
        if case.rank:
            factors = (call["u"][c][None], call["v"][c][None], call["ranks"][c][None])
        rot, free = oracles.relocate(
            case.spec, call["rot"][c][None], call["free"][c][None], positions, length, *factors
        )
        size = np.zeros_like(free)
        if case.rank:
            u, v = (np.abs(np.asarray(call[name][c][: int(call["ranks"][c])], np.float64)) for name in "uv")
            size[0] = u.T @ v[:, width:]
        parts.append([array[0, :length] for array in (rot, free, size)])
    rot, free, size = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    keys = rot.reshape(len(rot), case.groups, case.head_dim)
    values, size = (array.reshape(len(rot), case.groups, case.value_dim) for array in (free, size))
    if not case.latent:
        return keys, values, np.zeros_like(keys), size
    return np.concatenate([values, keys], -1), values, np.concatenate([size, np.zeros_like(keys)], -1), size


def expected(case, call):
    """out f64[Tq, N, Dv], lse f64[Tq, N], and how far bfloat16 may be from each.

    Scores: a key, rotated and patched, is rounded to UNIT as a window stores it, and so is a query's product with a
    patch that is absorbed: |Δs| <= e = scale UNIT Σ_d |q_d| (|k_d| + the size of the patch). Weights then move by a
    factor within exp(±2e); probabilities are rounded, and values, or their sum with an absorbed patch, are: together
    |Δout| <= (exp(2e) - 1) Σ p|v| + exp(2e) UNIT Σ p (2|v| + size) + UNIT |out|, and |Δlse| <= e.
    """
    keys, values, size_of_keys, size = window(case, call)
    q = np.asarray(call["q"], np.float64)
    q = q.reshape(len(q), case.groups, case.per_group, -1)
    scores = case.scale * np.einsum("qgnd,sgd->qgns", q, keys)
    if not scores.shape[-1]:
        shape = (len(q), case.groups * case.per_group)
        return np.zeros((*shape, case.value_dim)), np.full(shape, -np.inf), np.zeros((*shape, 1)), np.zeros(shape)
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    p = weights / total
    lse = (top + np.log(total))[..., 0]
    out = np.einsum("qgns,sgd->qgnd", p, values)
    sizes = np.einsum("qgns,sgd->qgnd", p, np.abs(values))
    patches = np.einsum("qgns,sgd->qgnd", p, size)
    unit = UNIT[case.dtype]
    moved = case.scale * unit * np.einsum("qgnd,sgd->qgns", np.abs(q), np.abs(keys) + size_of_keys).max(-1)
    factor = np.exp(2 * moved)[..., None]
    bound = (factor - 1) * sizes + factor * unit * (2 * sizes + patches) + unit * np.abs(out)
    return *(x.reshape(len(q), -1, *x.shape[3:]) for x in (out, lse)), *(
        x.reshape(len(q), -1, *x.shape[3:]) for x in (bound, moved)
    )


def check(case, call, results):
    """Within 2e-5 relative in f32; within the derived bound, and what f32 loses, in narrower dtypes."""
    out, lse = (np.asarray(x, np.float64) for x in results)
    wanted, wanted_lse, bound, moved = expected(case, call)
    assert results[0].dtype == call["q"].dtype and results[1].dtype == jnp.float32
    assert out.shape == wanted.shape and lse.shape == wanted_lse.shape
    empty = np.isneginf(wanted_lse)
    assert (np.isneginf(lse) == empty).all() and (out[empty] == 0).all()
    lse, wanted_lse = (np.where(empty, 0.0, x) for x in (lse, wanted_lse))
    if case.dtype == "float32":
        assert oracles.relative(out, wanted).max() <= 2e-5
        assert (np.abs(lse - wanted_lse) <= 2e-5 * np.maximum(1, np.abs(wanted_lse))).all()
    else:
        assert (np.abs(out - wanted) <= bound * (1 + 1e-4) + 1e-5).all()
        assert (np.abs(lse - wanted_lse) <= moved * (1 + 1e-4) + 1e-5).all()
