"""A chunk of an item that differs from an earlier one in a few tokens: only these are run, the others' KV is kept.

After KVShare (arXiv 2503.16525), which reuses the KV of similar prompts, runs edited tokens again, and those whose KV
deviates most. Here the edited tokens are those whose embeddings moved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from kamera_jax.arguments import check_type, real_number
from kamera_jax.backbone import Backbone, Output, call, forward_flops, with_defaults
from kamera_jax.chunk import Chunk, describe, source_of
from kamera_jax.errors import (
    BackboneError,
    MissingKeyError,
    RenewalError,
)
from kamera_jax.forward import chunk_of, preamble_chunk, run
from kamera_jax.handle import traced
from kamera_jax.identity import EXACT, RENEWED, SCHEMA, content_key, content_of
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import KV, Segment, WindowState, bucket, check_length
from kamera_jax.placement import Placement, constrained
from kamera_jax.rope import RopeSpec
from kamera_jax.transfer import to_device
from kamera_jax.types import Params
from kamera_jax.window.checks import check_chunk
from kamera_jax.window.reuse import relocate
from kamera_jax.window.window import Window

TOLERANCE = 0.05
"""By so much of its length a token's embedding may move before the token counts as changed, by default."""

EXTRA = 0.1
"""Share of a chunk's tokens that are run beside those that changed, by default."""

LAYERS = 2
"""Layers by which tokens of largest deviation are chosen: the second is the first whose KV depends on other tokens."""

_LEADING: WeakKeyDictionary[Backbone, Backbone] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False, repr=False)
class Renewed:
    """What `renew` made.

    Attributes:
        chunk: of the new item.
        made_from: key of the chunk that it was made from.
        rows: the tokens that were run, i32[K], ascending; all of them where the item was encoded.
        deviations: by how much of its length each token's embedding had moved, f32[T]; infinite for another token.
        flops: FLOPs of the language model for it.
    """

    chunk: Chunk
    made_from: str
    rows: Int[np.ndarray, " K"]
    deviations: Float[np.ndarray, " T"]
    flops: float

    def __repr__(self) -> str:
        return f"<Renewed {self.chunk.key[:12]}, codec={self.chunk.codec!r}: {self.note}>"

    @property
    def exact(self) -> bool:
        """Whether it is the chunk that `encode` gives: nothing had changed, or so much that the item was encoded."""
        return self.chunk.codec == EXACT

    @property
    def note(self) -> str:
        """What was done, for people and for a library's `Origin`."""
        count = self.chunk.length
        if self.chunk.key == self.made_from:
            return "the chunk itself: nothing had changed"
        if self.exact:
            return f"encoded: too much had changed since {self.made_from[:12]}"
        return f"approximate, made from {self.made_from[:12]}: {len(self.rows)} of {count} tokens were run"


