"""What goes to the device: all that an operation sends in one transfer, and nothing small twice in a row."""

import threading
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.handle import traced

SMALL = 2**14
"""Bytes of an array at most that is kept on the device for a while, in case it is sent again."""

MOST = 256
"""So many such arrays are kept, the ones used last."""


class _Sent(threading.local):
    """Of a thread: small arrays that were sent, by their content, and those that go with the next transfer."""

    def __init__(self) -> None:
        self.arrays: OrderedDict[tuple[Any, ...], jax.Array] = OrderedDict()
        self.expected: dict[tuple[Any, ...], np.ndarray] = {}


_SENT = _Sent()


def to_device(tree: Any) -> Any:
    """The tree with its arrays of the host on the device, all in one transfer; others are left as they are.

    Small arrays that were sent a moment ago are not sent again, and nothing is where all of them were: the array is
    shared, so what comes out of here must not be donated.
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = [_key(leaf) for leaf in leaves]
    there = [_known(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
    missing = [number for number, array in enumerate(there) if array is None]
    if missing:
        along = {key: array for key, array in _SENT.expected.items() if _known(array, key) is None}
        _SENT.expected.clear()
        arrived, beside = jax.device_put(([leaves[number] for number in missing], list(along.values())))
        _keep(along, beside)
        _keep([keys[number] for number in missing], arrived)
        for number, array in zip(missing, arrived, strict=True):
            there[number] = array
    return jax.tree.unflatten(structure, there)


def expect(tree: Any) -> None:
    """Let the small arrays of a tree go with the next transfer, so that they are there when `to_device` takes them."""
    for leaf in jax.tree.leaves(tree):
        key = _key(leaf)
        if key is not None and _known(leaf, key) is None:
            _SENT.expected[key] = leaf


def _key(leaf: Any) -> tuple[Any, ...] | None:
    """What names a small array of the host by its content, and where it goes; None for anything else."""
    if not isinstance(leaf, np.ndarray | np.generic) or leaf.nbytes > SMALL:
        return None
    return leaf.dtype.str, leaf.shape, leaf.tobytes(), default_device()


def default_device() -> Any:
    """Where arrays of the host go; None where JAX chooses."""
    return getattr(jax.config, "jax_default_device", None)


def _known(leaf: Any, key: tuple[Any, ...] | None) -> Any:
    """The leaf on the device, where it need not be sent; else None."""
    if isinstance(leaf, jax.Array):
        return leaf
    if key is None:
        return None
    kept = _SENT.arrays.get(key)
    if kept is None or kept.is_deleted():
        return None
    _SENT.arrays.move_to_end(key)
    return kept


def _keep(keys: Any, arrays: list[jax.Array]) -> None:
    for key, array in zip(keys, arrays, strict=True):
        if key is not None and not traced(array):  # inside a transformation it is no array yet
            _SENT.arrays[key] = array
            _SENT.arrays.move_to_end(key)
    while len(_SENT.arrays) > MOST:
        _SENT.arrays.popitem(last=False)


def numbers(base: Any, *counts: Any) -> np.ndarray:
    """A position and whole numbers as one array i32[n] of the host; see `unpacked`."""
    return np.asarray([np.float32(base).view(np.int32), *counts], np.int32)


def packed(base: Any, *counts: Any) -> jax.Array:
    """A position and whole numbers as one array i32[n] on the device."""
    if not traced(base, *counts):
        return to_device(numbers(base, *counts))
    bits = jax.lax.bitcast_convert_type(jnp.asarray(base, jnp.float32), jnp.int32)
    return jnp.stack([bits, *(jnp.asarray(count, jnp.int32) for count in counts)])


def expect_packed(base: Any, *counts: Any) -> None:
    """As `expect`, for what `packed` is going to take."""
    if not traced(base, *counts):
        expect(numbers(base, *counts))


def unpacked(numbers: jax.Array) -> list[jax.Array]:
    """What `packed` packed: the position, f32, and the whole numbers, i32."""
    return [position_of(numbers), *numbers[1:]]


def position_of(numbers: jax.Array) -> jax.Array:
    """The position that packed numbers begin with."""
    return jax.lax.bitcast_convert_type(numbers[0], jnp.float32)


def as_f32(position: Any) -> jax.Array | np.float32:
    """A position as an f32 scalar, of numpy where it is known."""
    return jnp.asarray(position, jnp.float32) if traced(position) else np.float32(position)
