"""Rows of two precisions: those that tell most in more bits, the others in fewer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.compress.packing import pack, packed_width, unpack, zeros_past
from kamera_jax.compress.quantise import Kivi
from kamera_jax.compress.stage import QUANTISE, SHARE, Basis, Layout, Layouts, Leaves
from kamera_jax.errors import CodecError


def leverage(keys: jax.Array, length: jax.Array | int) -> jax.Array:
    """How much a row's un-rotated key stands alone among its layer's, f32[L, T]: diag X (XᵀX + λ)⁻¹ Xᵀ, X centred.

    λ is the mean of the diagonal of XᵀX, so that a key that many rows have counts for little. Padding has none.
    """
    valid = (jnp.arange(keys.shape[1], dtype=jnp.int32) < length)[None, :, None]
    x = zeros_past(keys.astype(jnp.float32), length)
    mean = x.sum(axis=1, keepdims=True) / jnp.maximum(jnp.asarray(length, jnp.float32), 1)
    x = jnp.where(valid, x - mean, 0)
    products = jnp.einsum("ltf,ltg->lfg", x, x, precision="highest")
    ridge = jnp.trace(products, axis1=1, axis2=2)[:, None, None] / keys.shape[2]
    eye = jnp.eye(keys.shape[2], dtype=jnp.float32)[None]
    solved = jnp.linalg.solve(products + jnp.where(ridge > 0, ridge, 1) * eye, x.swapaxes(1, 2))
    return jnp.einsum("ltf,lft->lt", x, solved, precision="highest")


@dataclass(frozen=True)
class Mixed:
    """KIVI's groups of rows of the most leverage in ``high`` bits, of the others in ``low``, in each layer.

    ZipCache (arXiv 2405.14256) and MiKV (2402.18096) choose rows by the attention they draw; this by `leverage`, which
    takes no question. All rows' codes have their lowest bits in one array, chosen rows' further bits in another.

    Attributes:
        share: of a chunk's tokens that are chosen.
        high: bits of a code of these.
        low: of the others.
    """

    share: float
    high: int
    low: int
    kind: ClassVar[str] = QUANTISE
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, given: Layouts) -> None:
        """Raise CodecError where rows are not tokens."""
        if not all(layout.tokens for layout in given.values()):
            raise CodecError(
                "mixed chooses among rows of tokens, and components of layers are none: put kivi:B behind xkv or "
                "capsule instead"
            )

    def width(self, layout: Layout) -> int:
        """See `Packer`."""
        return packed_width(layout.width, self.low)

    def left(self, given: Layouts) -> dict[str, Layout]:
        """Nothing."""
        return {}

    def counts(self, rows: int) -> np.ndarray:
        """How many rows are chosen of chunks of 0 to so many tokens."""
        return np.floor(self.share * np.arange(rows + 1) + 0.5).astype(np.int32)

    def _sizes(self, rows: int) -> tuple[int, int]:
        """Rows of the arrays of chosen rows and of others: at least one, so that no array is empty."""
        chosen = int(self.counts(rows)[-1])
        return max(chosen, 1), max(rows - chosen, 1)

    def _places(self, chosen: jax.Array, length: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Where the chosen rows stand [L, h], and the others [L, l]; each in the tokens' order."""
        valid = (jnp.arange(chosen.shape[1], dtype=jnp.int32) < length)[None]
        high, low = self._sizes(chosen.shape[1])
        first = jnp.argsort(~chosen, axis=1, stable=True)[:, :high]
        return first, jnp.argsort(chosen | ~valid, axis=1, stable=True)[:, :low]

    def _chosen_count(self, rows: int, length: jax.Array | int) -> jax.Array:
        return jnp.asarray(self.counts(rows))[jnp.asarray(length, jnp.int32)]

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """See `Stage`."""
        keys = [parts[name] for name, layout in given.items() if name == "rot" or layout.latent]
        rows = given["rot"].rows
        scores = leverage(jnp.concatenate([each.astype(jnp.float32) for each in keys], axis=2), length)
        valid = (jnp.arange(rows, dtype=jnp.int32) < length)[None]
        order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), axis=1, stable=True)
        count = self._chosen_count(rows, length)
        chosen = (jnp.argsort(order, axis=1, stable=True) < count) & valid
        places = self._places(chosen, length)
        leaves = {"rows": pack(chosen.astype(jnp.uint8), 1)}
        for name, layout in given.items():
            codes = jnp.zeros((layout.layers, rows, layout.width), jnp.uint8)
            for part, (by, own, size) in self._ways(name, places, count, length).items():
                values = zeros_past(jnp.take_along_axis(parts[name].astype(jnp.float32), own[:, :, None], axis=1), size)
                packed = by.encode(values, size, layout._replace(rows=own.shape[1]))
                given_codes = unpack(packed["codes"], by.bits, layout.width)
                low = given_codes & np.uint8(2**self.low - 1)
                inside = jnp.arange(own.shape[1], dtype=jnp.int32) < size
                at = jnp.where(inside[None], own, rows)  # what is of no row is dropped
                codes = jax.vmap(lambda to, where, what: to.at[where].set(what, mode="drop"))(codes, at, low)
                if by.bits == self.high:
                    leaves[part] = pack(given_codes >> np.uint8(self.low), self.high - self.low)
                leaves[f"{part}_scale"] = packed["scale"]
                leaves[f"{part}_least"] = packed["least"]
            leaves[name] = pack(codes, self.low)
        return {}, leaves

    def _ways(
        self, name: str, places: tuple[jax.Array, jax.Array], count: jax.Array, length: jax.Array | int
    ) -> dict[str, tuple[Kivi, jax.Array, jax.Array]]:
        """By the names of their arrays: what quantises the chosen rows and the others, where they stand, how many."""
        high = (Kivi(self.high), places[0], count)
        return {f"{name}_more": high, name: (Kivi(self.low), places[1], length - count)}

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """See `Stage`."""
        rows = given["rot"].rows
        chosen = unpack(leaves["rows"], 1, rows) > 0
        places = self._places(chosen, length)
        count = self._chosen_count(rows, length)
        decoded = {}
        for name, layout in given.items():
            low = unpack(leaves[name], self.low, layout.width)
            whole = jnp.zeros((layout.layers, rows, layout.width), jnp.float32)
            for part, (by, own, size) in self._ways(name, places, count, length).items():
                codes = jnp.take_along_axis(low, own[:, :, None], axis=1)
                if by.bits == self.high:
                    more = unpack(leaves[part], self.high - self.low, layout.width)
                    codes = codes | (more << np.uint8(self.low))
                packed = {
                    "codes": pack(codes, by.bits),
                    "scale": leaves[f"{part}_scale"],
                    "least": leaves[f"{part}_least"],
                }
                values = by.decode(packed, size, layout._replace(rows=own.shape[1]))
                inside = jnp.arange(own.shape[1], dtype=jnp.int32) < size
                at = jnp.where(inside[None], own, rows)
                whole = jax.vmap(lambda to, where, what: to.at[where].set(what, mode="drop"))(whole, at, values)
            decoded[name] = zeros_past(whole, length)
        return decoded

    def nbytes(self, given: Layouts) -> int:
        """See `Stage`."""
        stored = 0
        for layout in given.values():
            high, low = self._sizes(layout.rows)
            row = layout.rows * packed_width(layout.width, self.low)
            row += high * packed_width(layout.width, self.high - self.low)
            for by, rows in ((Kivi(self.high), high), (Kivi(self.low), low)):
                row += by.row_bytes(rows, layout) - rows * packed_width(layout.width, by.bits)
            stored += layout.layers * row
        rot = given["rot"]
        return stored + rot.layers * packed_width(rot.rows, 1)

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Nothing."""
        return 0


def mixed(*given: str) -> Mixed:
    """``mixed:share:hi:lo``.

    Raises:
        CodecError: it has no share from 0 to 1, and bits of which the first are more.
    """
    share = float(given[0]) if len(given) == 3 and SHARE.fullmatch(given[0]) else -1.0
    bits = [int(text) for text in given[1:] if text in tuple("12345678")]
    if not 0 <= share <= 1 or len(bits) != 2 or bits[0] <= bits[1]:
        raise CodecError(
            "mixed needs the share of rows in more bits, from 0 to 1, then bits from 1 to 8 of these and fewer of the "
            f"others, as in mixed:0.25:4:2; got {':'.join(('mixed', *given))!r:.80}"
        )
    return Mixed(share, *bits)