def renew(
    vlm: Backbone,
    chunk: Chunk,
    item: Any,
    *,
    tolerance: float | int = TOLERANCE,
    extra: float | int = EXTRA,
) -> Renewed:
    """The chunk of an item like one that was encoded, as a screenshot in which one region changed, by its changed rows.

    The item's embeddings are computed, and compared with those that the chunk was made from. The tokens that changed
    are run, each behind what it would stand behind, and their KV takes the place of what stood there; the other rows
    are kept. Those have not seen what changed before them, so some of them are run too (``extra``), and the chunk is
    approximate. Its codec is ``"renewed:"`` with the tolerance, and its key is of the item, the chunk it was made from
    and the rows that were run: never that of the encoded item. Where nothing at all changed the chunk itself is given,
    and where running the rows would take as many as the whole item, that is encoded, and exact.

    Args:
        vlm: the model that encoded the chunk.
        chunk: canonical, with its source and a row for every token, as `encode` or `renew` gave it.
        item: what `encode` takes, or a `Segment` of the model's ``prepare``; of the same tokens at the same positions,
            as an image of the same size has.
        tolerance: a token is run where its embedding moved by more than this share of its length, ‖new - old‖ / ‖old‖.
            0 keeps equal embeddings alone. Towers in which all patches see each other move all embeddings a little;
            docs/similar.md has by how much.
        extra: share of the tokens that are run beside these. The first two layers are run over all tokens, and the
            KV that this gives is taken for all of them; of the tokens that did not change those are run to the end
            whose KV in the second layer deviates most, as CacheBlend does (arXiv 2405.16444). 0 for none: then what a
            token had read of what changed before it stays, such as the value that a formula refers to.

    Raises:
        RenewalError: the item has other tokens or positions than the chunk, as an image of another size; or the chunk
            was compressed or shares rows, is a turn, is conditioned on others, or is being traced.
        MissingInputsError: the chunk lost its source. MissingKeyError: it has no key.
        ModelMismatchError: another model, dtype or revision encoded it. PreambleMismatchError: behind another preamble.
        BackboneError: the model does not run tokens at slots (`kamera_jax.backbone.BackboneBase.fills_slots`), or is
            not cut (`leading`) where ``extra`` asks for it.
        DonatedError: the chunk's arrays were given away.
        ValueError: the item cannot be read, or ``tolerance`` or ``extra`` is none.
    """
    tolerance = real_number(tolerance, "tolerance", 0.0)
    extra = real_number(extra, "extra", 0.0)
    if extra > 1:
        raise ValueError(f"extra is {extra:g}; expected a share of the chunk's tokens, from 0 to 1")
    source = _checked(vlm, chunk)
    segment = item if isinstance(item, Segment) else vlm.prepare(item)
    _check_alike(chunk, source, segment)
    moved = deviations(source, segment)
    if content_of(segment) == chunk.content:
        return Renewed(chunk, chunk.key, np.zeros(0, np.int32), moved, 0.0)
    rows = np.flatnonzero(moved > tolerance).astype(np.int32)
    every = np.arange(chunk.length, dtype=np.int32)
    more = min(round(extra * chunk.length), chunk.length - len(rows))
    before = 0 if chunk.preamble is None else preamble_chunk(vlm).length
    flops = 0.0
    first = None
    if chunk.kv.rot.shape[1] <= bucket(len(rows) + more) and len(rows) + more:
        flops = forward_flops(vlm, chunk.length, before)
        return Renewed(_encoded(vlm, chunk, segment), chunk.key, every, moved, flops)
    if more:
        first = _first_layers(vlm, chunk, segment)
        rows = np.sort(np.concatenate([rows, _most_deviating(chunk, first, rows, more)]))
        flops = forward_flops(_leading(vlm), chunk.length, before)
    kv = chunk.kv
    if len(rows):
        kv = with_rows_run(vlm, chunk, segment, rows, first)
        flops += forward_flops(vlm, len(rows), before + chunk.length - len(rows))
    made_from = {"chunk": chunk.key, "codec": chunk.codec, "rows": rows.tolist(), "layers": LAYERS if more else 0}
    return Renewed(_named(chunk, segment, kv, tolerance, made_from), chunk.key, rows, moved, flops)


def _checked(vlm: Backbone, chunk: Chunk) -> Segment:
    """The source of a chunk whose rows may be kept."""
    check_type(chunk, Chunk, "chunk", "encode(vlm, item) makes one")
    if not with_defaults(vlm).fills_slots:
        raise BackboneError(
            f"{type(vlm).__name__} does not say fills_slots = True, so its forward may not read a segment's slots, as "
            "running single tokens takes; see kamera_jax.backbone.BackboneBase, or encode the item"
        )
    if traced(*jax.tree.leaves(chunk)):
        raise _refused(chunk, "is inside a JAX transformation, where it is not known which tokens changed")
    check_chunk(Window.of_preamble(vlm), chunk)
    if not chunk.key:
        raise MissingKeyError(
            f"{describe(chunk)} went through a JAX transformation, or was built by hand: it is not known what it was "
            "run behind, so its rows cannot be kept; renew what encode gave"
        )
    if chunk.turn or chunk.conditioned:
        what = "is a turn" if chunk.turn else "holds KV conditioned on other chunks"
        raise _refused(chunk, f"{what}; renew a chunk that encode gave")
    source = source_of(chunk)
    plain = chunk.codec == EXACT or ("+" not in chunk.codec and chunk.codec.startswith(RENEWED))
    if not plain or chunk.counts is not None or not chunk.keeps_all_rows:
        raise _refused(
            chunk, f"has codec {chunk.codec!r}: its KV is not as the model gave it; renew the chunk as encoded"
        )
    return source


