"""How large a patch may be, as a caller says it: a rank, a share of the change, or bytes."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from kamera_jax import patch as patches
from kamera_jax.arguments import check_type, real_number, whole_number
from kamera_jax.kv import KV, Factors, bucket_of_ranks
from kamera_jax.patch.fitting import Fitted


@dataclass(frozen=True)
class Size:
    """At most one of three bounds; none of them is the default. See `kamera_jax.form_patch`.

    Attributes:
        rank: components in every layer.
        energy: share of every layer's squared change to keep.
        max_bytes: of the whole patch.
        int8: whether the factors are stored as int8; None where bytes are what is asked for.
    """

    rank: int | None = None
    energy: float | None = None
    max_bytes: int | None = None
    int8: bool | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "max_bytes"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(value, name))
        if self.energy is not None:
            object.__setattr__(self, "energy", real_number(self.energy, "energy"))
        check_type(self.int8, (bool, type(None)), "int8", "whether the factors are stored as int8")
        if sum(choice is not None for choice in (self.rank, self.energy, self.max_bytes)) > 1:
            raise ValueError(
                f"give one of rank, energy and max_bytes; got rank={self.rank}, energy={self.energy}, "
                f"max_bytes={self.max_bytes}"
            )

    @property
    def asked(self) -> dict[str, Any]:
        """The size as keyword arguments of `kamera_jax.form_patch`."""
        return asdict(self)

    @staticmethod
    def like(factors: Factors, length: int) -> "Size":
        """What a patch of the same kind as ``factors`` is asked for with."""
        if factors.scale is None:
            return Size(rank=max(int(jax.device_get(factors.ranks).max()), 1))
        used = patches.nbytes(factors, length)
        return Size(max_bytes=used) if used else Size()

    def width(self, canonical: KV) -> int:
        """Components that a patch of ``rank`` of this KV has arrays for.

        Raises:
            ValueError: no rank is asked for, or one below 1.
        """
        if self.rank is None or self.rank < 1:
            raise ValueError(f"a patch needs a rank of at least 1; got {self.rank}")
        return min(bucket_of_ranks(self.rank), bucket_of_ranks(max(canonical.rot.shape[1:])))

    def fit(self, conditioned: KV, canonical: KV, length: int | jax.Array) -> Fitted:
        """The patch of this size.

        Raises:
            ValueError: see `kamera_jax.patch.fit` and `fit_energy`; or ``max_bytes`` is below one component, or
                anything but a rank is asked for inside a JAX transformation.
        """
        if self.rank is not None:
            rank = jax.device_put(np.int32(min(self.rank, np.iinfo(np.int32).max)))
            width = self.width(canonical)
            return _fit_rank(conditioned, canonical, length, rank, width=width, int8=bool(self.int8))
        if not isinstance(length, int):
            raise ValueError(
                "inside a JAX transformation it is not known how many bytes a chunk's patch may take; give a rank"
            )
        if self.energy is not None:
            return patches.fit_energy(conditioned, canonical, length, self.energy, int8=bool(self.int8))
        count, width = self.budget(canonical, length)
        numbers = jax.device_put((np.int32(length), np.int32(count)))
        return _fit_bytes(conditioned, canonical, *numbers, widest=width, int8=self.int8 is not False)

    @property
    def stores_int8(self) -> bool:
        """Whether the factors are stored as int8."""
        return bool(self.int8) if self.rank is not None or self.energy is not None else self.int8 is not False

    def fits_bytes(self, length: Any) -> bool:
        """Whether a patch of it has as many components as bytes pay for, and this length says how many they are."""
        return self.rank is None and self.energy is None and isinstance(length, int)

    def budget(self, canonical: KV, length: int) -> tuple[int, int]:
        """Components that the bytes pay for in all layers, and how many of them a layer may have.

        Every length has a count of its own, which is data of a program; the width, which decides its shapes, is that of
        a chunk whose rows are all tokens, so that chunks of as many rows share a program.

        Raises:
            ValueError: ``max_bytes`` is below one component.
        """
        layers, tokens = canonical.rot.shape[:2]
        features = canonical.rot.shape[-1] + canonical.free.shape[-1]
        itemsize = canonical.rot.dtype.itemsize
        stored = itemsize if self.int8 is False else 1
        one = patches.component_bytes(length, features, stored)
        most = self.max_bytes
        if most is None:
            most = max(int(patches.SHARE * layers * length * features * itemsize), one)
        elif most < one:
            raise ValueError(f"max_bytes={most} is below one component of this chunk, {one} bytes")
        largest = most * tokens // max(length, 1) // patches.component_bytes(tokens, features, stored)
        width = patches.width_for(max(largest, most // one), layers, tokens, features)
        return min(most // one, layers * width), width


def default_width(layers: int, rows: int, features: int, itemsize: int) -> int:
    """Components a layer that a patch of the default size has arrays for, of a chunk of so many rows."""
    one = patches.component_bytes(rows, features, 1)
    most = max(int(patches.SHARE * layers * rows * features * itemsize), one)
    return patches.width_for(most // one, layers, rows, features)


_fit_rank = partial(jax.jit, static_argnames=("width", "int8"))(patches.fit_width)
_fit_bytes = partial(jax.jit, static_argnames=("widest", "int8"))(patches.fit_bytes)
