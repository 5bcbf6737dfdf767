"""What a library has on a question, for a session to put into its window."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from kamera_jax.arguments import check_type
from kamera_jax.backbone import Backbone
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.finder.finder import Finder, Hit
from kamera_jax.library.library import ChunkLibrary
from kamera_jax.window.checks import is_of_rows


@runtime_checkable
class Searched(Protocol):
    """A library that is searched: a `kamera_jax.Finder`, an `EmbeddingFinder`, or one of the caller's."""

    library: ChunkLibrary

    def find(self, question: str, top: int = 4) -> Sequence[Hit]:
        """See `kamera_jax.Finder.find`."""
        ...


def searched(vlm: Backbone, library: ChunkLibrary | Searched, before: Searched | None) -> Searched:
    """What searches a library: what did before, which knows its keys, where it is the same one.

    Raises:
        RetrievalError: see `kamera_jax.Finder`.
    """
    if isinstance(library, ChunkLibrary):
        return before if before is not None and before.library is library else Finder(vlm, library)
    check_type(library, (Finder, Searched), "library", "kamera_jax.ChunkLibrary.open(folder), or a Finder")
    return library


def found_with(library: ChunkLibrary, hit: Hit) -> tuple[Chunk, Patch | None]:
    """The chunk of a hit, and the patch that it was found with; None where there is none for the rows that are kept."""
    chunk = library.get(hit.key)
    patch = None if hit.patch is None else library.get_patch(hit.patch)
    return chunk, patch if patch is not None and is_of_rows(patch, chunk) else None


def brought(
    finder: Searched, question: str, top: int, keys: Sequence[str], *, linked: bool
) -> Iterator[tuple[Chunk, tuple[Patch, ...], bool | Patch]]:
    """What was found and is not among a window's keys, its stored patches, and what it is to be served with.

    The best comes last: what stands right before the question is what a model reads best. A chunk is served with the
    patch that it was found with, which holds what it read behind others, or without one; ``linked``, these others come
    before it, and the session chooses.
    """
    library = finder.library
    there = set(keys)
    for hit in reversed(finder.find(question, top)):
        if not linked and hit.key not in there:
            chunk, patch = found_with(library, hit)
            yield chunk, () if patch is None else (patch,), False if patch is None else patch
        for key in (*hit.antecedents, hit.key) if linked else ():
            if key not in there:
                yield library.get(key), library.patches(key), True
            there.add(key)
