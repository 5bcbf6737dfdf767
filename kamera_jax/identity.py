"""What keys are made of: a key names what was computed, a key with its codec names the bits.

A chunk's KV is a function of its content, of the model, and of all that its tokens saw: the preamble, the chunks before
it, and the patches that those had. The last three are a *lineage*: one digest over the preamble and, entry by entry,
the chunk's key, its codec and its patch's key. Two values of one key and one codec hold the same bits, up to the
rounding of the device that made them.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import reduce
from typing import Any

import jax
import numpy as np

from kamera_jax.handle import traced
from kamera_jax.kv import KVSpec, Segment, SketchSpec

SCHEMA = 2
"""Of keys. Schema 1 named the chunks before a chunk, and not the patches that they had."""

EXACT = "exact"
"""The codec of KV and factors as the model and the fit gave them."""

SHARED = "shared:"
"""With the threshold behind it, as in ``"shared:0.95"``: a codec of KV whose rows stand for several tokens each."""

RENEWED = "renewed:"
"""With a tolerance behind it, as in ``"renewed:0.05"``: a codec of KV of which the rows that changed were run again."""

SELECTS = ("kvzip", "keydiff", "leverage", "knorm", "expected", "tri", "lookm")
"""First words of the codecs of KV of which a share of the rows is kept, as in ``"kvzip:0.5"``."""

MERGE = "merge:"
"""With a way of merging behind it, as in ``"merge:pivot"``: a codec of KV whose rows took in those not kept."""

LOOKM = "lookm"
"""One of `SELECTS` that merges its rows too, by pivot."""

Identity = tuple[str, str, str]
"""What stands somewhere, to the bit: a chunk's key, its codec, and its patch's key or nothing."""

UNNAMED = "?"
"""In an `Identity`, a patch that is there and has no key."""


def shared_rows(codec: str) -> str:
    """The part of a codec that says which tokens share rows, such as ``"shared:0.95"``; empty where none do."""
    return next((part for part in codec.split("+") if part.startswith(SHARED)), "")


def merged_rows(codec: str) -> str:
    """How the rows of a codec took in those that were not kept, such as ``"pivot"``; empty where they did not."""
    parts = codec.split("+")
    if any(part.partition(":")[0] == LOOKM for part in parts):
        return "pivot"
    return next((part.removeprefix(MERGE) for part in parts if part.startswith(MERGE)), "")


def row_stages(codec: str) -> str:
    """The parts of a codec that say which tokens' rows there are, and what stands in them; empty for a row a token."""
    own = (part for part in codec.split("+") if part.partition(":")[0] in SELECTS or part.startswith((SHARED, MERGE)))
    return "+".join(own)


def content_key(fields: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_of(segment: Segment) -> str:
    """The digest of what a segment was made from; of what the model reads, if its backbone does not say.

    Empty for a segment that is being traced: its values are not known.
    """
    arrays = {**segment.inputs, "positions": segment.positions, "length": segment.length}
    if segment.content or traced(*jax.tree.leaves(arrays)):
        return segment.content
    return content_key({name: _array_digest(array) for name, array in arrays.items()})


def _array_digest(array: Any) -> list[Any]:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(array)]
    return [[x.dtype.name, x.shape, hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()] for x in leaves]


def lineage(preamble: str | None, entries: Iterable[Identity] = ()) -> str:
    """The digest of a context; empty if something in it has no key.

    Args:
        preamble: its key; None for a context of nothing at all.
        entries: what stands behind the preamble, in order.
    """
    return reduce(extended, entries, "" if preamble == "" else content_key({"preamble": preamble, "schema": SCHEMA}))


def extended(before: str, entry: Identity) -> str:
    """The lineage of a context of lineage ``before`` and one more entry."""
    chunk, codec, patch = entry
    if not (before and chunk) or patch == UNNAMED:
        return ""
    return content_key({"before": before, "chunk": chunk, "codec": codec, "patch": patch})


def chunk_key(content: str, spec: KVSpec, lineage: str) -> str:
    """The key of a chunk: its content, run by a model behind a context; empty if either is not known."""
    if not (content and lineage):
        return ""
    model = {"model": spec.fingerprint, "dtype": spec.dtype, "rope": spec.rope.plain}
    return content_key({"content": content, "lineage": lineage, "schema": SCHEMA, **model})


def canonical_key(segment: Segment, spec: KVSpec, preamble: str | None) -> str:
    """The key that a segment's chunk has when it is run behind the preamble alone, or, with None, behind nothing."""
    return chunk_key(content_of(segment), spec, lineage(preamble))


def patch_key(
    chunk: str, codec: str, lineage: str, size: Mapping[str, Any], dtype: str, sketch: SketchSpec | None
) -> str:
    """The key of a patch: what was fitted, for which bits of a chunk, in which context; empty if one is not known.

    Args:
        chunk: key of the chunk.
        codec: of the chunk's KV that it was fitted to.
        lineage: of the context it was formed on.
        size: the bounds that were asked for.
        dtype: of the factors.
        sketch: what was asked to be kept of the attention, or None.
    """
    if not (chunk and lineage):
        return ""
    kept = None if sketch is None else asdict(sketch)
    fields = {"chunk": chunk, "codec": codec, "lineage": lineage, "size": dict(size), "dtype": dtype, "sketch": kept}
    return content_key({**fields, "schema": SCHEMA})
