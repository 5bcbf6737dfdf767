"""`kamera ask`: a question about images and text files, answered by the chosen method."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import kamera_jax as kj
from eval.commands import streams
from eval.commands.arguments import check_dtype
from eval.commands.items import Source, check_with_text, is_path, sources
from eval.commands.library import whole_key
from eval.commands.names import note_embedded
from eval.commands.stored import stored_patch
from eval.methods.reuse import even_rank
from eval.methods.sizes import PatchSize, patch_size
from eval.report.console import counted
from kamera_jax.errors import ModelLengthError, WindowFullError
from kamera_jax.handle import in_bytes
from kamera_jax.inference.decoding import Decoding
from kamera_jax.patch.size import Size
from kamera_jax.session.searching import found_with
from kamera_jax.window.window import aligned
from models import load
from models.media import spans
from models.vlm import VisionLanguageModel

ROOM = 64
"""Slots that are free beside question and answer, for what closes the turn."""


class Shown:
    """Progress on standard error, on a terminal alone; it goes when it is done, and before an answer is printed."""

    def __init__(self) -> None:
        """Show nothing yet."""
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Shown":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self, what: str, done: int = 0, total: int | None = None) -> None:
        """Show what is being done, and how far that is."""
        self._bar.update(self._task, description=what if total is None else f"{what} {done}/{total}")

    def stop(self) -> None:
        """Take the display away; nothing is shown any more."""
        self._bar.stop()


def run(options: Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes.

    Raises:
        ValueError: an item cannot be read, or something does not fit the window or the model's length.
    """
    check_dtype(options.dtype)
    drawn = _drawn(options)
    if not options.items and options.library is None:
        raise ValueError("there is nothing to ask about; give --item, or --library to search it")
    lib = None if options.library is None else kj.ChunkLibrary.open(options.library)
    listed = [each for text in options.items for each in _listed(text, lib, options)]
    check_with_text([each for each in listed if isinstance(each, Source)], with_text=options.with_text)
    with Shown() as shown:
        shown.step(f"loading {options.model}")
        vlm = load(options.model, dtype=options.dtype, weights=options.weights)
        limit = vlm.spec.max_positions
        if limit is not None and options.max_new_tokens > limit:  # before a window is made for them
            raise ModelLengthError(
                f"--max-new-tokens is {options.max_new_tokens}, and the model is for {limit} positions; ask for fewer"
            )
        note_embedded(options.model)
        found: list[dict[str, Any]] = []
        given: list[kj.Patch | None] | None = None
        if lib is not None and not options.items:
            shown.step(f"searching {options.library}")
            listed, given, found = _found(vlm, lib, options)
        window, stored = _filled(vlm, lib, listed, given, options, shown)
        result = _asked(vlm, window, options, drawn, shown) | {"stored_patches": stored}
        return result | ({"found": found} if found else {})


def _found(
    vlm: VisionLanguageModel, lib: kj.ChunkLibrary, options: Namespace
) -> tuple[list[kj.Chunk], list[kj.Patch | None] | None, list[dict[str, Any]]]:
    """The chunks that match the question, the best last, the patches found with them, and what ``--json`` has.

    With ``--linked`` each stands behind what its patch was formed behind, and patches are as of any items.

    Raises:
        RetrievalError: nothing says by which heads the model finds chunks.
        ValueError: the library has none of the model's chunks.
    """
    hits = kj.Finder(vlm, lib).find(options.question, options.top)
    if not hits:
        raise ValueError(f"{options.library} has no chunks of {options.model}; see kamera library ls")
    for hit in hits:
        origin = lib.info(hit.key).origin
        where = "" if origin is None else f" of {origin.name}"
        streams.note(f"found {hit.key[:12]}{where}, score {hit.score:.2f}")
    found = [{"key": hit.key, "score": hit.score, "antecedents": list(hit.antecedents)} for hit in hits]
    if options.linked:
        keys = dict.fromkeys(key for hit in reversed(hits) for key in (*hit.antecedents, hit.key))
        return [lib.get(key) for key in keys], None, found
    chunks, patches = map(list, zip(*(found_with(lib, hit) for hit in reversed(hits)), strict=True))
    return chunks, patches, found


