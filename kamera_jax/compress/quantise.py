"""Quantisers of KV: int8, KIVI's groups, Hadamard rotations and codebooks of a normal distribution.

Each encodes one part of KV, ``rot`` or ``free``, [L, T, F] of H heads: un-rotated keys, values, k_pe or latents. Rows
past the length come back as zero, and take no part in any scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax import int8
from kamera_jax.compress.packing import last_row_past, pack, packed_width, unpack, zeros_past
from kamera_jax.compress.stage import QUANTISE, Basis, Layout, Layouts, Leaves
from kamera_jax.errors import CodecError

GROUP = 32
"""Values that share a scale in KIVI's quantiser (arXiv 2402.02750)."""

WIDEST = 1024
"""Features of a head that are turned at random, at most."""

HADAMARD = 128
"""Largest order of a Hadamard rotation, as SAW-INT4 has it."""


@runtime_checkable
class Quantiser(Protocol):
    """What quantises one part."""

    @property
    def bits(self) -> int:
        """Of a code."""
        ...

    def encode(self, values: jax.Array, length: jax.Array | int, layout: Layout) -> Leaves:
        """Floating-point values [L, T, F] as packed leaves."""
        ...

    def decode(self, leaves: Mapping[str, jax.Array], length: jax.Array | int, layout: Layout) -> jax.Array:
        """The values f32[L, T, F]."""
        ...

    def row_bytes(self, length: int, layout: Layout) -> int:
        """Bytes of one layer's valid rows as stored, scales included."""
        ...


@dataclass(frozen=True)
class Quantised:
    """The stage that quantises every part by itself; see `kamera_jax.compress.stage.Stage`.

    Attributes:
        quantiser: what it does to each.
    """

    quantiser: Quantiser
    kind: ClassVar[str] = QUANTISE
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.quantiser.bits

    def width(self, layout: Layout) -> int:
        """Bytes of a row's codes."""
        return packed_width(layout.width, self.bits)

    def check(self, given: Layouts) -> None:
        """Raise CodecError for heads that do not fit: a codebook of a normal distribution turns whole heads."""
        for layout in given.values():
            if layout.width < 1 or layout.heads < 1 or layout.width % layout.heads:
                raise CodecError(f"KV of {layout.width} features does not split into {layout.heads} heads")
            dim = layout.width // layout.heads
            if isinstance(self.quantiser, Normal) and dim > WIDEST:
                raise CodecError(f"turbo:{self.bits} turns heads of at most {WIDEST} features; got {dim}")

    def left(self, given: Layouts) -> dict[str, Layout]:
        """Nothing."""
        return {}

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """See `Stage`."""
        leaves: Leaves = {}
        for part, layout in given.items():
            for kind, array in self.quantiser.encode(parts[part], layout.valid(length), layout).items():
                leaves[part if kind == "codes" else f"{part}_{kind}"] = array
        return {}, leaves

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, jax.Array],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """See `Stage`."""
        decoded = {}
        for part, layout in given.items():
            own = {
                "codes" if name == part else name.removeprefix(f"{part}_"): array
                for name, array in leaves.items()
                if name == part or name.startswith(f"{part}_")
            }
            decoded[part] = self.quantiser.decode(own, layout.valid(length), layout)
        return decoded

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Nothing."""
        return 0

    def nbytes(self, given: Layouts) -> int:
        """See `Stage`."""
        return sum(layout.layers * self.quantiser.row_bytes(layout.rows, layout) for layout in given.values())


def steps(values: jax.Array, bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes uint8 of values in groups [·, g, n], and each group's step and least value f16[·, 1, n]."""
    least = values.min(axis=-2, keepdims=True).astype(jnp.float16)
    most = values.max(axis=-2, keepdims=True)
    step = ((most - least.astype(jnp.float32)) / (2**bits - 1)).astype(jnp.float16)
    unit = jnp.where(step > 0, step, jnp.float16(1)).astype(jnp.float32)
    codes = jnp.clip(jnp.round((values - least.astype(jnp.float32)) / unit), 0, 2**bits - 1)
    return jnp.where(step > 0, codes, 0).astype(jnp.uint8), step, least


def _grouped(values: jax.Array, size: int) -> jax.Array:
    """Rows [L, n, ·] in groups [L, ceil(n / size), size, ·]; the last group is filled up with the last row."""
    missing = -values.shape[1] % size
    values = jnp.pad(values, ((0, 0), (0, missing), (0, 0)), mode="edge")
    return values.reshape(values.shape[0], -1, size, values.shape[2])