def _refused(chunk: Chunk, why: str) -> RenewalError:
    return RenewalError(f"{describe(chunk)} {why}")


def _check_alike(chunk: Chunk, old: Segment, new: Segment) -> None:
    """Raise RenewalError unless the item has the chunk's positions, and inputs of the same kinds and sizes."""
    count = int(old.length)
    if int(new.length) != count or new.advance != chunk.advance:
        raise _refused(
            chunk,
            f"has {count} tokens and takes {chunk.advance:g} positions, and the item has {int(new.length)} and takes "
            f"{new.advance or 0:g}; expected an item of the same size: encode this one",
        )
    mine, theirs = (np.asarray(each.positions)[:, :count] for each in (old, new))
    if mine.shape != theirs.shape or (mine != theirs).any():
        raise _refused(
            chunk, f"has {count} tokens, and the item's stand at other positions, as in another grid: encode this one"
        )
    for name in {**old.inputs, **new.inputs}:
        a, b = (each.inputs.get(name) for each in (old, new))
        if a is None or b is None or np.shape(a) != np.shape(b):
            shapes = [None if each is None else np.shape(each) for each in (a, b)]
            raise _refused(
                chunk, f"was made from {name!r} of shape {shapes[0]}, and the item has {shapes[1]}: encode this one"
            )


def deviations(old: Segment, new: Segment) -> Float[np.ndarray, " T"]:
    """By how much of its length each valid token's input moved, f32[T]; infinite for another token.

    Features of several layers (DeepStack) are taken one by one; the largest counts.
    """
    count = int(old.length)
    moved = np.zeros(count, np.float64)
    for name, value in old.inputs.items():
        mine = np.asarray(value)[:count].reshape(count, -1)
        theirs = np.asarray(new.inputs[name])[:count].reshape(count, -1)
        same = (mine == theirs).all(1)
        if not jnp.issubdtype(mine.dtype, jnp.floating):
            moved = np.where(same, moved, np.inf)
            continue
        width = np.shape(value)[-1] if np.ndim(value) > 1 else 1
        mine, theirs = (each.astype(np.float64).reshape(count, -1, width) for each in (mine, theirs))
        length = np.linalg.norm(mine, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.linalg.norm(theirs - mine, axis=-1) / length
        ratio = np.where((mine == theirs).all(-1), 0.0, ratio)
        moved = np.maximum(moved, np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max(1, initial=0.0))
    return moved.astype(np.float32)


def with_rows_run(
    vlm: Backbone, chunk: Chunk, segment: Segment, rows: Int[np.ndarray, " K"], first: KV | None = None
) -> KV:
    """The chunk's KV with that of some tokens of a segment in its place, each run behind what it stands behind there.

    One program for a number of rows in a `kamera_jax.kv.bucket`.

    Args:
        vlm: see `renew`.
        chunk: whose other rows are kept.
        segment: of as many tokens, at the same positions.
        rows: which tokens, ascending; at least one.
        first: KV of all tokens of the segment in the first layers, which then takes the place of the chunk's.
    """
    given, how = _call(vlm, chunk, segment, rows)
    return _run_rows(*given, first, **how)


def _call(vlm: Backbone, chunk: Chunk, segment: Segment, rows: Int[np.ndarray, " K"]) -> tuple[Any, Any]:
    """What `_run_rows` is called with."""
    padded = np.full(bucket(len(rows)), chunk.kv.rot.shape[1], np.int32)
    padded[: len(rows)] = rows
    state, base = _behind(vlm, chunk)
    own = (segment.inputs, segment.positions, np.int32(chunk.length), np.float32(base), padded, np.int32(len(rows)))
    how = {"forward": vlm.forward, "rope": vlm.spec.rope, "placement": with_defaults(vlm).placement}
    return (vlm.params, chunk.kv, state, *to_device(own)), how


@partial(jax.jit, static_argnames=("forward", "rope", "placement"))
def _run_rows(
    params: Params,
    kv: KV,
    before: WindowState | None,
    inputs: dict[str, jax.Array],
    positions: jax.Array,
    length: jax.Array,
    base: jax.Array,
    rows: jax.Array,
    count: jax.Array,
    first: KV | None = None,
    *,
    forward: Callable[..., Output],
    rope: RopeSpec,
    placement: Placement | None,
) -> KV:
    """See `with_rows_run`; ``before`` is what the chunk was run behind, and rows of its arrays' length are padding."""
    size = kv.rot.shape[1]
    if first is not None:
        kv = jax.tree.map(lambda old, new: old.at[: new.shape[0]].set(new), kv, first)
    there = positions + base
    rot, free = relocate(kv, None, there, length, rope, placement=placement)
    at = jnp.arange(size, dtype=jnp.int32)[:, None] == rows[None, :]
    valid = (jnp.arange(size, dtype=jnp.int32) < length) & ~at.any(-1)
    state = WindowState(rot=rot, free=free, positions=there, valid=valid)
    slots = 0
    if before is not None:
        slots = before.valid.shape[0]
        state = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=min(parts[0].ndim - 1, 1)), before, state)
    taken = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="fill", fill_value=0), inputs)
    segment = Segment(
        {**taken, "slots": rows + slots},
        jnp.take(there, rows, axis=1, mode="fill", fill_value=0.0),
        count,
    )
    fresh = call(forward, params, segment, state).kv
    hit = at.any(-1)[None, :, None]
    place = at.argmax(-1)
    renewed = jax.tree.map(lambda old, new: jnp.where(hit, new[:, place].astype(old.dtype), old), kv, fresh)
    return constrained(renewed, placement)


