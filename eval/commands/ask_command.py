"""`kamera ask`: a question about images and text files."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.commands.arguments import add_json, add_model, add_pages, positive


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "ask",
        help="ask a question about images and text files",
        description="Answer a question about the items, put into the window in this order by the chosen method.",
        epilog="example: kamera ask 'what colour is the star?' --item examples/pages/first.png "
        "--item examples/pages/third.png",
    )
    command.add_argument("question")
    command.add_argument(
        "--item",
        dest="items",
        action="append",
        required=True,
        metavar="PATH|KEY",
        help="an image, .txt, .md or .pdf file, a folder of them, or the key of a chunk in the library; repeat it",
    )
    add_pages(command)
    command.add_argument("--library", type=Path, metavar="DIR", help="the library whose chunks are named by their keys")
    add_model(command)
    command.add_argument(
        "--method",
        type=_method,
        default="patch",
        help="full: prefill all together; blind: reuse as encoded alone; patch: reuse with patches of 10 %% of the "
        "chunks' bytes, patch:P%% of P %%, patch:M of rank M (default: patch)",
    )
    command.add_argument(
        "--max-new-tokens", type=positive, default=16, metavar="N", help="longest answer (default: 16)"
    )
    add_json(command)
    return command


def _method(text: str) -> str:
    try:
        if text not in ("full", "blind"):
            _share_or_rank(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            "expected full, blind, patch, patch:P% with a share of the bytes above 0 and up to 100, as in patch:10%, "
            f"or patch:M with a rank M of at least 1; got {text}"
        ) from None
    return text


def _share_or_rank(text: str) -> tuple[float | None, int | None]:
    """The share of the bytes, or the rank, of a patch that is written so; neither for the default."""
    name, given, size = text.partition(":")
    if name != "patch" or bool(given) != bool(size):
        raise ValueError(text)
    if not size:
        return None, None
    if not size.endswith("%"):
        rank = int(size)
        if rank < 1 or not size.isdigit():
            raise ValueError(text)
        return None, rank
    share = float(size[:-1]) / 100
    if not 0 < share <= 1:
        raise ValueError(text)
    return share, None


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes."""
    import kamera_jax as kj
    from eval.commands.names import note_embedded
    from eval.commands.stored import stored_patch
    from kamera_jax.errors import ModelLengthError
    from kamera_jax.patch.size import Size
    from models import load

    lib = None if options.library is None else kj.ChunkLibrary.open(options.library)
    listed = [each for text in options.items for each in _listed(text, lib, options)]
    vlm = load(options.model)
    limit = vlm.spec.max_positions
    if limit is not None and options.max_new_tokens > limit:  # before a window is made for them
        raise ModelLengthError(
            f"--max-new-tokens is {options.max_new_tokens}, and the model is for {limit} positions; ask for fewer"
        )
    note_embedded(options.model)
    stored = 0
    if options.method == "full":
        window = kj.prefill(vlm, list(_read(vlm, listed)))
    else:
        chunks = [item if isinstance(item, kj.Chunk) else kj.encode(vlm, item) for item in _read(vlm, listed)]
        slots = 16 * len(chunks) + sum(chunk.length for chunk in chunks) + vlm.preamble.positions.shape[-1]
        window = kj.Window.empty(vlm, capacity=slots + 256 + options.max_new_tokens)
        share, rank = (None, None) if options.method == "blind" else _share_or_rank(options.method)
        for i, chunk in enumerate(chunks):
            patch = None
            if i and options.method != "blind":
                most = None if share is None else int(share * chunk.nbytes)
                size = Size(rank=rank, max_bytes=most)
                patch = None if lib is None else stored_patch(lib, chunk, chunks[:i], together=chunks, size=size)
                stored += patch is not None
                patch = patch or kj.form_patch(vlm, chunk, antecedents=chunks[:i], rank=rank, max_bytes=most)
            window = kj.append(window, chunk, patch)
    answer = kj.generate(vlm, window, options.question, max_new_tokens=options.max_new_tokens)
    print(answer.text)
    return {
        "question": options.question,
        "answer": answer.text,
        "method": options.method,
        "items": options.items,
        "ttft_s": answer.ttft_s,
        "kv_bytes": sum(entry.chunk.nbytes for entry in window.entries),
        "stored_patches": stored,
        "patch_bytes": sum(entry.patch.nbytes for entry in window.entries if entry.patch is not None),
    }


def _listed(text: str, lib: Any, options: argparse.Namespace) -> list[Any]:
    """The files of a path, which are not read yet, or a chunk of the library by its key or the beginning of its key.

    Frames of a file that are not read are reported on stderr.

    Raises:
        ValueError, OSError: there is neither, or a file cannot be opened.
    """
    from eval.commands.items import is_path, sources
    from eval.commands.library import whole_key

    if lib is not None and not is_path(text):
        return [lib.get(whole_key(lib, text))]
    files = sources([Path(text)], dpi=options.dpi, frames=options.frames)
    for source in files:
        if source.error is not None:
            raise source.error
        if source.note:
            print(source.note, file=sys.stderr)
    return list(files)


def _read(vlm: Any, listed: Sequence[Any]) -> Iterator[Any]:
    """The items one after another, of which a model's length is not exceeded: no page is rendered behind it.

    Raises:
        ModelLengthError: together they are longer than the model.
        ValueError: one cannot be read.
    """
    import kamera_jax as kj
    from kamera_jax.errors import ModelLengthError
    from models.media.spans import advance_of

    limit = vlm.spec.max_positions
    taken = float(vlm.preamble.length)
    for each in listed:
        for name, item in [("", each)] if isinstance(each, kj.Chunk) else each.items():
            read = item if isinstance(item, kj.Chunk) else vlm.preprocess(item)
            taken += read.advance if isinstance(read, kj.Chunk) else advance_of(read.spans)
            if limit is not None and taken > limit:
                raise ModelLengthError(
                    f"the items up to {name or each.key} take {taken:g} positions; the model is for {limit}: ask about "
                    "fewer, or shorter ones"
                )
            yield read
