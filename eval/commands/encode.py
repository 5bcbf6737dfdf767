"""`kamera encode`: images, text, PDF and video files and folders of them into a chunk library."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import kamera_jax as kj
from eval.commands import worth
from eval.commands.arguments import check_dtype
from eval.commands.bench import lifetime
from eval.commands.items import Part, Source, check_with_text, sources
from eval.commands.library import KEY
from eval.commands.names import COLUMNS, note_embedded, printable, shortened
from eval.commands.outputs import UnfinishedError
from eval.report.console import kibibytes
from kamera_jax.compress.codec import codec
from kamera_jax.compress.stage import RowStage
from kamera_jax.errors import CodecError, SharedRowsError
from kamera_jax.forward import preamble_chunk
from kamera_jax.identity import EXACT, canonical_key
from kamera_jax.inference.encode import encode_segment
from kamera_jax.inference.selection import select_rows
from kamera_jax.kv import Segment, bucket
from kamera_jax.library.rows import Storage
from models import load
from models.media.video_files import video_file
from models.vlm import VisionLanguageModel

FAILURES = (ValueError, OSError, MemoryError, RuntimeError)
"""What an item that cannot be encoded raises: also where the device lacks memory for it, which JAX says so."""

BATCH = 16
"""How many chunks are written together: at most so many are lost where a run is killed."""

TIMED_TOKENS = 1024
"""Chunks of more tokens than this are not timed: that would take longer than encoding them."""

RUNS = 5
"""How often ``--measure`` times each step; the median counts."""


@dataclass(frozen=True)
class Encoded:
    """The outcome for one item.

    Attributes:
        name: the item's name, for messages.
        status: ``"encoded"``, ``"known"`` (the library had it) or ``"failed"``.
        key: the chunk's key; None if it failed.
        tokens: tokens of the item.
        rows: rows of KV that were kept of them: fewer where tokens share rows; 0 where nothing was encoded.
        nbytes: bytes of its KV.
        seconds: seconds that encoding took.
        error: why it failed.
        origin: where the item is, which the library keeps of a chunk that was encoded, with the time of that.
        note: what of it was not read; None where all was.
    """

    name: str
    status: str
    key: str | None = None
    tokens: int = 0
    rows: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    error: str | None = None
    origin: kj.Origin | None = None
    note: str | None = None


@dataclass
class Progressed:
    """What was done of the items.

    Attributes:
        items: the outcome of each, in their order; an item that was encoded is in the library.
        interrupted: whether Ctrl-C ended it.
        broken: why the library takes no more; None if it does.
    """

    items: list[Encoded] = field(default_factory=list)
    interrupted: bool = False
    broken: str | None = None


def encode_into(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    items: Sequence[Source],
    *,
    storage: Storage = "exact",
    share: float | None = None,
    report: Callable[[Encoded], None] = lambda _: None,
) -> Progressed:
    """Encode the items that the library does not have yet, so that an interrupted run goes on where it stopped.

    What was encoded when Ctrl-C comes is still put into the library.

    Args:
        vlm: the model.
        library: open for writing.
        items: the files to encode; an item that cannot be read is reported, and the others are encoded.
        storage: see `ChunkLibrary.put`; a codec that chooses rows may stand here too, for the model is at hand.
        share: threshold of `kamera_jax.share_rows` for what comes of videos; None to keep all rows.
        report: called for every item, once it is in the library.
    """
    done = Progressed()
    rows, packed = stages_of(storage, share)
    waiting: list[tuple[int, kj.Chunk]] = []

    def put() -> None:
        if not waiting:
            return
        try:
            origins = [done.items[place].origin for place, _ in waiting]
            library.put_many([chunk for _, chunk in waiting], storage=packed, origins=origins)
        except (ValueError, OSError) as error:
            done.broken = str(error)
        for place, _ in waiting:
            if done.broken is not None:
                done.items[place] = replace(done.items[place], status="failed", key=None, error=done.broken)
            report(done.items[place])
        waiting.clear()

    try:
        for source in items:
            shared = share if video_file(source.path) is not None else None
            for part, segment in _segments(vlm, source):
                here = {chunk.key for _, chunk in waiting}
                result, chunk = _tried(vlm, library, part.name, segment, here, shared, rows)
                origin = part.origin if _is_new(result) else replace(part.origin, encoded=None)
                result = replace(result, origin=origin, note=part.note)
                done.items.append(result)
                if chunk is None:
                    report(result)
                    continue
                waiting.append((len(done.items) - 1, chunk))
                if len(waiting) == BATCH:
                    put()
                if done.broken is not None:
                    return done
        put()
    except KeyboardInterrupt:
        done.interrupted = True
        there = {place for place, _ in waiting}
        last = len(done.items) - 1
        if done.items and done.items[last].status == "encoded" and last not in there and not library.has(_key(done)):
            done.items.pop()  # it came between the two lines above
    put()
    return done


def stages_of(storage: Storage, share: float | None) -> tuple[Sequence[RowStage], Storage]:
    """The stages of a storage that choose rows, which take the model, and what packs the rows that are left.

    Raises:
        CodecError: it is neither exact nor a codec, or chooses among rows that frames are to share.
    """
    if storage == EXACT:
        return (), storage
    try:
        named = codec(storage)
    except CodecError as error:
        raise CodecError(f"storage is exact or a codec: {error}") from None
    if named.rows and share is not None:
        raise CodecError(
            f"{storage!r:.80} chooses from a row for each token, and --share-frames makes fewer; leave one out"
        )
    return named.rows, named.storage


def _key(done: Progressed) -> str:
    return done.items[-1].key or ""


def _segments(vlm: VisionLanguageModel, source: Source) -> Iterator[tuple[Part, Segment | str]]:
    """The items of a file, each prepared; where an item cannot be read, the reason in its place."""
    for part in source.parts(vlm):
        if isinstance(part.item, ValueError | OSError):
            yield part, str(part.item)
            continue
        try:
            segment = vlm.prepare(part.item)
        except FAILURES as error:
            yield part, _reason(error)
        else:
            yield part, segment


def _reason(error: BaseException) -> str:
    """An error in a line."""
    return (str(error) or type(error).__name__).partition("\n")[0]


def _tried(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    name: str,
    segment: Segment | str,
    waiting: set[str],
    share: float | None,
    rows: Sequence[RowStage],
) -> tuple[Encoded, kj.Chunk | None]:
    if isinstance(segment, str):
        return Encoded(name, "failed", error=segment), None
    try:
        return _encoded(vlm, library, name, segment, waiting, share, rows)
    except FAILURES as error:
        return Encoded(name, "failed", error=_reason(error)), None


def _encoded(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    name: str,
    segment: Segment,
    waiting: set[str],
    share: float | None,
    rows: Sequence[RowStage],
) -> tuple[Encoded, kj.Chunk | None]:
    key = canonical_key(segment, vlm.spec, preamble_chunk(vlm).key)
    tokens = int(segment.length)
    if key in waiting or library.has(key):
        return Encoded(name, "known", key, tokens, nbytes=tokens * vlm.spec.token_bytes), None
    start = time.perf_counter()
    chunk = encode_segment(vlm, segment)
    if share is not None:
        with suppress(SharedRowsError):  # one pair of frames, say, at the end of a file: it keeps all its rows
            chunk = kj.share_rows(vlm, chunk, share)
    chunk = select_rows(vlm, chunk, rows)
    jax.block_until_ready(chunk.kv)
    seconds = time.perf_counter() - start
    return Encoded(name, "encoded", chunk.key, tokens, chunk.length, chunk.nbytes, seconds), chunk


def run(options: Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes.

    For a chunk of each length it has the reuses after which a patch has paid: computed, or measured where asked for.

    Raises:
        ValueError: there is nothing to encode.
        UnfinishedError: some items could not be encoded, or Ctrl-C came; the others are in the library.
    """
    check_dtype(options.dtype)
    files = sources(
        options.paths, dpi=options.dpi, frames=options.frames, segment=options.segment, with_text=options.with_text
    )
    check_with_text(files, with_text=options.with_text)
    for source in files:
        if source.note:
            print(shortened(source.note, COLUMNS))
    stages_of(options.storage, options.share_frames)
    note_embedded(options.model)
    vlm = load(options.model, dtype=options.dtype)
    total = sum(source.count for source in files)
    with kj.ChunkLibrary.open(options.library, mode="a") as library:
        done = _shown(vlm, library, files, total, options.storage, options.share_frames)
        stopped = done.interrupted or done.broken
        measured = [] if stopped or not options.measure else _timed(vlm, library, done)
    paid = measured if options.measure else worth.rows(vlm, (each.tokens for each in done.items if _is_new(each)))
    _print_worth(paid, measured=options.measure)
    counts = {status: sum(each.status == status for each in done.items) for status in ("encoded", "known", "failed")}
    size = sum(each.nbytes for each in done.items if each.status == "encoded")
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {kibibytes(size)} of KV added")
    if options.share_frames is not None:
        new = [each for each in done.items if _is_new(each)]
        kept = f"{sum(each.rows for each in new):,} rows of {sum(each.tokens for each in new):,} tokens"
        print(f"{kept} are kept; frames share from a cosine of {options.share_frames:g}")
    result = {"library": str(options.library), "model": options.model, "items": [asdict(each) for each in done.items]}
    result |= {
        **counts,
        "dtype": vlm.spec.dtype,
        "interrupted": done.interrupted,
        "frames_left_out": {str(source.path): source.left_out for source in files if source.left_out},
        "break_even": paid,
        "break_even_is": "measured" if options.measure else "computed from FLOPs",
    }
    stored = counts["encoded"] + counts["known"]
    total = max(total, len(done.items))  # a video's segments are counted as they come
    if done.interrupted:
        raise UnfinishedError(f"interrupted: {stored} of {total} items are in {options.library}", result, 130)
    if done.broken is not None:
        raise UnfinishedError(
            f"kamera: {options.library} takes no more ({done.broken}); {stored} of {total} items are in it", result
        )
    if counts["failed"]:
        raise UnfinishedError(
            f"kamera: {counts['failed']} of {len(done.items)} items could not be encoded; they are named above", result
        )
    return result