def _first_layers(vlm: Backbone, chunk: Chunk, segment: Segment) -> KV:
    """KV of all tokens in the first layers."""
    model = _leading(vlm)
    state, base = _behind(vlm, chunk)
    if state is not None:
        state = WindowState(state.rot[:LAYERS], state.free[:LAYERS], state.positions, state.valid)
    return run(model.params, segment, state, base=np.float32(base), forward=model.forward).kv


def _most_deviating(chunk: Chunk, first: KV, changed: Int[np.ndarray, " K"], count: int) -> Int[np.ndarray, " n"]:
    """Of the tokens that did not change, those whose KV in the last of the first layers deviates most."""
    last = LAYERS - 1
    total = np.zeros(chunk.kv.rot.shape[1], np.float64)
    for old, new in ((chunk.kv.rot, first.rot), (chunk.kv.free, first.free)):
        total += np.square(np.asarray(new[last], np.float64) - np.asarray(old[last], np.float64)).sum(-1)
    total[changed] = -1
    return np.argsort(-total[: chunk.length], kind="stable")[:count].astype(np.int32)


def _leading(vlm: Backbone) -> Backbone:
    """The model's first layers, which are cut off once."""
    if vlm not in _LEADING:
        model = with_defaults(vlm).leading(min(LAYERS, vlm.spec.layers))
        if model.spec.layers != LAYERS:
            raise BackboneError(
                f"{type(vlm).__name__} of {vlm.spec.layers} layers is not cut off after {LAYERS} (its leading gives "
                f"{model.spec.layers}), so which tokens deviate most would take a whole forward; pass extra=0"
            )
        _LEADING[vlm] = model
    return _LEADING[vlm]


def _behind(vlm: Backbone, chunk: Chunk) -> tuple[WindowState | None, float]:
    """What a canonical chunk was run behind, and where it then starts."""
    if chunk.preamble is None:
        return None, 0.0
    window = Window.of_preamble(vlm)
    return window.state, window.next_position


def _encoded(vlm: Backbone, chunk: Chunk, segment: Segment) -> Chunk:
    if chunk.preamble is not None:
        return encode_segment(vlm, segment)
    check_length(vlm.spec, 0.0, segment.advance)
    return chunk_of(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)


def _named(chunk: Chunk, segment: Segment, kv: KV, tolerance: float, made_from: Mapping[str, Any]) -> Chunk:
    """The chunk of the renewed KV, under a name that no encoded chunk has."""
    content = content_of(segment)
    return Chunk(
        kv=kv,
        positions=chunk.positions,
        length=chunk.length,
        advance=chunk.advance,
        model=chunk.model,
        preamble=chunk.preamble,
        source=Segment(segment.inputs, chunk.positions, segment.length, segment.advance),
        spec=chunk.spec,
        codec=RENEWED + repr(tolerance),
        key=content_key({"content": content, "lineage": chunk.lineage, "made_from": made_from, "schema": SCHEMA}),
        content=content,
        lineage=chunk.lineage,
    )