def _filled(
    vlm: VisionLanguageModel,
    lib: kj.ChunkLibrary | None,
    listed: Sequence[Any],
    given: list[kj.Patch | None] | None,
    options: Namespace,
    shown: Shown,
) -> tuple[kj.Window, int]:
    """The window with all items, by the chosen method, and how many of its patches the library had.

    By the method ``patch``, without a size, patches that are given are those of the chunks.
    """
    count = sum(1 if isinstance(each, kj.Chunk) else each.count for each in listed)
    if options.method == "full":
        items: list[Any] = []
        for item in _read(vlm, listed):
            items.append(item)
            shown.step("reading items", len(items), count)
        shown.step(f"running the model over {count} items")
        return kj.prefill(vlm, items, capacity=_capacity(vlm, map(_length, items), options)), 0
    chunks: list[kj.Chunk] = []
    shown.step("encoding items", 0, count)
    for item in _read(vlm, listed):
        chunks.append(item if isinstance(item, kj.Chunk) else kj.encode(vlm, item))
        shown.step("encoding items", len(chunks), count)
    window = kj.Window.empty(vlm, _capacity(vlm, (chunk.length for chunk in chunks), options))
    patches: list[kj.Patch | None] = [None] * len(chunks)
    stored = 0
    if options.method == "patch" and given is not None:
        patches = given
        stored = len(chunks) - patches.count(None)
    elif options.method != "blind":
        asked = patch_size(options.method.partition(":")[2])
        sizes = [_size(vlm, chunk, asked) for chunk in chunks]
        if lib is not None:
            patches[1:] = [
                stored_patch(lib, chunk, chunks[:place], together=chunks, size=sizes[place])
                for place, chunk in enumerate(chunks[1:], start=1)
            ]
            stored = len(chunks) - patches.count(None)
        _form(vlm, chunks, sizes, patches, shown)
    for chunk, patch in zip(chunks, patches, strict=True):
        window = kj.append(window, chunk, patch)
    return window, stored


def _form(
    vlm: VisionLanguageModel,
    chunks: Sequence[kj.Chunk],
    sizes: Sequence[Size],
    patches: list[kj.Patch | None],
    shown: Shown,
) -> None:
    """Form the patches that are missing, of all chunks but the first, each behind those before it."""
    missing = [place for place in range(1, len(chunks)) if patches[place] is None]
    shown.step("forming patches", 0, len(missing))
    if len(missing) == len(chunks) - 1 > 1 and len(set(sizes)) == 1:  # from the forwards of one prefill
        patches[1:] = kj.form_patches(vlm, chunks, **sizes[0].asked)[1][1:]
        return
    for done, place in enumerate(missing, start=1):
        patches[place] = kj.form_patch(vlm, chunks[place], antecedents=chunks[:place], **sizes[place].asked)
        shown.step("forming patches", done, len(missing))


def _size(vlm: VisionLanguageModel, chunk: kj.Chunk, asked: PatchSize) -> Size:
    """The size of a chunk's patch, as `kamera_jax.form_patch` is asked for it."""
    if asked.share is not None:
        return Size(max_bytes=int(asked.share * chunk.nbytes))
    if asked.even_share is not None:
        return Size(rank=even_rank(vlm.spec, chunk.length, int(asked.even_share * chunk.nbytes)))
    return Size(rank=asked.rank, energy=asked.energy, max_bytes=asked.max_bytes)


def _capacity(vlm: VisionLanguageModel, lengths: Any, options: Namespace) -> int:
    """Slots of the window.

    Raises:
        WindowFullError: ``--capacity`` is less than what is to be in it.
    """
    slots = aligned(int(vlm.preamble.length)) + sum(aligned(length) for length in lengths)
    needed = slots + int(vlm.tail(options.question).length) + options.max_new_tokens
    if options.capacity is None:
        return needed + ROOM + len(vlm.closing)
    if options.capacity < needed:
        raise WindowFullError(
            f"--capacity is {options.capacity}, and the items take {slots} slots, the question and an answer of "
            f"{options.max_new_tokens} tokens {needed - slots}: give at least {needed}, or ask about fewer items"
        )
    return options.capacity


