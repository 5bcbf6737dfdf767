"""`kamera encode`: images, text files, PDF files and folders of them into a chunk library."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import kamera_jax as kj
from eval.commands.bench import lifetime
from eval.commands.items import Source, sources
from eval.commands.library import KEY
from eval.report.console import kibibytes
from kamera_jax.forward import preamble_chunk
from kamera_jax.identity import canonical_key
from kamera_jax.inference.encode import encode_segment
from kamera_jax.kv import Segment, bucket
from kamera_jax.library.rows import Storage
from models import load
from models.vlm import VisionLanguageModel

BATCH = 16
"""How many chunks are written together: at most so many are lost where a run is killed."""

RUNS = 3
"""How often each step is timed at the end; the median counts."""


@dataclass(frozen=True)
class Encoded:
    """The outcome for one item.

    Attributes:
        name: the item's name, for messages.
        status: ``"encoded"``, ``"known"`` (the library had it) or ``"failed"``.
        key: the chunk's key; None if it failed.
        tokens: the chunk's tokens.
        nbytes: bytes of its KV.
        seconds: seconds that encoding took.
        error: why it failed.
    """

    name: str
    status: str
    key: str | None = None
    tokens: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    error: str | None = None


def encode_into(
    vlm: VisionLanguageModel,
    library: kj.ChunkLibrary,
    items: Sequence[Source],
    *,
    storage: Storage = "exact",
    report: Callable[[Encoded], None] = lambda _: None,
) -> list[Encoded]:
    """Encode the items that the library does not have yet, so that an interrupted run goes on where it stopped.

    Args:
        vlm: the model.
        library: open for writing.
        items: the files to encode; an item that cannot be read is reported, and the others are encoded.
        storage: see `ChunkLibrary.put`.
        report: called for every item, once it is in the library.
    """
    done: list[Encoded] = []
    waiting: list[tuple[Encoded, kj.Chunk]] = []

    def put() -> None:
        library.put_many([chunk for _, chunk in waiting], storage=storage)
        for result, _ in waiting:
            report(result)
        waiting.clear()

    for source in items:
        for name, segment in _segments(vlm, source):
            if isinstance(segment, str):
                result = Encoded(name, "failed", error=segment)
                chunk = None
            else:
                result, chunk = _encoded(vlm, library, name, segment, {chunk.key for _, chunk in waiting})
            done.append(result)
            if chunk is None:
                report(result)
                continue
            waiting.append((result, chunk))
            if len(waiting) == BATCH:
                put()
    put()
    return done


def _segments(vlm: VisionLanguageModel, source: Source) -> Iterator[tuple[str, Segment | str]]:
    """Names and prepared items of a file; where an item cannot be read, the reason in its place."""
    name = source.path.name
    try:
        for name, item in source.items():
            yield name, vlm.prepare(item)
    except (ValueError, OSError) as error:
        yield name, str(error)


def _encoded(
    vlm: VisionLanguageModel, library: kj.ChunkLibrary, name: str, segment: Segment, waiting: set[str]
) -> tuple[Encoded, kj.Chunk | None]:
    key = canonical_key(segment, vlm.spec, preamble_chunk(vlm).key)
    tokens = int(segment.length)
    if key in waiting or library.has(key):
        return Encoded(name, "known", key, tokens, tokens * vlm.spec.token_bytes), None
    start = time.perf_counter()
    chunk = encode_segment(vlm, segment)
    jax.block_until_ready(chunk.kv)
    return Encoded(name, "encoded", chunk.key, chunk.length, chunk.nbytes, time.perf_counter() - start), chunk


def run(options: Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes.

    For a chunk of each padded length it has the reuses after which a patch has paid.

    Raises:
        ValueError: there is nothing to encode, or some items could not be encoded; the others are in the library then.
    """
    files = sources(options.paths, dpi=options.dpi, frames=options.frames)
    for source in files:
        if source.note:
            print(source.note[:80])
    vlm = load(options.model)
    bar = Progress(
        TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), transient=True
    )
    total = sum(source.count for source in files)
    start = time.perf_counter()
    with kj.ChunkLibrary.open(options.library, mode="a") as library, bar:
        task = bar.add_task("", total=total, rate="")
        tokens = 0

        def report(each: Encoded) -> None:
            nonlocal tokens
            tokens += each.tokens if each.status == "encoded" else 0
            bar.console.print(line(each), markup=False, highlight=False)
            rate = tokens / (time.perf_counter() - start)
            bar.update(task, advance=1, rate=f"{rate:.0f} tokens/s")

        done = encode_into(vlm, library, files, storage=options.storage, report=report)
        came = {bucket(each.tokens): each.key for each in done if each.status == "encoded" and each.key is not None}
        paid = [lifetime(vlm, chunk, chunk, None, RUNS) for chunk in map(library.get, came.values())]
    for row in paid:
        paid_after = f"pays after {row['break_even']:.1f} reuses" if row["break_even"] > 0 else "does not pay"
        print(
            f"{row['tokens']:5} tokens: a reuse {row['apply_ms']:.1f} ms, a prefill {row['reprefill_ms']:.1f} ms; "
            f"a patch {paid_after}"
        )
    counts = {status: sum(each.status == status for each in done) for status in ("encoded", "known", "failed")}
    size = sum(each.nbytes for each in done if each.status == "encoded")
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {kibibytes(size)} of KV added")
    if counts["failed"]:
        raise ValueError(f"{counts['failed']} of {len(done)} items could not be encoded; they are named above")
    return {"library": str(options.library), "model": options.model, "items": [asdict(each) for each in done]} | {
        **counts,
        "frames_left_out": {str(source.path): source.left_out for source in files if source.left_out},
        "break_even": paid,
    }


def line(each: Encoded) -> str:
    """An item's line, within 80 columns; the part of the key that is shown is enough for ``--item``."""
    if each.key is None:
        return f"failed: {each.name}: {each.error}"
    return f"{each.key[:KEY]}  {each.tokens:5} tokens {kibibytes(each.nbytes):>11}  {each.status:7}  {each.name}"[:80]
