"""Chunks and patches: arrays with the names, keys and lengths that travel with them on the host."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kamera_jax import patch as patches
from kamera_jax.errors import MissingInputsError
from kamera_jax.kv import KV, Factors, KVSpec, Segment, Sketch

SCHEMA = 1


def content_key(fields: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Chunk:
    """A media item or text passage with its KV in the position-free frame.

    Attributes:
        kv: un-rotated KV [L, T, ·]; canonical unless ``antecedents`` says what it was conditioned on.
        positions: local positions f32[A, T], from 0.
        length: valid tokens, at most T.
        advance: how far the next chunk starts after this one's start, in positions (not the token count under M-RoPE).
        key: sha256 that identifies content, model, preamble and antecedents.
        model: fingerprint of the model that encoded it.
        preamble: key of the preamble it was encoded after, None for none.
        antecedents: keys of the chunks it was conditioned on; empty for a canonical chunk.
        inputs: what the model read (token ids, media features), None once dropped.
        turn: whether this is a question with its answer, kept by `generate`.
        spec: what the KV means to the model that made it, None if it was not said.
    """

    kv: KV
    positions: Float[Array, "A T"]
    length: int
    advance: float
    key: str
    model: str
    preamble: str | None
    antecedents: tuple[str, ...] = ()
    inputs: dict[str, Any] | None = None
    turn: bool = False
    spec: KVSpec | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the KV over valid tokens."""
        return sum(leaf.size // leaf.shape[1] * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.kv)) * self.length

    @property
    def segment(self) -> Segment:
        """The tokens, ready to be run again.

        Raises:
            MissingInputsError: the inputs were dropped.
        """
        if self.inputs is None:
            raise MissingInputsError(
                f"chunk {self.key[:12]} was kept without its inputs, so it cannot be run again; encode it anew"
            )
        return Segment(self.inputs, self.positions, jnp.int32(self.length), self.advance, self.key)

    def without_inputs(self) -> "Chunk":
        """The same chunk without what only re-running it needs."""
        return replace(self, inputs=None)


def chunk_key(content: str, spec: KVSpec, preamble: str | None, antecedents: tuple[str, ...] = ()) -> str:
    """The key of a chunk; it addresses inputs, not bytes."""
    return content_key(
        {
            "content": content,
            "model": spec.fingerprint,
            "dtype": spec.dtype,
            "rope": asdict(spec.rope),
            "preamble": preamble,
            "antecedents": antecedents,
            "schema": SCHEMA,
        }
    )


class Match(Enum):
    """How the chunks before a chunk compare with those its patch was formed after."""

    EXACT = "exact"
    PERMUTED = "permuted"
    PARTIAL = "partial"
    MISS = "miss"


@dataclass(frozen=True)
class Patch:
    """What a chunk absorbs from its antecedents, low-rank.

    Attributes:
        factors: the change of its KV.
        chunk: key of the chunk it belongs to.
        model: fingerprint of the model that formed it.
        antecedents: keys of the chunks it was formed after, in order.
        mass: f32[L, n + 2]: attention the chunk's tokens gave to each antecedent, to the preamble and to themselves,
            while it was formed.
        residual: f32[L]: share of the squared change that the rank left out.
        length: valid tokens.
        sketch: how its tokens attended while it was formed, for `kamera_jax.staleness`; None if it was not asked for.
    """

    factors: Factors
    chunk: str
    model: str
    antecedents: tuple[str, ...]
    mass: Float[Array, "L S"]
    residual: Float[Array, " L"]
    length: int
    sketch: Sketch | None = None

    @property
    def nbytes(self) -> int:
        """Bytes as stored: components in use, valid tokens, and the sketch."""
        return patches.nbytes(self.factors, self.length) + (0 if self.sketch is None else self.sketch.nbytes)

    def match(self, context: tuple[str, ...]) -> Match:
        """How ``context`` (keys of the chunks before this one, in order) compares with the antecedents."""
        if context == self.antecedents:
            return Match.EXACT
        if sorted(context) == sorted(self.antecedents):
            return Match.PERMUTED
        return Match.PARTIAL if set(context) & set(self.antecedents) else Match.MISS


@dataclass(frozen=True)
class Entry:
    """A chunk in a window.

    Attributes:
        chunk: what stands there.
        patch: what was added to it, or None.
        base: the absolute position it starts at.
        slot: the first slot it occupies; in a window that keeps its chunks in place, would occupy.
    """

    chunk: Chunk
    patch: Patch | None
    base: float
    slot: int
