"""What a codec is made of: stages that stand in a fixed order, each of which is given what the one before it left."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax

SELECT = "select"
MERGE = "merge"
LOW_RANK = "low rank"
QUANTISE = "quantise"

ORDER = (SELECT, MERGE, LOW_RANK, QUANTISE)
"""Kinds of stages, in the order in which they stand in a codec; of each kind there is at most one."""

PARTS = ("rot", "free")
"""What KV consists of: the parts that the first stage is given."""

SHARE = re.compile(r"[01](\.[0-9]{1,6})?", re.ASCII)
"""A share as it is written."""

Leaves = dict[str, jax.Array]
"""Arrays with layers (or groups of them) leading, by name."""


class Layout(NamedTuple):
    """What one part is, an array [L, T, F]: of KV itself, or what a low-rank stage left of it.

    Attributes:
        rows: T.
        width: F.
        heads: H that F splits into.
        keys: whether these are quantised by channel: what RoPE rotates, and coefficients of components.
        latent: whether these are an MLA's latents.
        layers: L, or how many groups of layers.
        tokens: whether its rows are tokens, of which those past a chunk's length are padding; else all rows count.
    """

    rows: int
    width: int
    heads: int
    keys: bool
    latent: bool
    layers: int = 1
    tokens: bool = True

    def valid(self, length: jax.Array | int) -> jax.Array | int:
        """How many rows count in a chunk of so many tokens."""
        return length if self.tokens else self.rows


Layouts = Mapping[str, Layout]
"""Of parts, by name."""

Basis = Mapping[str, Any]
"""What was calibrated once for a model, by name; empty for stages that need nothing."""


@runtime_checkable
class Stage(Protocol):
    """A stage that packs: low rank or quantise. A frozen dataclass that is hashed, and pure: jit and vmap go over it.

    Attributes:
        kind: `LOW_RANK` or `QUANTISE`.
        needs: what it is to be given beside KV that is calibrated for a model: ``"basis"``, components of its features,
            or ``"capsule"``, what `kamera_jax.compress.capsule.CapsuleBasis` has.
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def check(self, given: Layouts) -> None:
        """Raise CodecError for parts of layouts that it cannot pack."""
        ...

    def left(self, given: Layouts) -> dict[str, Layout]:
        """The layouts of the parts that it leaves to the next stage, of parts of these."""
        ...

    def encode(
        self, parts: Mapping[str, jax.Array], length: jax.Array | int, given: Layouts, basis: Basis
    ) -> tuple[dict[str, jax.Array], Leaves]:
        """The parts that it leaves, and the arrays that it stores itself.

        Args:
            parts: floating-point arrays [L, T, F] by name.
            length: valid tokens; rows past it may hold anything, and are not looked at.
            given: the parts' layouts.
            basis: of the model, if it `needs` one.
        """
        ...

    def decode(
        self,
        parts: Mapping[str, jax.Array],
        leaves: Mapping[str, Any],
        length: jax.Array | int,
        given: Layouts,
        basis: Basis,
    ) -> dict[str, jax.Array]:
        """The parts f32[L, T, F] that it was given, as they come back; rows of no token are zero.

        Args:
            parts: what the next stage gave back of what this one left.
            leaves: what it stored.
            length, given, basis: as `encode` had them.
        """
        ...

    def nbytes(self, given: Layouts) -> int:
        """Bytes of the arrays that it stores itself; the layouts' rows are valid ones."""
        ...

    def model_bytes(self, given: Layouts, basis: Basis) -> int:
        """Bytes of what it takes of the model's basis, kept once for all chunks."""
        ...


@runtime_checkable
class Packer(Stage, Protocol):
    """The last stage, which quantises."""

    def width(self, layout: Layout) -> int:
        """The last axis of the codes that have a part's name."""
        ...


@runtime_checkable
class Marking(Stage, Protocol):
    """A low-rank stage that leaves parts under other names, and stores itself what has the names of those of KV."""

    def widths(self, given: Layouts) -> dict[str, int]:
        """The last axis of these arrays."""
        ...


@runtime_checkable
class RowStage(Protocol):
    """A stage that says which rows a chunk has: select or merge. It goes over a whole chunk, before what packs it.

    Attributes:
        kind: `SELECT` or `MERGE`.
        name: as it is written, and stands in the codec of the chunk that it gives.
        needs: what it is to be given beside the chunk.
    """

    @property
    def kind(self) -> str:
        """See the class."""
        ...

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """See the class."""
        ...
