"""`kamera patch`: patches of what is asked about together, into a chunk library."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import kamera_jax as kj
from eval.commands.arguments import DEFAULT
from eval.commands.items import check_with_text, is_path, sources
from eval.commands.library import KEY, whole_key
from eval.commands.names import COLUMNS, note_embedded, shortened
from eval.commands.stored import formed_key
from eval.report.console import kibibytes
from kamera_jax.errors import LibraryNotFoundError, ModelMismatchError
from kamera_jax.forward import preamble_chunk
from kamera_jax.identity import canonical_key
from kamera_jax.inference.encode import encode_segment
from kamera_jax.patch.size import Size
from models import load
from models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Listed:
    """A chunk that is asked about, and how it came.

    Attributes:
        chunk: the chunk.
        name: of its file and page, or the beginning of its key.
        status: ``"encoded"``, or ``"known"`` where the library had it.
    """

    chunk: kj.Chunk
    name: str
    status: str


def run(options: Namespace) -> dict[str, Any]:
    """Run the command; returns what ``--json`` writes.

    Raises:
        ValueError: an item cannot be read, is of another model, or there are fewer than two.
    """
    given = [_given(text, options) for text in options.items]
    files = [source for each in given if not isinstance(each, str) for source in each]
    check_with_text(files, with_text=options.with_text)
    if (key := next((each for each in given if isinstance(each, str)), None)) is not None:
        _check_library(options.library, key)
    size = Size(rank=options.rank, energy=options.energy, max_bytes=options.bytes)
    with kj.ChunkLibrary.open(options.library, mode="a") as library:
        for place, each in enumerate(given):
            if isinstance(each, str):
                given[place] = library.info(whole_key(library, each)).key
        note_embedded(options.model)
        vlm = load(options.model)
        listed = _chunks(vlm, library, given)
        _check(listed, options)
        patches = _formed(vlm, library, [each.chunk for each in listed], size, any_order=options.any_order)
        library.put_many([patch for patch, is_new in patches if is_new])
    _print(listed, [patch for patch, _ in patches], options)
    return {
        "library": str(options.library),
        "model": options.model,
        "any_order": options.any_order,
        "items": [
            {"key": each.chunk.key, "name": each.name, "status": each.status, "tokens": each.chunk.length}
            for each in listed
        ],
        "patches": [
            {
                "key": patch.key,
                "chunk": patch.chunk,
                "antecedents": list(patch.antecedents),
                "bytes": patch.nbytes,
                "share": patch.nbytes / chunk.nbytes,
                "status": "formed" if is_new else "known",
            }
            for (patch, is_new), chunk in zip(patches, _patched(listed, options.any_order), strict=True)
        ],
    }


def _given(text: str, options: Namespace) -> Any:
    """The files of a path, or the text itself, which is a key then.

    Raises:
        ValueError, OSError: a file cannot be opened.
    """
    if not is_path(text):
        return text
    files = sources(
        [Path(text)], dpi=options.dpi, frames=options.frames, segment=options.segment, with_text=options.with_text
    )
    for source in files:
        if source.error is not None:
            raise source.error
        if source.note:
            print(shortened(source.note, COLUMNS), file=sys.stderr)
    return files


def _check_library(folder: Path, key: str) -> None:
    """Raise ValueError unless there is a library that a key may be of: none is made for it."""
    try:
        kj.ChunkLibrary.open(folder)
    except LibraryNotFoundError as error:
        raise LibraryNotFoundError(
            f"there is no file or folder {key}, and {folder} is no library of which it could be a key: {error}"
        ) from error


def _chunks(vlm: VisionLanguageModel, library: kj.ChunkLibrary, given: Sequence[Any]) -> list[Listed]:
    """The chunks in order; those that the library does not have are encoded and put into it."""
    listed: list[Listed] = []
    for each in given:
        if isinstance(each, str):
            item = library.info(each)
            if item.fields["model"] != vlm.spec.fingerprint:
                raise ModelMismatchError(
                    f"chunk {each[:KEY]} was encoded by model {item.fields['model'][:KEY]}, this is "
                    f"{vlm.spec.fingerprint[:KEY]}; name its model with --model"
                )
            name = each[:KEY] if item.origin is None else item.origin.name
            listed.append(Listed(library.get(each), name, "known"))
            continue
        for part in (part for source in each for part in source.parts(vlm)):
            if isinstance(part.item, ValueError | OSError):
                raise part.item
            if part.note is not None:
                print(shortened(f"{part.name}: {part.note}", COLUMNS), file=sys.stderr)
            segment = vlm.prepare(part.item)
            key = canonical_key(segment, vlm.spec, preamble_chunk(vlm).key)
            if library.has(key):
                listed.append(Listed(library.get(key), part.name, "known"))
                continue
            chunk = encode_segment(vlm, segment)
            library.put(chunk, origin=part.origin)
            listed.append(Listed(chunk, part.name, "encoded"))
    return listed


def _check(listed: Sequence[Listed], options: Namespace) -> None:
    if len(listed) < 2:
        raise ValueError(
            f"a patch is what an item absorbs from those before it; got {len(listed)} item: name at least two"
        )
    keys = [each.chunk.key for each in listed]
    if options.any_order and len(set(keys)) < len(keys):
        again = next(each.name for place, each in enumerate(listed) if each.chunk.key in keys[:place])
        raise ValueError(f"{again} is there twice; with --any-order name each item once")


def _patched(listed: Sequence[Listed], any_order: bool) -> list[kj.Chunk]:
    """The chunks that get a patch: all, or all behind the first."""
    return [each.chunk for each in listed][0 if any_order else 1 :]


def _formed(
    vlm: VisionLanguageModel, library: kj.ChunkLibrary, chunks: Sequence[kj.Chunk], size: Size, *, any_order: bool
) -> list[tuple[kj.Patch, bool]]:
    """The patch of each chunk that gets one, and whether the library did not have it."""
    columns = (TextColumn("forming patches"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, transient=True, disable=not sys.stdout.isatty())
    patches: list[tuple[kj.Patch, bool]] = []
    first = 0 if any_order else 1
    with bar:
        task = bar.add_task("", total=len(chunks) - first)
        for place in range(first, len(chunks)):
            others = [*chunks[:place], *(chunks[place + 1 :] if any_order else ())]
            key = formed_key(chunks[place], others, size, any_order=any_order)
            if key and library.has(key):
                patches.append((library.get_patch(key), False))
            else:
                given: dict[str, Any] = size.asked | {"any_order": any_order}
                patches.append((kj.form_patch(vlm, chunks[place], antecedents=others, **given), True))
            bar.update(task, advance=1)
    return patches


def _print(listed: Sequence[Listed], patches: Sequence[kj.Patch], options: Namespace) -> None:
    console = Console(emoji=False, highlight=False, markup=False, soft_wrap=True)
    for each in listed:
        row = f"{each.chunk.key[:KEY]}  chunk {kibibytes(each.chunk.nbytes):>11}  {each.status:8}"
        console.print(row + shortened(each.name, COLUMNS - len(row)))
    names = {each.chunk.key: each.name for each in listed}
    for patch, chunk in zip(patches, _patched(listed, options.any_order), strict=True):
        share = f"{patch.nbytes / chunk.nbytes:.1%}"
        row = f"{patch.key[:KEY]}  patch {kibibytes(patch.nbytes):>11}  {share:>6}  "
        behind = f" behind {len(patch.antecedents)}" + (", any order" if options.any_order else "")
        console.print(f"{row}{shortened(names[patch.chunk], COLUMNS - len(row) - len(behind))}{behind}")
    arguments = [f"--library {shlex.quote(str(options.library))}"]
    arguments += [] if options.model == DEFAULT else [f"--model {shlex.quote(options.model)}"]
    arguments += [] if options.rank is None else [f"--method patch:{options.rank}"]
    arguments += [f"--item {each.chunk.key[:KEY]}" for each in listed]
    console.print("used by:  kamera ask QUESTION \\\n  " + " \\\n  ".join(arguments))