def _length(item: Any) -> int:
    """The tokens of a chunk, or of a preprocessed item."""
    return item.length if isinstance(item, kj.Chunk) else sum(len(span.ids) for span in item.spans)


def _drawn(options: Namespace) -> dict[str, Any]:
    """How tokens are drawn, as `kamera_jax.generate` takes it.

    Raises:
        ValueError: it cannot be.
    """
    key = jax.random.key(options.seed) if options.temperature else None
    drawn = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p, "key": key}
    Decoding(**drawn)
    return drawn


def _asked(
    vlm: VisionLanguageModel, window: kj.Window, options: Namespace, drawn: dict[str, Any], shown: Shown
) -> dict[str, Any]:
    """The answer, printed as it comes, and what ``--json`` writes of it."""
    shown.step("reading the question")

    def show(text: str) -> None:
        shown.stop()
        print(text, end="", flush=True)

    given = {"max_new_tokens": options.max_new_tokens, "stream": show, "keep": False}
    answer = kj.generate(vlm, window, options.question, **given, **drawn)
    shown.stop()
    print(flush=True)
    patched = [entry.patch for entry in window.entries if entry.patch is not None]
    result = {
        "question": options.question,
        "answer": answer.text,
        "method": options.method,
        "items": options.items,
        "ttft_s": answer.ttft_s,
        "kv_bytes": sum(entry.chunk.nbytes for entry in window.entries),
        "patch_bytes": sum(patch.nbytes for patch in patched),
        "model": options.model,
        "dtype": vlm.spec.dtype,
        "weights": options.weights or vlm.spec.dtype,
        "capacity": window.capacity,
        "chunks": len(window.entries),
        "patches": len(patched),
        "tokens": sum(entry.chunk.length for entry in window.entries),
        "answer_tokens": len(answer.tokens),
    }
    streams.note(_summary(result))
    return result


def _summary(result: dict[str, Any]) -> str:
    """What was run, in a line."""
    chunks = counted(result["chunks"], "chunk")
    what = f"{chunks} of {result['tokens']} tokens ({in_bytes(result['kv_bytes'])} of KV)"
    if result["method"] == "full":
        ran = "run together"
    elif result["patches"]:
        size = in_bytes(result["patch_bytes"])
        ran = f"encoded apart, {counted(result['patches'], 'patch', 'patches')} of {size}"
    else:
        ran = "encoded apart, no patch"
    return f"{result['method']}: {what}, {ran}; {result['ttft_s']:.2f} s to the first token"


def _listed(text: str, lib: kj.ChunkLibrary | None, options: Namespace) -> list[Any]:
    """The files of a path, which are not read yet, or a chunk of the library by its key or the beginning of its key.

    Frames of a file that are not read are reported on stderr.

    Raises:
        ValueError, OSError: there is neither, or a file cannot be opened.
    """
    if lib is not None and not is_path(text):
        return [lib.get(whole_key(lib, text))]
    files = sources(
        [Path(text)], dpi=options.dpi, frames=options.frames, segment=options.segment, with_text=options.with_text
    )
    for source in files:
        if source.error is not None:
            raise source.error
        if source.note:
            streams.note(source.note)
    return list(files)


def _read(vlm: VisionLanguageModel, listed: Sequence[Any]) -> Iterator[Any]:
    """The items one after another, of which a model's length is not exceeded: no page is rendered behind it.

    Raises:
        ModelLengthError: together they are longer than the model.
        ValueError: one cannot be read.
    """
    limit = vlm.spec.max_positions
    taken = float(vlm.preamble.length)
    for each in listed:
        for name, item in [("", each)] if isinstance(each, kj.Chunk) else each.items(vlm, streams.note):
            read = item if isinstance(item, kj.Chunk) else vlm.preprocess(item)
            taken += read.advance if isinstance(read, kj.Chunk) else spans.advance_of(read.spans)
            if limit is not None and taken > limit:
                raise ModelLengthError(
                    f"the items up to {name or each.key} take {taken:g} positions; the model is for {limit}: ask about "
                    "fewer, or shorter ones"
                )
            yield read