@dataclass(frozen=True)
class Int8:
    """Symmetric int8: a scale for every channel of keys, for every token of the rest (`kamera_jax.int8`).

    Attributes:
        bits: 8.
    """

    bits: int = 8

    def encode(self, values: jax.Array, length: jax.Array | int, layout: Layout) -> Leaves:
        """See `Quantiser`."""
        codes, scale = int8.quantised(zeros_past(values, length), 1 if layout.keys else 2)
        return {"codes": codes, "scale": scale}

    def decode(self, leaves: Mapping[str, jax.Array], length: jax.Array | int, layout: Layout) -> jax.Array:
        """See `Quantiser`."""
        return int8.restored(leaves["codes"].astype(jnp.float32), leaves["scale"], jnp.float32)

    def row_bytes(self, length: int, layout: Layout) -> int:
        """See `Quantiser`."""
        return length * layout.width + 4 * (layout.width if layout.keys else length)


@dataclass(frozen=True)
class Kivi:
    """Asymmetric groups of 32 (KIVI, arXiv 2402.02750), of un-rotated keys: keys by channel, values by token.

    An MLA's latents are normalised by token already, and quantised by channel.

    Attributes:
        bits: of each code.
        by_channel: whether values are quantised by channel too.
    """

    bits: int
    by_channel: bool = False

    def _along_tokens(self, layout: Layout) -> bool:
        return layout.keys or layout.latent or self.by_channel

    def encode(self, values: jax.Array, length: jax.Array | int, layout: Layout) -> Leaves:
        """See `Quantiser`."""
        values = last_row_past(values.astype(jnp.float32), length)
        along = self._along_tokens(layout)
        turned = values if along else values.swapaxes(1, 2)
        codes, step, least = steps(_grouped(turned, GROUP), self.bits)
        codes = codes.reshape(codes.shape[0], -1, codes.shape[-1])[:, : turned.shape[1]]
        turn = (lambda x: x) if along else (lambda x: x.swapaxes(1, 2))
        codes = zeros_past(turn(codes), length)
        return {"codes": pack(codes, self.bits), "scale": turn(step[:, :, 0]), "least": turn(least[:, :, 0])}

    def decode(self, leaves: Mapping[str, jax.Array], length: jax.Array | int, layout: Layout) -> jax.Array:
        """See `Quantiser`."""
        codes = unpack(leaves["codes"], self.bits, layout.width).astype(jnp.float32)
        axis = 1 if self._along_tokens(layout) else 2
        scale, least = (jnp.repeat(leaves[name].astype(jnp.float32), GROUP, axis=axis) for name in ("scale", "least"))
        scale, least = (jax.lax.slice_in_dim(each, 0, codes.shape[axis], axis=axis) for each in (scale, least))
        return zeros_past(codes * scale + least, length)

    def row_bytes(self, length: int, layout: Layout) -> int:
        """See `Quantiser`."""
        if self._along_tokens(layout):
            groups = -(-length // GROUP) * layout.width
        else:
            groups = length * -(-layout.width // GROUP)
        return length * packed_width(layout.width, self.bits) + 4 * groups


@dataclass(frozen=True)
class Rotated:
    """Hadamard blocks, then asymmetric codes by token and head (SAW-INT4's order; rotation and RoPE do not meet).

    Attributes:
        bits: of each code.
    """

    bits: int

    def encode(self, values: jax.Array, length: jax.Array | int, layout: Layout) -> Leaves:
        """See `Quantiser`."""
        values = _in_blocks(zeros_past(values.astype(jnp.float32), length), layout)
        by_head = values.reshape(*values.shape[:2], layout.heads, -1)
        codes, step, least = steps(by_head.swapaxes(2, 3), self.bits)
        codes = codes.swapaxes(2, 3).reshape(values.shape)
        return {"codes": pack(codes, self.bits), "scale": step[:, :, 0], "least": least[:, :, 0]}

    def decode(self, leaves: Mapping[str, jax.Array], length: jax.Array | int, layout: Layout) -> jax.Array:
        """See `Quantiser`."""
        codes = unpack(leaves["codes"], self.bits, layout.width).astype(jnp.float32)
        by_head = codes.reshape(*codes.shape[:2], layout.heads, -1)
        by_head = by_head * leaves["scale"].astype(jnp.float32)[..., None]
        by_head = by_head + leaves["least"].astype(jnp.float32)[..., None]
        return zeros_past(_in_blocks(by_head.reshape(codes.shape), layout), length)

    def row_bytes(self, length: int, layout: Layout) -> int:
        """See `Quantiser`."""
        return length * (packed_width(layout.width, self.bits) + 4 * layout.heads)


@dataclass(frozen=True)
class Normal:
    """Unit vectors of a token and head, turned at random, by the best codebook of a normal distribution (TurboQuant).

    Attributes:
        bits: of each code.
    """

    bits: int

    def encode(self, values: jax.Array, length: jax.Array | int, layout: Layout) -> Leaves:
        """See `Quantiser`."""
        values = zeros_past(values.astype(jnp.float32), length)
        by_head = values.reshape(*values.shape[:2], layout.heads, -1)
        norm = jnp.linalg.norm(by_head, axis=-1).astype(jnp.float16)
        divisor = jnp.where(norm > 0, norm, jnp.float16(1)).astype(jnp.float32)[..., None]
        dim = by_head.shape[-1]
        turned = jnp.einsum("lthd,de->lthe", by_head / divisor, random_rotation(dim), precision="highest")
        centres = codebook(self.bits)
        borders = jnp.asarray((centres[1:] + centres[:-1]) / 2, jnp.float32)
        codes = jnp.searchsorted(borders, turned * np.float32(dim**0.5)).astype(jnp.uint8)
        return {"codes": pack(codes.reshape(values.shape), self.bits), "norm": norm}

    def decode(self, leaves: Mapping[str, jax.Array], length: jax.Array | int, layout: Layout) -> jax.Array:
        """See `Quantiser`."""
        codes = unpack(leaves["codes"], self.bits, layout.width)
        dim = layout.width // layout.heads
        centres = jnp.asarray(codebook(self.bits) / dim**0.5, jnp.float32)
        turned = centres[codes].reshape(*codes.shape[:2], layout.heads, dim)
        by_head = jnp.einsum("lthe,de->lthd", turned, random_rotation(dim), precision="highest")
        by_head = by_head * leaves["norm"].astype(jnp.float32)[..., None]
        return zeros_past(by_head.reshape(codes.shape), length)

    def row_bytes(self, length: int, layout: Layout) -> int:
        """See `Quantiser`."""
        return length * (packed_width(layout.width, self.bits) + 2 * layout.heads)


def _in_blocks(values: jax.Array, layout: Layout) -> jax.Array:
    """Values [L, T, F] times an orthonormal Hadamard matrix in blocks of a head; it is its own inverse."""
    dim = layout.width // layout.heads
    order = min(HADAMARD, dim & -dim)
    blocks = values.reshape(*values.shape[:2], -1, order)
    return jnp.einsum("ltbd,de->ltbe", blocks, hadamard(order), precision="highest").reshape(values.shape)


@lru_cache(maxsize=16)
def hadamard(order: int) -> np.ndarray:
    """The orthonormal, symmetric Hadamard matrix f32[order, order] of a power of two (Sylvester)."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / order**0.5).astype(np.float32)


@lru_cache(maxsize=16)
def random_rotation(dim: int) -> np.ndarray:
    """An orthogonal matrix f32[dim, dim], random and always the same."""
    square = np.random.default_rng(dim).standard_normal((dim, dim))
    rotation, triangle = np.linalg.qr(square)
    return (rotation * np.sign(np.diag(triangle))).astype(np.float32)


@lru_cache(maxsize=16)
def codebook(bits: int) -> np.ndarray:
    """The 2^bits centres f64 that N(0, 1) is quantised to with the least squared error (Lloyd 1982, Max 1960)."""
    grid = np.linspace(-8, 8, 2**16 + 1)
    middle = (grid[1:] + grid[:-1]) / 2
    density = np.exp(-(middle**2) / 2)
    mass = np.concatenate([[0], np.cumsum(density)])
    moment = np.concatenate([[0], np.cumsum(density * middle)])
    # Of many centres the best lie as dense as the cube root of the density: a good start.
    spread = np.cumsum(density ** (1 / 3))
    centres = np.interp((np.arange(2**bits) + 0.5) / 2**bits, spread / spread[-1], middle)
    for _ in range(2000):
        borders = np.concatenate([[-8], (centres[1:] + centres[:-1]) / 2, [8]])
        mass_at = np.interp(borders, grid, mass)
        moment_at = np.interp(borders, grid, moment)
        moved = np.diff(moment_at) / np.diff(mass_at)
        if np.abs(moved - centres).max() < 1e-9:
            break
        centres = moved
    return centres
