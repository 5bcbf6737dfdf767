"""Digests of arrays, of which each says its algorithm: BLAKE3, and sha256 in what earlier versions wrote.

As stored: the algorithm, a colon, and of every part 64 hexadecimal digits, one after the other; without an algorithm
they are of sha256. Both have 256 bits, and neither is a signature: who can write a manifest can write its digests.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from blake3 import blake3

from kamera_jax.errors import LibraryCorruptError
from kamera_jax.library.files import sha256

WRITTEN = "blake3"
"""The algorithm of what is put."""

_DIGITS = 64


def _blake3(payload: Any) -> str:
    return blake3(payload).hexdigest()


_ALGORITHMS: dict[str, Callable[[Any], str]] = {WRITTEN: _blake3, "sha256": sha256}


def digest(array: np.ndarray, count: int) -> str:
    """The digest of each of ``count`` equal parts of an array's bytes in C order."""
    payload = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    parts = payload.reshape(count, payload.size // count) if count else ()
    return f"{WRITTEN}:{''.join(map(_blake3, parts))}"


def check_digest(stored: Any, count: int) -> None:
    """Raise unless something may be the digest of ``count`` parts.

    Raises:
        LibraryCorruptError: it is of an algorithm that this version does not know.
        ValueError: it is no digest of so many parts.
    """
    if not isinstance(stored, str):
        raise ValueError(f"{stored!r:.80} is no digest")
    algorithm, digits = _split(stored)
    if algorithm not in _ALGORITHMS:
        raise LibraryCorruptError(
            f"an array has a digest by {algorithm!r:.40}; this version knows {', '.join(_ALGORITHMS)}: read it with "
            "the version that wrote it, or put it anew"
        )
    if len(digits) != _DIGITS * count:
        raise ValueError(f"a digest by {algorithm} has {len(digits)} digits; expected {_DIGITS} for each of {count}")


def agrees(payload: np.ndarray, stored: str, first: int, count: int) -> bool:
    """Whether bytes are the ``count`` parts, from part ``first`` on, that a digest is of."""
    algorithm, digits = _split(stored)
    hexadecimal = _ALGORITHMS[algorithm]
    wanted = [digits[_DIGITS * part :][:_DIGITS] for part in range(first, first + count)]
    return all(hexadecimal(part) == one for part, one in zip(payload.reshape(count, -1), wanted, strict=True))


def _split(stored: str) -> tuple[str, str]:
    algorithm, colon, digits = stored.partition(":")
    return (algorithm, digits) if colon else ("sha256", stored)