def _is_new(each: Encoded) -> bool:
    return each.status == "encoded"


def _print_worth(rows: Sequence[dict[str, Any]], *, measured: bool) -> None:
    """Print after how many reuses a patch has paid, and how that is known."""
    for row in rows:
        even = row["break_even"]
        paid_after = f"pays after {even:.1f} reuses" if even is not None and even > 0 else "does not pay"
        if measured:
            costs = f"a reuse {row['apply_ms']:.1f} ms, a prefill {row['reprefill_ms']:.1f} ms"
        else:
            costs = f"a reuse {row['apply_flops'] / row['reprefill_flops']:.1%} of a prefill"
        print(f"{row['tokens']:5} tokens: {costs}; a patch {paid_after}")
    if rows and not measured:
        print(worth.HOW)


def _shown(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    files: Sequence[Source],
    total: int,
    storage: Storage,
    share: float | None,
) -> Progressed:
    """What `encode_into` does, with a line for each item and a bar."""
    bar = Progress(
        TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), transient=True
    )
    start = time.perf_counter()
    tokens = 0
    with bar:
        task = bar.add_task("", total=total, rate="")

        def report(each: Encoded) -> None:
            nonlocal tokens
            tokens += each.tokens if each.status == "encoded" else 0
            bar.console.print(line(each), markup=False, highlight=False)
            if each.note is not None and each.key is not None:
                bar.console.print(printable(f"  {each.name}: {each.note}"), markup=False, highlight=False)
            rate = tokens / (time.perf_counter() - start)
            done = bar.tasks[0].completed + 1
            bar.update(task, completed=done, total=max(total, done), rate=f"{rate:.0f} tokens/s")

        return encode_into(vlm, library, files, storage=storage, share=share, report=report)


