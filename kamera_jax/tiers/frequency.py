"""How often keys were used lately, in a fixed number of bytes."""

import zlib

import numpy as np

ROWS = 4
"""Counters that a key has."""

MOST = 255
"""A counter goes no further."""

SAMPLE = 8
"""Uses for each counter of a row after which all are halved."""


class Frequency:
    """A count-min sketch whose counters are halved now and then, so that it forgets (TinyLFU, arXiv 1512.00727).

    An estimate is never below the number of uses since the last halving, and above it where keys share counters.
    """

    def __init__(self, keys: int) -> None:
        """Room for the counts of about so many keys that are used at one time."""
        self._width = 1 << max(keys - 1, 15).bit_length()
        self._counts = np.zeros((ROWS, self._width), np.uint8)
        self._uses = 0

    def add(self, key: str) -> None:
        """Count a use."""
        places = self._places(key)
        least = min(int(self._counts[place]) for place in places)
        if least < MOST:
            for place in places:  # those that are above already were raised by other keys
                if self._counts[place] == least:
                    self._counts[place] += 1
        self._uses += 1
        if self._uses >= SAMPLE * self._width:
            self._counts >>= 1
            self._uses //= 2

    def of(self, key: str) -> int:
        """Uses of a key lately, about."""
        return min(int(self._counts[place]) for place in self._places(key))

    def _places(self, key: str) -> list[tuple[int, int]]:
        data = key.encode()
        first = zlib.crc32(data)
        step = zlib.adler32(data) * 2 + 1
        return [(row, (first + row * step) % self._width) for row in range(ROWS)]
