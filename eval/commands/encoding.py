"""Encoding items into a chunk library: what the library has not yet, in batches, so that little is lost."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import jax

import kamera_jax as kj
from eval.commands.items import Part, Source
from kamera_jax.compress.codec import codec
from kamera_jax.compress.stage import RowStage
from kamera_jax.errors import CodecError, SharedRowsError
from kamera_jax.forward import preamble_chunk
from kamera_jax.identity import EXACT, canonical_key
from kamera_jax.inference.encode import encode_segment
from kamera_jax.inference.selection import select_rows
from kamera_jax.kv import Segment
from kamera_jax.library.rows import Storage
from models.media.video_files import video_file
from models.vlm import VisionLanguageModel

FAILURES = (ValueError, OSError, MemoryError, RuntimeError)
"""What an item that cannot be encoded raises: also where the device lacks memory for it, which JAX says so."""

BATCH = 16
"""How many chunks are written together: at most so many are lost where a run is killed."""


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
        died: workers that died, and how; what they had not stored is among the items, as failed.
    """

    items: list[Encoded] = field(default_factory=list)
    interrupted: bool = False
    broken: str | None = None
    died: list[str] = field(default_factory=list)


def encode_into(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    items: Iterable[Source],
    *,
    storage: Storage = "exact",
    share: float | None = None,
    report: Callable[[Encoded, Source], None] = lambda *_: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Progressed:
    """Encode the items that the library does not have yet, so that an interrupted run goes on where it stopped.

    What was encoded when Ctrl-C comes is still put into the library.

    Args:
        vlm: the model.
        library: open for writing.
        items: the files to encode; an item that cannot be read is reported, and the others are encoded.
        storage: see `ChunkLibrary.put`; a codec that chooses rows may stand here too, for the model is at hand.
        share: threshold of `kamera_jax.share_rows` for what comes of videos; None to keep all rows.
        report: called for every item and the file it is of, once it is in the library.
        stopped: asked before every item; once it says so, what follows is as after Ctrl-C.
    """
    done = Progressed()
    files: list[Source] = []
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
            report(done.items[place], files[place])
        waiting.clear()

    try:
        for source in items:
            shared = share if video_file(source.path) is not None else None
            for part, segment in _segments(vlm, source):
                if stopped():
                    raise KeyboardInterrupt
                here = {chunk.key for _, chunk in waiting}
                result, chunk = _tried(vlm, library, part.name, segment, here, shared, rows)
                origin = part.origin if result.status == "encoded" else replace(part.origin, encoded=None)
                result = replace(result, origin=origin, note=part.note)
                files.append(source)
                done.items.append(result)
                if chunk is None:
                    report(result, source)
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
