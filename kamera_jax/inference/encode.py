"""Running the model: encode a chunk alone, prefill chunks together, form a patch."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kamera_jax.arguments import check_choice, check_list, check_type
from kamera_jax.backbone import Backbone, Output, with_defaults
from kamera_jax.chunk import Chunk, Patch, describe, source_of
from kamera_jax.contract import check_segment
from kamera_jax.errors import BackboneError
from kamera_jax.forward import check_forward, chunk_of, preamble_chunk, run
from kamera_jax.handle import Columns, traced
from kamera_jax.identity import content_key, patch_key
from kamera_jax.inference.forming import fit_and_share, forming_numbers, shares
from kamera_jax.inference.orders import mean_of, orders_of
from kamera_jax.inference.parts import parts
from kamera_jax.kv import Factors, Segment, Sketch, SketchSpec, bucket_of_slots, check_length
from kamera_jax.patch.size import Size
from kamera_jax.patch.sketch import take_jit
from kamera_jax.placement import placed
from kamera_jax.transfer import as_f32, expect_packed, packed
from kamera_jax.window.changes import append, materialised, nan_if
from kamera_jax.window.checks import check_chunk, check_encoded_by, check_model, check_reads_bias
from kamera_jax.window.window import Window, aligned

ROOM = 256
"""Slots a prefilled window keeps free by default, for a question and its answer."""


def encode(vlm: Backbone, item: Any, *, preamble: Literal["pinned"] | None = "pinned") -> Chunk:
    """A chunk's canonical KV: the item run with nothing before it but the preamble.

    Args:
        vlm: the model.
        item: str is text, Path a file, PIL image or uint8[H, W, 3] an image, `kamera_jax.Video` a video,
            `kamera_jax.Audio` sound; a list of these is one chunk, as the chat template writes them in one message. A
            text had better not end in white space, which tokenizers join to the word that follows; `encode_all` cuts
            texts so that none does.
        preamble: ``"pinned"`` runs it after the model's own preamble, which takes the attention-sink role; None after
            nothing at all.

    Raises:
        ValueError: the item cannot be read, is empty, or has an unsupported type.
        ModelLengthError: it is longer than the model.
    """
    check_choice(preamble, ("pinned", None), "preamble")
    segment = _prepared(vlm, item)
    if preamble is None:
        check_forward(vlm)
        check_length(vlm.spec, 0.0, segment.advance)
        return chunk_of(vlm, segment, run(vlm.params, segment, None, forward=vlm.forward), None)
    return encode_segment(vlm, segment)


def encode_all(
    vlm: Backbone,
    item: Any,
    *,
    tokens: int | None = None,
    segment: float | int | None = None,
    preamble: Literal["pinned"] | None = "pinned",
) -> tuple[Chunk, ...]:
    """Canonical KV of a long item in several chunks, cut at its natural borders.

    A text is cut before a paragraph break, else before white space, never behind it: the chunks' token ids in a row are
    those of the whole text. A video is cut between its frames, and a recording where the model's audio tower sees no
    further, or in segments of so many seconds, of which a file's are read one after another. Images and lists have no
    such borders and are one chunk.

    Args:
        vlm: the model; one that does not say how it cuts (`kamera_jax.backbone.BackboneBase.cut`) never does.
        item: see `encode`.
        tokens: at most so many tokens in a chunk, of a video or recording media tokens, but at least what cannot be cut
            further; by default 1024, and where ``segment`` is given any number.
        segment: seconds of a video or recording that are a chunk; of a recording at most.
        preamble: see `encode`.

    Raises:
        ValueError: ``tokens`` is below 1, or ``segment`` not above 0; else see `encode`.
    """
    check_choice(preamble, ("pinned", None), "preamble")
    return tuple(encode(vlm, part, preamble=preamble) for part in parts(vlm, item, tokens, segment))


def encode_segment(vlm: Backbone, segment: Segment) -> Chunk:
    """Canonical KV of a prepared item, run after the preamble alone."""
    chunk, _ = run_chunk(vlm, Window.of_preamble(vlm), segment)
    return chunk


def run_chunk(
    vlm: Backbone,
    window: Window,
    source: Segment | Chunk,
    collect: tuple[str, ...] = (),
    base: jax.Array | np.float32 | None = None,
) -> tuple[Chunk, Output]:
    """A chunk with the KV that one forward on the window as it stands gives it, and all that forward returned.

    Args:
        vlm: the model.
        window: what it sees.
        source: what is run; a turn that is run again stays one.
        collect: see `Backbone.forward`.
        base: the window's next position, where it is on the device already; see `kamera_jax.forward.run`.
    """
    check_reads_bias(vlm, window.state)
    segment, turn = (source_of(source), source.turn) if isinstance(source, Chunk) else (source, False)
    if segment.advance is not None:
        check_length(vlm.spec, window.next_position, segment.advance)
    base = as_f32(window.next_position) if base is None else base
    output = run(vlm.params, segment, window.state, base=base, forward=vlm.forward, collect=collect)
    chunk = chunk_of(vlm, segment, output, window.preamble.chunk.key, window.entries, context=window.lineage, turn=turn)
    return chunk, output


def prefill(vlm: Backbone, items: Sequence[Any], *, capacity: int | None = None) -> Window:
    """A window by full prefill: every chunk sees all before it. The reference that reuse is compared with.

    Args:
        vlm: the model.
        items: what `encode` takes, or chunks that still have their sources.
        capacity: slots of the window; enough for the items and a turn by default.

    Returns:
        A window whose chunks hold conditioned KV and are marked with what they were conditioned on.

    Raises:
        ValueError: an item cannot be read. WindowFullError: ``capacity`` is too small. MissingInputsError: a chunk
            lost its source.
    """
    sources = _sources(vlm, items)
    window = _room_for(vlm, sources, capacity)
    for source in sources:
        chunk, _ = run_chunk(vlm, window, source)
        window = append(window, chunk, donate=bool(window.entries))
    return window


def _sources(vlm: Backbone, items: Sequence[Any]) -> list[Segment | Chunk]:
    with_defaults(vlm)
    check_list(items, object, "items", "of what encode takes, or chunks; for one item [item]")
    for item in items:
        if isinstance(item, Chunk):
            check_encoded_by(vlm, item)
            source_of(item)  # raises before anything is run
    return [item if isinstance(item, Chunk) else _prepared(vlm, item) for item in items]


def _prepared(vlm: Backbone, item: Any) -> Segment:
    return check_segment(vlm, with_defaults(vlm).prepare(item), "prepare")


def _room_for(vlm: Backbone, sources: Sequence[Segment | Chunk], capacity: int | None) -> Window:
    if capacity is None:
        capacity = _slots(vlm, _lengths(sources), ROOM)
    return Window.empty(vlm, capacity)


def form_patch(
    vlm: Backbone,
    chunk: Chunk,
    *,
    antecedents: Sequence[Chunk] | None = None,
    context: Window | None = None,
    rank: int | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    int8: bool | None = None,
    sketch: SketchSpec | None = None,
    any_order: bool = False,
) -> Patch:
    """What ``chunk`` absorbs from the chunks before it, as a low-rank patch.

    Without a choice of size it takes at most 10 % of the chunk's bytes, as with ``max_bytes``.

    Args:
        vlm: the model that encoded the chunk.
        chunk: canonical, with its source.
        antecedents: exact form: prefill preamble, antecedents and chunk together, in this order.
        context: one forward of the chunk alone, on a window as it stands; one that keeps its chunks in place is
            materialised for it.
        rank: components in every layer.
        energy: instead, the share of every layer's squared change to keep; ranks differ per layer.
        max_bytes: instead, what the patch may take; the components of most energy, whatever their layer.
        int8: store the factors as int8 with a scale for each component, or in the KV's dtype. By default where bytes
            are what is asked for: with ``max_bytes``, and without a choice.
        sketch: which attention to keep a sketch of, for `kamera_jax.staleness`; its bytes come on top.
        any_order: whether the patch is to serve the antecedents in whatever order they stand (an orbit patch): fitted
            to the mean of what the chunk's KV is behind them in the order given, its rotations, and the reverse of each
            (all orders of up to three); a prefill for each. Attention is that of the order given.

    Raises:
        ValueError: not exactly one of antecedents and context, any_order with the latter, more than one of rank, energy
            and max_bytes, a chunk that is not canonical, a size that is none, or a sketch of a layer that there is not.
        ModelMismatchError, PreambleMismatchError: the chunk, an antecedent or the context comes from elsewhere.
        MissingInputsError: the chunk, or an antecedent, lost its source.
    """
    if (antecedents is None) == (context is None):
        raise ValueError("give either antecedents= (chunks to prefill before it) or context= (a window as it stands)")
    if any_order and antecedents is None:
        raise ValueError("any_order=True puts antecedents= in several orders; a context stands in its own")
    with_defaults(vlm)
    size = Size(rank, energy, max_bytes, int8)
    if antecedents is not None:
        remedy = "chunks that encode(vlm, item) made; for one chunk [chunk], for a window as it stands context=window"
        check_list(antecedents, Chunk, "antecedents", remedy)
    if context is not None and not isinstance(context, Window):
        remedy = "a window is what append and prefill make; for chunks antecedents=[chunk, ...]"
        check_type(context, Window, "context", remedy)
    _check_canonical(chunk)
    check_encoded_by(vlm, chunk)
    source_of(chunk)  # raises before anything is run
    collect = _collected(vlm, sketch)
    if context is not None:
        check_model(vlm, context)
    window = _prefilled(vlm, antecedents) if context is None else context
    check_chunk(window, chunk)
    forming = forming_numbers(window, chunk, size)
    expect_packed(*forming)  # they go with what writes a window
    window = materialised(window)  # what each chunk received cannot be distinguished in place
    numbers = packed(*forming)
    conditioned, output = run_chunk(vlm, window, chunk, collect, numbers)
    lineages = [window.lineage]
    if antecedents is not None and any_order:
        others = [_prefilled(vlm, order) for order in orders_of(antecedents)[1:]]
        lineages += [each.lineage for each in others]
        kvs = [conditioned.kv, *(run_chunk(vlm, each, chunk)[0].kv for each in others)]
        conditioned = conditioned.keeping(kv=mean_of(kvs))
    # Inside the forming window antecedents are conditioned and keyed as such; a patch names those its caller knows.
    keys = window.keys if antecedents is None else tuple(each.key for each in antecedents)
    return _patch(chunk, conditioned, output, window, keys, size, sketch, numbers, lineages)


def form_patches(
    vlm: Backbone,
    items: Sequence[Any],
    *,
    capacity: int | None = None,
    rank: int | None = None,
    energy: float | None = None,
    max_bytes: int | None = None,
    int8: bool | None = None,
    sketch: SketchSpec | None = None,
) -> tuple[Window, tuple[Patch | None, ...]]:
    """`prefill`, and with the same forwards the patches of all its chunks behind those before them.

    What was never encoded alone is kept as it is: with its conditioned KV, as the window has it, and no patch.

    Args:
        vlm: the model.
        items: canonical chunks with their sources, and what `encode` takes.
        capacity: see `prefill`.
        rank, energy, max_bytes, int8, sketch: of each patch; see `form_patch`.

    Returns:
        The prefilled window, and for each item its patch, or None for what is no canonical chunk. A patch names the
        chunks that were given, and the window's own where an item was no chunk.

    Raises:
        ValueError, PreambleMismatchError, MissingInputsError: see `prefill` and `form_patch`. WindowFullError:
            ``capacity`` is too small.
    """
    size = Size(rank, energy, max_bytes, int8)
    collect = _collected(vlm, sketch)
    sources = _sources(vlm, items)
    window = _room_for(vlm, sources, capacity)
    for item in items:
        if isinstance(item, Chunk):
            _check_canonical(item)
            check_chunk(window, item)
    keys: tuple[str, ...] = ()
    patches: list[Patch | None] = []
    for item, source in zip(items, sources, strict=True):
        canonical = item if isinstance(item, Chunk) else None
        if canonical is None:
            conditioned, _ = run_chunk(vlm, window, source)
            patches.append(None)
        else:
            numbers = packed(*forming_numbers(window, canonical, size))
            conditioned, output = run_chunk(vlm, window, source, collect, numbers)
            lineages = [window.lineage]
            patches.append(_patch(canonical, conditioned, output, window, keys, size, sketch, numbers, lineages))
        keys += ((conditioned if canonical is None else canonical).key,)
        window = append(window, conditioned, donate=bool(window.entries))
    return window, tuple(patches)


def _collected(vlm: Backbone, sketch: SketchSpec | None) -> tuple[str, ...]:
    """What forming a patch takes of a forward.

    Raises:
        BackboneError: the model says that it does not collect it.
    """
    check_type(sketch, (SketchSpec, type(None)), "sketch", "kamera_jax.SketchSpec(layers) says which attention to keep")
    offered = tuple(with_defaults(vlm).collects)
    mass = "owner_mass" if "owner_mass" in offered else "attention_mass"
    wanted = (mass,) if sketch is None else (mass, "queries")
    if missing := [name for name in wanted if name not in offered]:
        what = "a patch" if mass in missing else "a sketch"
        raise BackboneError(
            f"{type(vlm).__name__} collects {offered}; forming {what} takes {' and '.join(missing)}: return it in aux "
            "where collect asks for it, and name it in the backbone's collects"
        )
    return wanted


def _check_canonical(chunk: Chunk) -> None:
    check_type(chunk, Chunk, "chunk", "encode(vlm, item) makes one of text or an image")
    if chunk.conditioned:
        raise ValueError(
            f"{describe(chunk)} holds KV conditioned on {len(chunk.antecedents) or 'other'} chunks; a patch is formed "
            "for a canonical one"
        )


def _patch(
    chunk: Chunk,
    conditioned: Chunk,
    output: Output,
    window: Window,
    antecedents: tuple[str, ...],
    size: Size,
    sketch: SketchSpec | None,
    numbers: jax.Array,
    lineages: Sequence[str],
) -> Patch:
    """The patch of a chunk that a forward on ``window`` has conditioned; nothing here waits for the device.

    One that was formed on several windows has the lineage of none.
    """
    rows = chunk.taken(conditioned.kv)
    by_owner = "owner_mass" in output.aux
    attended = (output.aux["owner_mass" if by_owner else "attention_mass"], numbers)
    slots = None if by_owner else window.state.valid.shape[0]
    by_bytes = size.fits_bytes(chunk.length)
    if by_bytes or size.rank is not None:
        width = size.budget(chunk.kv, chunk.length)[1] if by_bytes else size.width(chunk.kv)
        given = {"width": width, "int8": size.stores_int8, "by_bytes": by_bytes, "slots": slots}
        (factors, residual), mass = fit_and_share(rows, chunk.kv, *attended, **given)
    else:
        factors, residual = size.fit(rows, chunk.kv, chunk.length)
        mass = shares(*attended, slots=slots)
    lost = window.overflowed
    if not chunk.keeps_all_rows and traced(rows.rot):  # where rows of no token could not be refused
        lost = lost | jnp.isnan(rows.rot).any()
    if traced(lost):  # components of no number are left out, and a patch of none would pass for a good one
        u, v = factors.floats(chunk.kv.rot.dtype)
        ranks = jnp.where(lost, jnp.maximum(factors.ranks, 1), factors.ranks)
        factors = Factors(u, nan_if(lost, v), ranks)
        residual = nan_if(lost, residual)
    context = lineages[0] if len(lineages) == 1 else content_key({"orders": lineages}) if all(lineages) else ""
    key = patch_key(chunk.key, chunk.codec, context, asdict(size), factors.u.dtype.name, sketch)
    return Patch(
        factors=placed(factors, window.placement),
        chunk=chunk.key,
        model=chunk.model,
        antecedents=antecedents,
        mass=Columns(mass, len(window.entries) + 2),
        residual=residual,
        length=chunk.length,
        sketch=None if sketch is None else _sketch(chunk, output, window, factors, numbers, sketch),
        codec=chunk.codec,
        key=key,
        lineage=context if key and len(lineages) == 1 else "",
    )


def _sketch(
    chunk: Chunk, output: Output, window: Window, factors: Factors, numbers: jax.Array, which: SketchSpec
) -> Sketch:
    """What the chunk's tokens read on ``window`` with its patch, with the rows that it keeps alone."""
    queries = chunk.taken(output.aux["queries"], shared=False)
    own = (chunk.kv, factors, chunk.positions, window.state)
    return take_jit(queries, *own, numbers, chunk.counts, which=which, spec=window.spec)


def _prefilled(vlm: Backbone, antecedents: Sequence[Chunk] | None) -> Window:
    return prefill(vlm, antecedents or (), capacity=_slots(vlm, _lengths(antecedents or ()), 0))


def _lengths(sources: Sequence[Segment | Chunk]) -> list[int]:
    """Tokens that are run, whatever rows of them a chunk keeps."""
    return [int((source_of(each) if isinstance(each, Chunk) else each).length) for each in sources]


def _slots(vlm: Backbone, lengths: Sequence[int], room: int) -> int:
    return bucket_of_slots(aligned(preamble_chunk(vlm).length) + sum(map(aligned, lengths)) + room)