def _timed(vlm: VisionLanguageModel, library: kj.ChunkLibrary, done: Progressed) -> list[dict[str, Any]]:
    """What steps take with one chunk of each padded length; nothing of those that are long, or after Ctrl-C."""
    came = {bucket(each.tokens): each for each in done.items if _is_new(each) and each.key is not None}
    rows: list[dict[str, Any]] = []
    limit = vlm.spec.max_positions
    try:
        for each in came.values():
            room = limit is None or 2 * each.tokens + preamble_chunk(vlm).length <= limit
            if each.tokens <= TIMED_TOKENS and room and each.key is not None:
                chunk = library.get(each.key)
                rows.append(lifetime(vlm, chunk, chunk, None, RUNS))
    except KeyboardInterrupt:
        done.interrupted = True
    except FAILURES:  # everything is stored: only this is lacking
        return rows
    return rows


def line(each: Encoded) -> str:
    """An item's line, within 80 columns; the part of the key that is shown is enough for ``--item``."""
    if each.key is None:
        return printable(f"failed: {each.name}: {each.error}")
    rows = f"{each.rows} rows of " if 0 < each.rows < each.tokens else ""
    size = f"{f'{rows}{each.tokens}':>5} tokens {kibibytes(each.nbytes):>11}"
    row = f"{each.key[:KEY]}  {size}  {each.status:7}  "
    return row + shortened(each.name, COLUMNS - len(row))
