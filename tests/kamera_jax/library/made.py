"""Chunks and patches of random numbers, the same for the same number: no model makes them."""

import dataclasses
import hashlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np

import kamera_jax as kj
from kamera_jax.kv import KV, Factors

LAYERS = 4
ROT = 32
FREE = 16
SPEC = kj.KVSpec(
    LAYERS,
    ROT,
    FREE,
    2,
    kj.RopeSpec((1.0, 0.3, 0.1, 0.03), head_dim=16, sections=(1, 1, 2)),
    "bfloat16",
    hashlib.sha256(b"made").hexdigest(),
    (("configuration", "c"), ("preprocessing", "p"), ("weights", "w")),
)


def key_of(number):
    return hashlib.sha256(f"chunk {number}".encode()).hexdigest()


def chunk(number, tokens=None, layers=LAYERS):
    rng = np.random.default_rng((1, number))
    length = int(rng.integers(1, 33)) if tokens is None else tokens
    rows = 16 if length <= 16 else -(-length // 32) * 32

    def array(*shape):
        values = rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        values[:, length:] = 0
        return values

    kv = KV(array(layers, rows, ROT), array(layers, rows, FREE))
    positions = jnp.asarray(rng.standard_normal((3, rows)), jnp.float32)
    inputs = {"tokens": rng.integers(0, 99, rows).astype(np.int32), "flags": rng.integers(0, 2, rows).astype(bool)}
    return kj.Chunk(
        kv=kv,
        positions=positions,
        length=length,
        advance=float(length),
        model=SPEC.fingerprint,
        source=kj.Segment(inputs, positions, np.int32(length), float(length)),
        spec=SPEC,
        key=key_of(number),
        content=key_of(("content", number)),
        lineage=key_of("lineage"),
    )


def named(old, **changes):
    """A made chunk or patch with something changed, under the same key."""
    return type(old)(**{field.name: getattr(old, field.name) for field in dataclasses.fields(old)} | changes)


def reading(old, **inputs):
    """A made chunk whose source has other inputs, under the same key."""
    return named(old, source=kj.Segment(inputs, old.positions, np.int32(old.length), old.advance))


def patch(number, antecedents=(0, 1), components=6):
    rng = np.random.default_rng((2, number, *antecedents))
    of = chunk(number)
    ranks = rng.integers(0, components + 1, LAYERS).astype(np.int32)
    used = np.arange(components)[None, :] < ranks[:, None]
    u = rng.standard_normal((LAYERS, components, of.kv.rot.shape[1])).astype(ml_dtypes.bfloat16)
    v = rng.standard_normal((LAYERS, components, ROT + FREE)).astype(ml_dtypes.bfloat16)
    u[..., of.length :] = 0
    for factor in (u, v):
        factor[~used] = 0
    return kj.Patch(
        factors=Factors(u=u, v=v, ranks=ranks),
        chunk=of.key,
        model=of.model,
        antecedents=tuple(map(key_of, antecedents)),
        mass=jnp.asarray(rng.standard_normal((LAYERS, len(antecedents) + 2)), jnp.float32),
        residual=jnp.asarray(rng.standard_normal(LAYERS), jnp.float32),
        length=of.length,
        key=key_of(("patch", number, antecedents, components)),
        lineage=key_of(("lineage", antecedents)),
    )


def bits(item):
    """Everything a chunk or patch holds, comparable."""
    if isinstance(item, kj.Chunk):
        arrays = {"rot": item.kv.rot, "free": item.kv.free, "positions": item.positions}
        if item.source is not None:
            arrays |= item.source.inputs
            arrays |= {"source": item.source.positions, "tokens": np.int32(item.source.length)}
        names = ("length", "advance", "key", "content", "lineage", "model", "preamble", "antecedents", "turn", "spec")
        plain = tuple(getattr(item, name) for name in (*names, "codec", "conditioned"))
    else:
        leaves = {name: getattr(item.factors, name) for name in ("u", "v", "ranks", "scale")}
        arrays = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        arrays |= {"mass": item.mass, "residual": item.residual}
        plain = (item.chunk, item.model, item.antecedents, item.length, item.codec, item.key, item.lineage)
    return plain, {name: (str(a.dtype), a.shape, np.asarray(a).tobytes()) for name, a in arrays.items()}
