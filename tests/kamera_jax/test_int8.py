"""One quantiser, for patches on the device and for stored KV on the host: the bytes both have always had."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import kamera_jax as kj
from kamera_jax import int8
from kamera_jax.library import int8 as stored

KINDS = ("normal", "outlier", "zeros", "ties", "tiny")


def values(kind, dtype=np.float32):
    x = np.random.default_rng(3).standard_normal((2, 16, 24)).astype(np.float32)
    if kind == "outlier":
        x[0, 3] *= 1e4
    elif kind == "zeros":
        x[1] = 0
        x[0, :, 5] = 0
    elif kind == "ties":
        x = np.round(x * 4) / 2
        x[..., 0] = 63.5
    elif kind == "tiny":
        x = x * np.float32(1e-42)
    return x.astype(dtype)


def restated(x, axis):
    """In float64, a value at a time."""
    wide = np.float64(x.astype(np.float32))
    scale = np.float32(np.abs(wide).max(axis, keepdims=True).astype(np.float32) / np.float32(127))
    with np.errstate(all="ignore"):
        codes = np.where(scale > 0, np.float32(wide) / scale, 0)
    return np.clip(np.rint(codes), -127, 127).astype(np.int8), scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_it_is_what_it_says(kind, axis, dtype):
    x = values(kind, dtype)
    wanted = restated(x, axis)
    for ours, theirs in zip(int8.quantised(x, axis, np), wanted, strict=True):
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
    if kind == "tiny":  # devices take these for zero
        return
    for quantised in (int8.quantised, jax.jit(int8.quantised, static_argnums=1)):
        codes, scale = quantised(jnp.asarray(x), axis)
        assert codes.dtype == jnp.int8 and scale.dtype == jnp.float32 and scale.shape == wanted[1].shape
        np.testing.assert_allclose(scale, wanted[1], rtol=2e-7)
        assert np.abs(np.int32(codes) - np.int32(wanted[0])).max() <= (kind in ("normal", "outlier"))
        back = int8.restored(np.asarray(codes), np.asarray(scale), np.float32)
        assert (np.abs(back - np.float32(x)) <= 0.501 * np.asarray(scale)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_stored_bytes_are_those_of_before(kind):
    """As the library wrote them before it shared the quantiser."""
    rot = values(kind)
    free = values(kind)[..., :6]
    leaves = stored.quantised(rot, free, 13)
    for name, kv, axis in (("kv.rot", rot, 1), ("kv.free", free, 2)):
        x = kv.astype(np.float32)
        x[:, 13:] = 0
        scale = np.abs(x).max(axis=axis, keepdims=True) / np.float32(127)
        rounded = np.rint(np.divide(x, scale, out=np.zeros_like(x), where=scale > 0))
        assert leaves[name].tobytes() == np.clip(rounded, -127, 127).astype(np.int8).tobytes()
        assert leaves[f"{name}_scale"].tobytes() == scale.tobytes()
        np.testing.assert_array_equal(stored.restored(leaves, np.dtype("float32"))[name], leaves[name] * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_those_of_before(kind):
    """As patches were quantised before: to the bit, compiled and not."""
    u = jnp.asarray(values(kind))
    v = jnp.asarray(values(kind)[..., ::-1])
    factors = kj.Factors(u, v, jnp.full(2, 16, jnp.int32))

    def before(u, v):
        sizes = [jnp.abs(x.astype(jnp.float32)).max(-1) / 127 for x in (u, v)]
        codes = [
            jnp.round(x / jnp.where(size > 0, size, 1.0)[..., None]).astype(jnp.int8)
            for x, size in zip((u, v), sizes, strict=True)
        ]
        return *codes, sizes[0] * sizes[1]

    for wrap in (jax.jit, lambda f: f):
        ours = wrap(kj.patch.quantised)(factors)
        theirs = wrap(before)(u, v)
        for a, b in zip((ours.u, ours.v, ours.scale), theirs, strict=True):
            assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_padding_is_not_read(bad):
    kv = [values("normal"), values("normal")]
    clean = stored.quantised(*kv, 13)
    for part in kv:
        part[1, 14] = bad
    for name, leaf in stored.quantised(*kv, 13).items():
        np.testing.assert_array_equal(leaf, clean[name])
