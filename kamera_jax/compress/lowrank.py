"""Low rank: KV as few components, of a model, measured once, or of a chunk's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kamera_jax.compress.packing import zeros_past
from kamera_jax.compress.stage import LOW_RANK, SHARE, Basis, Layout, Layouts, Leaves
from kamera_jax.errors import CodecError


def coefficients(layout: Layout, layers: int, components: int) -> Layout:
    """The layout of tokens' coefficients of components; each component is quantised by itself."""
    return Layout(layout.rows, components, 1, keys=True, latent=False, layers=layers)


@dataclass(frozen=True)
class ModelComponents:
    """Coefficients of a share of the components that a model's keys, and its values, vary most along.

    The components are those of each layer, measured once for a model (`kamera_jax.compress.basis`), and stored once:
    CSKV and Palu keep keys and values so (arXiv 2409.10593, 2407.21118). x is kept as (x − mean) V[:, :r].

    Attributes:
        share: of the features, as many components; at least one.
    """

    share: float
    kind: ClassVar[str] = LOW_RANK
    needs: ClassVar[frozenset[str]] = frozenset({"basis"})

    def check(self, given: Layouts) -> None:
        """Anything can be projected."""

    def rank(self, layout: Layout) -> int:
        """How many components are kept."""
        return min(max(1, int(self.share * layout.width + 0.5)), layout.width)

    def left(self, given: Layouts) -> dict[str, Layout]:
        """Coefficients of each part's tokens."""
        return {part: coefficients(layout, layout.layers, self.rank(layout)) for part, layout in given.items()}

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """See `Stage`."""
        left = {}
        for part, layout in given.items():
            x = parts[part].astype(jnp.float32) - jnp.asarray(basis[f"{part}_mean"])[:, None, :]
            kept = jnp.asarray(basis[part])[:, :, : self.rank(layout)]
            left[part] = zeros_past(jnp.einsum("ltf,lfr->ltr", x, kept, precision="highest"), length)
        return left, {}

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """See `Stage`."""
        decoded = {}
        for part, layout in given.items():
            kept = jnp.asarray(basis[part])[:, :, : self.rank(layout)]
            x = jnp.einsum("ltr,lfr->ltf", parts[part], kept, precision="highest")
            decoded[part] = zeros_past(x + jnp.asarray(basis[f"{part}_mean"])[:, None, :], length)
        return decoded

    def nbytes(self, given: Layouts) -> int:
        """Nothing of a chunk; the basis is a model's."""
        return 0

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Bytes of the components that are used, and of the means, in float32."""
        return sum(4 * layout.layers * layout.width * (self.rank(layout) + 1) for layout in given.values())


@dataclass(frozen=True)
class OwnComponents:
    """One SVD of several consecutive layers side by side, of a chunk's own un-rotated keys and of its values.

    xKV, arXiv 2503.18893: X [T, l·F] of a group of layers is kept as A [T, r] times B [r, l·F]; r is at most T and
    l·F. With one layer this is the SVD of each layer. The last group is filled up with layers of zeros.

    Attributes:
        layers: l, layers of a group.
        rank: r, components of a group's keys, and as many of its values.
    """

    layers: int
    rank: int
    kind: ClassVar[str] = LOW_RANK
    needs: ClassVar[frozenset[str]] = frozenset()

    def check(self, given: Layouts) -> None:
        """Anything can be taken apart."""

    def left(self, given: Layouts) -> dict[str, Layout]:
        """Coefficients of each part's tokens under its name, and its components as ``<part>.features``."""
        left = {}
        for part, layout in given.items():
            groups = -(-layout.layers // self.layers)
            width = self.layers * layout.width
            rank = min(self.rank, layout.rows, width)
            left[part] = coefficients(layout, groups, rank)
            left[f"{part}.features"] = Layout(rank, width, 1, keys=False, latent=False, layers=groups, tokens=False)
        return left

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """See `Stage`. Both factors of a component have the root of its singular value."""
        left = {}
        for part, layout in given.items():
            x = self._side_by_side(zeros_past(parts[part].astype(jnp.float32), length))
            u, s, vt = jnp.linalg.svd(x, full_matrices=False)
            rank = min(self.rank, layout.rows, x.shape[-1])
            root = jnp.sqrt(s[:, :rank])
            # A component of no size may lie on padding.
            left[part] = zeros_past(u[:, :, :rank] * root[:, None, :], length)
            left[f"{part}.features"] = root[:, :, None] * vt[:, :rank]
        return left, {}

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """See `Stage`."""
        decoded = {}
        for part, layout in given.items():
            x = jnp.einsum("gtr,grf->gtf", parts[part], parts[f"{part}.features"], precision="highest")
            by_layer = x.reshape(*x.shape[:2], self.layers, layout.width).swapaxes(1, 2)
            by_layer = by_layer.reshape(-1, x.shape[1], layout.width)[: layout.layers]
            decoded[part] = zeros_past(by_layer, length)
        return decoded

    def nbytes(self, given: Layouts) -> int:
        """Nothing beside what it leaves."""
        return 0

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Nothing."""
        return 0

    def _side_by_side(self, values: jax.Array) -> jax.Array:
        """Layers [L, T, F] in groups [⌈L/l⌉, T, l·F]."""
        layers, rows, width = values.shape
        values = jnp.pad(values, ((0, -layers % self.layers), (0, 0), (0, 0)))
        groups = values.reshape(-1, self.layers, rows, width).swapaxes(1, 2)
        return groups.reshape(-1, rows, self.layers * width)


def model_components(*given: str) -> ModelComponents:
    """``pca:ρ``.

    Raises:
        CodecError: it has no share above 0 and at most 1.
    """
    share = 0.0
    if len(given) == 1 and SHARE.fullmatch(given[0]):
        share = float(given[0])
    if not 0 < share <= 1:
        raise CodecError(
            f"pca needs the share of features to keep, above 0 and at most 1, as in pca:0.5; bits stand behind it, as "
            f"in pca:0.5+kivi:4; got {':'.join(('pca', *given))!r:.80}"
        )
    return ModelComponents(share)


def own_components(*given: str) -> OwnComponents:
    """``xkv:l:r``.

    Raises:
        CodecError: it has no two whole numbers of at least 1.
    """
    if len(given) != 2 or not all(text.isascii() and text.isdigit() and 0 < int(text) < 2**31 for text in given):
        raise CodecError(
            f"xkv needs how many layers stand side by side and how many components are kept of them, as in xkv:4:32; "
            f"got {':'.join(('xkv', *given))!r:.80}"
        )
    return OwnComponents(*map(int, given))
