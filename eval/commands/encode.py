"""`kamera encode`: images, text, PDF and video files and folders of them into a chunk library."""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import kamera_jax as kj
from eval.commands import paying, workers
from eval.commands.arguments import check_dtype
from eval.commands.encoding import Encoded, Progressed, encode_into, stages_of
from eval.commands.items import Source, check_with_text, part_of, pieces, run_length, sources
from eval.commands.library import KEY
from eval.commands.names import COLUMNS, note_embedded, printable, shortened
from eval.commands.outputs import UnfinishedError
from eval.report.console import kibibytes
from models import load


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
    share = _share(options)
    items = files if share is None else part_of(files, *share)
    done, paid, dtype = (_alone if options.workers == 1 else _together)(options, items)
    return _concluded(options, files, items, done, paid, dtype)


def _share(options: Namespace) -> tuple[int, int] | None:
    """Which of how many processes of several hosts this is, from 0: as given, or as a job of `jax.distributed` says."""
    import jax

    if options.share is not None:
        return options.share
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        return jax.process_index(), jax.process_count()
    return None


def _alone(options: Namespace, items: Sequence[Source]) -> workers.Outcome:
    """Encode in this process."""
    vlm = load(options.model, dtype=options.dtype)
    with kj.ChunkLibrary.open(options.library, mode="a", lock=options.lock) as library:
        with _shown("encoding", items) as report:
            done = encode_into(
                vlm,
                library,
                items,
                storage=options.storage,
                share=options.share_frames,
                report=lambda each, _: report(each),
            )
        if options.measure and (done.interrupted or done.broken):
            return done, [], vlm.spec.dtype
        try:
            paid = paying.rows(vlm, library, done.items, measure=options.measure)
        except KeyboardInterrupt:
            done.interrupted = True
            paid = []
    return done, paid, vlm.spec.dtype


def _together(options: Namespace, items: Sequence[Source]) -> workers.Outcome:
    """Encode in processes that share the items."""
    cut = pieces(items, run_length(items, options.workers))
    count = min(options.workers, len(cut))
    with _shown(f"encoding, {count} workers", items) as report:
        return workers.encode(options, cut, count, report)


def _concluded(
    options: Namespace,
    files: Sequence[Source],
    items: Sequence[Source],
    done: Progressed,
    paid: list[dict[str, Any]],
    dtype: str | None,
) -> dict[str, Any]:
    """Say what came of it; see `run`."""
    _print_worth(paid, measured=options.measure)
    counts = {status: sum(each.status == status for each in done.items) for status in ("encoded", "known", "failed")}
    size = sum(each.nbytes for each in done.items if each.status == "encoded")
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {kibibytes(size)} of KV added")
    if options.share_frames is not None:
        new = [each for each in done.items if each.status == "encoded"]
        kept = f"{sum(each.rows for each in new):,} rows of {sum(each.tokens for each in new):,} tokens"
        print(f"{kept} are kept; frames share from a cosine of {options.share_frames:g}")
    result = {"library": str(options.library), "model": options.model, "items": [asdict(each) for each in done.items]}
    result |= {
        **counts,
        "dtype": dtype,
        "interrupted": done.interrupted,
        "workers_died": done.died,
        "frames_left_out": {str(source.path): source.left_out for source in files if source.left_out},
        "break_even": paid,
        "break_even_is": "measured" if options.measure else "computed from FLOPs",
    }
    stored = counts["encoded"] + counts["known"]
    total = max(sum(source.count for source in items), len(done.items))  # a video's segments are counted as they come
    if done.interrupted:
        raise UnfinishedError(f"interrupted: {stored} of {total} items are in {options.library}", result, 130)
    if done.broken is not None:
        raise UnfinishedError(
            f"kamera: {options.library} takes no more ({done.broken}); {stored} of {total} items are in it", result
        )
    if done.died:
        raise UnfinishedError(
            f"kamera: {'; '.join(done.died)}; {stored} of {total} items are in {options.library}, and the same command "
            "encodes what is missing",
            result,
        )
    if counts["failed"]:
        raise UnfinishedError(
            f"kamera: {counts['failed']} of {len(done.items)} items could not be encoded; they are named above", result
        )
    return result


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
        print(paying.HOW)


@contextmanager
def _shown(words: str, items: Sequence[Source]) -> Iterator[Callable[[Encoded], None]]:
    """The context with a bar for items, in which what is given takes the outcome of each and prints its line."""
    bar = Progress(
        TextColumn(words), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), transient=True
    )
    total = sum(source.count for source in items)
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

        yield report


def line(each: Encoded) -> str:
    """An item's line, within 80 columns; the part of the key that is shown is enough for ``--item``."""
    if each.key is None:
        return printable(f"failed: {each.name}: {each.error}")
    rows = f"{each.rows} rows of " if 0 < each.rows < each.tokens else ""
    size = f"{f'{rows}{each.tokens}':>5} tokens {kibibytes(each.nbytes):>11}"
    row = f"{each.key[:KEY]}  {size}  {each.status:7}  "
    return row + shortened(each.name, COLUMNS - len(row))
