"""Codes of a few bits, packed into bytes without gaps."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8


def packed_width(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of so many bits take."""
    return -(-count * bits // 8)


def pack(codes: UInt8[Array, "*rows n"], bits: int) -> UInt8[Array, "*rows m"]:
    """Codes below ``2**bits`` along the last axis in as few bytes as hold them, the first code in the lowest bits.

    Args:
        codes: whole numbers.
        bits: of each code, 1 to 8.
    """
    count = codes.shape[-1]
    width = packed_width(count, bits)
    planes = _bits_of(codes, bits)
    stream = planes.reshape(*codes.shape[:-1], count * bits)
    stream = jnp.pad(stream, [(0, 0)] * (codes.ndim - 1) + [(0, width * 8 - count * bits)])
    return _of_bits(stream.reshape(*codes.shape[:-1], width, 8))


def unpack(packed: UInt8[Array, "*rows m"], bits: int, count: int) -> UInt8[Array, "*rows n"]:
    """The ``count`` codes that `pack` was given."""
    stream = _bits_of(packed, 8).reshape(*packed.shape[:-1], -1)[..., : count * bits]
    return _of_bits(stream.reshape(*packed.shape[:-1], count, bits))


def _bits_of(codes: jax.Array, bits: int) -> jax.Array:
    """The lowest bits of codes [·] along a last axis of their own."""
    places = jnp.arange(bits, dtype=jnp.uint8).reshape((1,) * codes.ndim + (bits,))
    return (codes[..., None] >> places) & 1


def _of_bits(planes: jax.Array) -> jax.Array:
    """What `_bits_of` took apart."""
    powers = jnp.asarray(1 << np.arange(planes.shape[-1]), jnp.uint8).reshape((1,) * (planes.ndim - 1) + (-1,))
    return jnp.sum(planes * powers, axis=-1, dtype=jnp.uint8)


def zeros_past(rows: jax.Array, length: jax.Array | int) -> jax.Array:
    """Rows [L, T, ·] with zeros in place of those past ``length``."""
    valid = jnp.arange(rows.shape[1], dtype=jnp.int32) < length
    return jnp.where(valid[None, :, None], rows, jnp.zeros((), rows.dtype))


def last_row_past(rows: jax.Array, length: jax.Array | int) -> jax.Array:
    """Rows [L, T, ·] with the last valid row in place of those past ``length``: no smallest value moves by padding."""
    kept = jnp.minimum(jnp.arange(rows.shape[1], dtype=jnp.int32), jnp.maximum(length - 1, 0))
    return rows[:, kept]
