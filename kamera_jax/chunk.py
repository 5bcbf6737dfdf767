"""Chunks and patches: arrays with the names, keys and lengths that travel with them on the host."""

import warnings
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Self, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax import patch as patches
from kamera_jax.errors import MissingInputsError
from kamera_jax.handle import Columns, Handle, host_columns, host_scalar
from kamera_jax.identity import EXACT, UNNAMED, Identity, merged_rows, shared_rows
from kamera_jax.kv import KV, Factors, KVSpec, Segment, Sketch
from kamera_jax.merging import merged
from kamera_jax.source import SourceField, kept_rows, mean_rows, taken_rows, token_rows

_NOT_GIVEN: Any = object()
_SOURCE = SourceField()


@no_type_check  # a pytree is rebuilt with whatever a transformation puts in its leaves
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Chunk(Handle):
    """A media item or text passage with its KV in the position-free frame.

    A pytree of ``kv``, ``positions``, ``length``, ``advance``, ``source`` and ``counts``. ``key``, ``content`` and
    ``lineage`` say how the KV was computed, so that `dataclasses.replace` and every JAX transformation drop them, and
    with them ``preamble`` and ``antecedents``; `to` keeps them.

    What the model read and what is stored of its KV are two things: ``source`` has all tokens, while ``kv``,
    ``positions`` and ``length`` may keep the rows of some of them only, in their order, each at its token's position.
    With ``counts`` a row stands for several tokens, and attention weighs it as so many; see `kamera_jax.share_rows`.

    Attributes:
        kv: un-rotated KV [L, T, ·], one row for each token that is kept; canonical, or conditioned on what it was run
            behind.
        positions: local positions of these rows f32[A, T]; the source's begin at 0.
        length: valid rows, at most T.
        advance: how far the next chunk starts after this one's start, in positions: of the source, whatever is kept of
            it, and not the token count under M-RoPE.
        model: fingerprint of the model that encoded it.
        preamble: key of the preamble it was encoded after, None for none or if that is not known.
        antecedents: keys of the chunks it was conditioned on; empty for a canonical chunk.
        source: the segment that the model read (token ids, media features), at local positions; None once dropped.
        turn: whether this is a question with its answer, kept by `generate`.
        spec: what the KV means to the model that made it, None if it is not known.
        codec: what the KV went through since: ``"exact"`` is nothing, ``"int8"`` a library's storage, ``"shared:0.95"``
            rows that tokens share.
        conditioned: whether its KV depends on other chunks; it then is not canonical.
        key: names content, model and lineage; empty for a chunk whose KV may be anything. With the codec it names the
            bits, up to the rounding of the device that made them.
        content: digest of what the chunk was made from; empty where ``key`` is.
        lineage: digest of what it was run behind; see `kamera_jax.identity.lineage`. Empty where ``key`` is.
        counts: how many tokens each row stands for, f32[T], of padding 1; None where each stands for its own.
    """

    kv: KV
    positions: Float[Array, "A T"]
    length: int = host_scalar(int)
    advance: float = host_scalar(float)
    model: str
    preamble: str | None
    antecedents: tuple[str, ...]
    source: Segment | None = _SOURCE  # pyright: ignore[reportAssignmentType]
    turn: bool
    spec: KVSpec | None
    codec: str
    conditioned: bool
    key: str = field(init=False)
    content: str = field(init=False)
    lineage: str = field(init=False)
    counts: Float[Array, " T"] | None

    DATA: ClassVar = ("kv", "positions", "length", "advance", "source", "counts")
    STATIC: ClassVar = ("model", "turn", "spec", "codec", "conditioned")
    NAMES: ClassVar = {"preamble": None, "antecedents": (), "key": "", "content": "", "lineage": ""}
    SHOWN: ClassVar = ("key", "length", "codec")

    def __init__(
        self,
        kv: KV,
        positions: Float[Array, "A T"],
        length: int | jax.Array,
        advance: float | jax.Array,
        model: str,
        preamble: str | None = None,
        antecedents: tuple[str, ...] = (),
        source: Segment | None = None,
        turn: bool = False,
        spec: KVSpec | None = None,
        codec: str = EXACT,
        conditioned: bool = False,
        *,
        key: str = "",
        content: str = "",
        lineage: str = "",
        counts: Float[Array, " T"] | None = None,
        inputs: dict[str, Any] | None = _NOT_GIVEN,
    ) -> None:
        """See the class. Whoever gives a key vouches for the bits; ``inputs`` is an old name of ``source.inputs``."""
        if inputs is not _NOT_GIVEN:
            _deprecated("Chunk(inputs=…)", "Chunk(source=Segment(inputs, positions, length, advance))")
            source = None if inputs is None else Segment(inputs, positions, length, advance, content)
        elif isinstance(source, dict):
            _deprecated("Chunk(…, inputs)", "Chunk(source=Segment(inputs, positions, length, advance))")
            source = Segment(source, positions, length, advance, content)
        self._set(kv=kv, positions=positions, length=length, advance=advance, model=model, preamble=preamble)
        self._set(antecedents=antecedents, source=source, turn=turn, spec=spec, codec=codec)
        self._set(conditioned=conditioned or bool(antecedents), key=key, content=content, lineage=lineage)
        self._set(counts=counts)

    @property
    def nbytes(self) -> int:
        """Bytes of the KV over valid rows."""
        return sum(leaf.size // leaf.shape[1] * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.kv)) * self.length

    @property
    def keeps_all_rows(self) -> bool:
        """Whether the KV has a row for every token of the source; also where the source was dropped."""
        return _SOURCE.is_shared(self)

    def taken(self, kv: Any, *, shared: bool = True) -> Any:
        """The rows that this chunk keeps, taken from KV of all its source's tokens, in the same places.

        Args:
            kv: a `KV`, or other arrays [L, T, …].
            shared: whether a row that several tokens share is their mean, as `kamera_jax.share_rows` makes it of KV,
                and one that took in others (``merge:…``) takes in those that are nearest to it in this KV; or a row is
                that of the token at whose position it stands.

        Raises:
            ValueError: it is not known which tokens the rows are of: they do not stand at positions of the source's
                tokens, in their order, or at such as several have. Inside a JAX transformation the rows that stand
                nowhere become NaN.
        """
        if self.keeps_all_rows:
            return kv
        source = source_of(self)
        rows = kept_rows(self.positions, self.length, source.positions, source.length, describe(self))
        if shared and shared_rows(self.codec):
            kv = mean_rows(kv, rows, token_rows(source, rows), source.length)
            rows = jnp.where(jnp.asarray(rows) < 0, -1, jnp.arange(len(rows), dtype=jnp.int32))
        elif shared and (how := merged_rows(self.codec)):
            kv = merged(kv, rows, source.length, heads=1 if self.spec is None else self.spec.heads, how=how)
            rows = jnp.where(jnp.asarray(rows) < 0, -1, jnp.arange(len(rows), dtype=jnp.int32))
        return taken_rows(kv, rows, self.length)

    def keeping(self, **changes: Any) -> Self:
        """A copy with other values of some fields that keeps its names, and its source if that is not changed."""
        source = changes.pop("source", self.source)
        return super().keeping(**changes, source=source)  # last: it is compared with the new positions

    def without_source(self) -> Self:
        """The same chunk, with its key, without what only re-running it needs."""
        return super().keeping(source=None)

    @property
    def inputs(self) -> dict[str, Any] | None:
        """The old name of ``source.inputs``."""
        _deprecated("Chunk.inputs", "Chunk.source.inputs")
        return None if self.source is None else self.source.inputs

    @property
    def segment(self) -> Segment:
        """The old name of ``source``."""
        _deprecated("Chunk.segment", "Chunk.source")
        return source_of(self)

    def without_inputs(self) -> Self:
        """The old name of `without_source`."""
        _deprecated("Chunk.without_inputs()", "Chunk.without_source()")
        return self.without_source()


def _deprecated(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes with the next version", DeprecationWarning, stacklevel=3)


def describe(chunk: Chunk) -> str:
    """A chunk in an error message."""
    return f"chunk {chunk.key[:12]}" if chunk.key else "a chunk without a key"


def source_of(chunk: Chunk) -> Segment:
    """The tokens of a chunk, all of them, ready to be run again.

    Raises:
        MissingInputsError: the source was dropped.
    """
    source = chunk.source
    if source is None:
        raise MissingInputsError(
            f"{describe(chunk)} was kept without its source, so it cannot be run again; encode it anew"
        )
    return source


class Match(Enum):
    """How the chunks before a chunk compare with those its patch was formed after."""

    EXACT = "exact"
    PERMUTED = "permuted"
    PARTIAL = "partial"
    MISS = "miss"


@no_type_check
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Patch(Handle):
    """What a chunk absorbs from its antecedents, low-rank.

    A pytree of ``factors``, ``mass``, ``residual``, ``length`` and ``sketch``; names are dropped as those of a `Chunk`.

    Attributes:
        factors: the change of its KV.
        chunk: key of the chunk it belongs to; empty if that is not known.
        model: fingerprint of the model that formed it.
        antecedents: keys of the chunks it was formed after, in order.
        mass: f32[L, n + 2]: attention the chunk's tokens gave to each antecedent, to the preamble and to themselves,
            while it was formed.
        residual: f32[L]: share of the squared change that the rank left out.
        length: valid tokens.
        sketch: how its tokens attended while it was formed, for `kamera_jax.staleness`; None if it was not asked for.
        codec: of the KV that it was fitted to.
        key: names chunk, codec, lineage, size and dtype; empty for a patch whose factors may be anything.
        lineage: digest of what it was formed on, the patches there included; empty if that is not known.
    """

    factors: Factors
    chunk: str
    model: str
    antecedents: tuple[str, ...]
    mass: Float[Array, "L S"] = host_columns()
    residual: Float[Array, " L"]
    length: int = host_scalar(int)
    sketch: Sketch | None
    codec: str
    key: str = field(init=False)
    lineage: str = field(init=False)

    DATA: ClassVar = ("factors", "mass", "residual", "length", "sketch")
    STATIC: ClassVar = ("model", "codec")
    NAMES: ClassVar = {"chunk": "", "antecedents": (), "key": "", "lineage": ""}
    SHOWN: ClassVar = ("key", "length", "chunk")

    def __init__(
        self,
        factors: Factors,
        chunk: str,
        model: str,
        antecedents: tuple[str, ...],
        mass: Float[Array, "L S"] | Columns,
        residual: Float[Array, " L"],
        length: int | jax.Array,
        sketch: Sketch | None = None,
        codec: str = EXACT,
        *,
        key: str = "",
        lineage: str = "",
    ) -> None:
        """See the class. Whoever gives a key vouches for the bits."""
        self._set(factors=factors, chunk=chunk, model=model, antecedents=antecedents, mass=mass, residual=residual)
        self._set(length=length, sketch=sketch, codec=codec, key=key, lineage=lineage)

    @property
    def nbytes(self) -> int:
        """Bytes as stored: components in use, valid tokens, and the sketch."""
        return patches.nbytes(self.factors, self.length) + (0 if self.sketch is None else self.sketch.nbytes)

    def match(self, context: tuple[str, ...]) -> Match:
        """How ``context`` (keys of the chunks before this one, in order) compares with the antecedents.

        ``EXACT`` is of chunks, not of bits: that they have the patches which they had is for ``lineage`` to say.
        """
        if "" in context or "" in self.antecedents:  # a chunk without a key may be any
            return Match.PARTIAL if set(context) & set(self.antecedents) - {""} else Match.MISS
        if context == self.antecedents:
            return Match.EXACT
        if sorted(context) == sorted(self.antecedents):
            return Match.PERMUTED
        return Match.PARTIAL if set(context) & set(self.antecedents) else Match.MISS


@no_type_check
@dataclass(frozen=True, init=False, repr=False)
class Entry(Handle):
    """A chunk in a window; a pytree of all of it. Equal to one with the same chunk and patch, put there likewise.

    Attributes:
        chunk: what stands there.
        patch: what was added to it, or None.
        base: the absolute position it starts at.
        slot: the first slot it occupies; in a window that keeps its chunks in place, would occupy.
        place: in such a window, where it lies in the pool of its bucket; None elsewhere.
    """

    chunk: Chunk
    patch: Patch | None
    base: float = host_scalar(float)
    slot: int = host_scalar(int)
    place: int | None = field(default=host_scalar(int), compare=False)

    DATA: ClassVar = ("chunk", "patch", "base", "slot", "place")
    SHOWN: ClassVar = ("base", "slot")

    def __init__(self, chunk: Chunk, patch: Patch | None, base: float, slot: int, place: int | None = None) -> None:
        """See the class."""
        self._set(chunk=chunk, patch=patch, base=base, slot=slot, place=place)

    @property
    def identity(self) -> Identity:
        """What stands there, to the bit."""
        patch = "" if self.patch is None else self.patch.key or UNNAMED
        return self.chunk.key, self.chunk.codec, patch
