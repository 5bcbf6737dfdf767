"""Codecs by name, as ``"kivi:4"``: what KV goes through on its way to fewer bytes, and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.compress.quantise import Int8, Kivi, Layout, Leaves, Normal, Quantiser, Rotated
from kamera_jax.errors import CodecError
from kamera_jax.kv import KV, KVSpec

INT8 = "int8"

PARTS = ("rot", "free")

WIDEST = 1024
"""Features of a head that are turned at random, at most."""


@dataclass(frozen=True)
class Codec:
    """A way to store KV.

    Attributes:
        name: as it is written.
        quantiser: what KV is quantised by.
    """

    name: str
    quantiser: Quantiser

    def check_shape(self, shape: "Shape") -> None:
        """Raise CodecError for KV of a shape that cannot be packed.

        A codebook of a normal distribution turns whole heads, each by a matrix of its own.
        """
        for layout in shape.layouts(1):
            if layout.width < 1 or layout.heads < 1 or layout.width % layout.heads:
                raise CodecError(f"KV of {layout.width} features does not split into {layout.heads} heads")
            dim = layout.width // layout.heads
            if isinstance(self.quantiser, Normal) and dim > WIDEST:
                raise CodecError(f"{self.name} turns heads of at most {WIDEST} features; got {dim}")

    def encode(self, kv: KV, length: jax.Array | int, heads: int) -> Leaves:
        """The packed arrays of KV [L, T, ·], each with L leading: ``kv.rot``, ``kv.free``, their scales and so on.

        Args:
            kv: un-rotated, of any floating-point dtype.
            length: valid rows.
            heads: G, KV heads; 1 for an MLA.
        """
        return _encode(kv, length, quantiser=self.quantiser, heads=heads)

    def decode(self, leaves: Mapping[str, Any], length: jax.Array | int, shape: "Shape", dtype: Any) -> KV:
        """The KV [L, T, ·] that is served in place of what `encode` was given; rows past ``length`` are zero."""
        given = {name: jnp.asarray(leaves[name]) for name in self.names}
        return _decode(given, length, quantiser=self.quantiser, shape=shape, dtype=jnp.dtype(dtype).name)

    def nbytes(self, length: int, layers: int, shape: "Shape") -> int:
        """Bytes of KV over valid rows, as stored."""
        return layers * sum(self.quantiser.row_bytes(length, each) for each in shape.layouts(length))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.quantiser.bits

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays."""
        return tuple(self.arrays(1, 1, Shape(8, 8, 1), "float32"))

    def arrays(self, layers: int, rows: int, shape: "Shape", dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the packed arrays of KV of L layers and T rows."""
        return _arrays(self, layers, rows, shape, dtype)


@dataclass(frozen=True)
class Shape:
    """How wide KV is.

    Attributes:
        rot: Fr.
        free: Ff.
        heads: G; 1 for an MLA, whose latents are wider than what is rotated.
    """

    rot: int
    free: int
    heads: int

    @staticmethod
    def of(kv: KV, spec: KVSpec | None) -> "Shape":
        """Of KV whose heads a spec knows; where there is none they count as one."""
        return Shape(kv.rot.shape[-1], kv.free.shape[-1], 1 if spec is None else spec.heads)

    def layouts(self, rows: int) -> tuple[Layout, Layout]:
        """Of ``rot`` and of ``free``."""
        latent = self.heads == 1 and self.rot != self.free
        return (
            Layout(rows, self.rot, self.heads, keys=True, latent=False),
            Layout(rows, self.free, self.heads, keys=False, latent=latent),
        )


@lru_cache(maxsize=256)
def _arrays(codec: Codec, layers: int, rows: int, shape: Shape, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    codec.check_shape(shape)
    parts: Any = [jax.ShapeDtypeStruct((layers, rows, each.width), dtype) for each in shape.layouts(rows)]
    kv = KV(*parts)
    return jax.eval_shape(partial(_encode, quantiser=codec.quantiser, heads=shape.heads), kv, rows)


@partial(jax.jit, static_argnames=("quantiser", "heads"))
def _encode(kv: KV, length: jax.Array | int, *, quantiser: Quantiser, heads: int) -> Leaves:
    shape = Shape(kv.rot.shape[-1], kv.free.shape[-1], heads)
    leaves: Leaves = {}
    for name, layout in zip(PARTS, shape.layouts(kv.rot.shape[1]), strict=True):
        for kind, array in quantiser.encode(getattr(kv, name), length, layout).items():
            leaves[f"kv.{name}" if kind == "codes" else f"kv.{name}_{kind}"] = array
    return leaves


@partial(jax.jit, static_argnames=("quantiser", "shape", "dtype"))
def _decode(
    leaves: Mapping[str, jax.Array], length: jax.Array | int, *, quantiser: Quantiser, shape: Shape, dtype: str
) -> KV:
    parts = []
    for name, layout in zip(PARTS, shape.layouts(leaves["kv.rot"].shape[1]), strict=True):
        first = f"kv.{name}"
        own = {
            "codes" if full == first else full.removeprefix(f"{first}_"): array
            for full, array in leaves.items()
            if full == first or full.startswith(f"{first}_")
        }
        parts.append(quantiser.decode(own, length, layout).astype(dtype))
    return KV(*parts)


def check_storable(values: np.ndarray, length: int, name: str, codec: str) -> None:
    """Raise CodecError unless valid rows of values [L, T, ·] are finite, and of a size that float16 scales can have."""
    values = values[:, :length].astype(np.float32)
    if not np.isfinite(values).all():
        raise CodecError(f"{name} has values that are not finite, which {codec} cannot store; encode the chunk anew")
    largest = float(np.abs(values).max(initial=0.0))
    if codec != INT8 and largest * 2 > float(np.finfo(np.float16).max):
        raise CodecError(
            f"{name} has values up to {largest:.3g}, whose scales {codec} would have to store as float16; store it "
            "exactly, or as int8"
        )


def _kivi(bits: int, *options: str) -> Quantiser:
    return Kivi(bits, by_channel=bool(options))


_MAKERS: dict[str, tuple[Callable[..., Quantiser], tuple[str, ...]]] = {
    "kivi": (_kivi, ("channel",)),
    "saw": (Rotated, ()),
    "turbo": (Normal, ()),
}

CODECS = (INT8, *_MAKERS)
"""Names of quantisers."""

WRITTEN = "int8, kivi:B, kivi:B:channel, saw:B, turbo:B with B bits from 1 to 8, as in kivi:4"
"""What codecs there are, for messages."""


def codec(name: str) -> Codec:
    """A codec by its name.

    Raises:
        CodecError: there is no such stage, its number is missing or out of bounds, or an option is not known.
    """
    if not isinstance(name, str):
        raise CodecError(f"the codec is {name!r:.80}; expected a text: {WRITTEN}")
    if name == INT8:
        return Codec(name, Int8())
    kind, *options = name.split(":")
    if kind not in _MAKERS:
        near = get_close_matches(kind, CODECS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise CodecError(f"no codec {name!r:.80}{hint} There are {WRITTEN}")
    make, known = _MAKERS[kind]
    bits, *rest = options or [""]
    if not (bits.isascii() and bits.isdigit() and len(bits) == 1 and 1 <= int(bits) <= 8):
        raise CodecError(f"{kind} needs bits from 1 to 8, as in {kind}:4; got {name!r:.80}")
    if len(rest) > 1 or any(option not in known for option in rest):
        raise CodecError(f"{name!r:.80} has options that {kind} does not know; there are {WRITTEN}")
    return Codec(name, make(int(bits), *rest))
