"""Putting many items: one that cannot be stored costs no other."""

from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import Future, wait

from kamera_jax.arguments import check_type
from kamera_jax.chunk import Chunk, Patch
from kamera_jax.library.commit import PACK_BYTES, Committer
from kamera_jax.library.origin import Origin
from kamera_jax.library.rows import Storage, row_of


def put_all(
    committer: Committer, items: Iterable[Chunk | Patch], storage: Storage, origins: Iterable[Origin | None] | None
) -> list[str]:
    """Store items in packs of 256 MiB, and give their keys; see `ChunkLibrary.put_many`."""
    check_type(items, Iterable, "items", "chunks and patches; for one item [item]")
    check_type(origins, (Iterable, type(None)), "origins", "a list with one for each item")
    futures: list[Future[str]] = []
    size = 0
    try:
        for item, origin in _paired(items, origins):
            try:
                row = row_of(item, storage, origin)
            except ValueError as error:
                futures.append(Future())
                futures[-1].set_exception(error)
                continue
            futures.append(committer.add(row))
            size += row.nbytes
            if size >= PACK_BYTES:
                committer.flush()
                size = 0
    finally:
        committer.flush()
        wait(futures)
    return [future.result() for future in futures]


def _paired(
    items: Iterable[Chunk | Patch], origins: Iterable[Origin | None] | None
) -> Iterator[tuple[Chunk | Patch, Origin | None]]:
    """Items, each with where it came from.

    Raises:
        ValueError: there are more or fewer origins than items; of lists before the first, else where that shows.
    """
    if origins is None:
        yield from ((item, None) for item in items)
        return
    if isinstance(items, Sized) and isinstance(origins, Sized) and len(items) != len(origins):
        raise ValueError(f"there are {len(origins)} origins of {len(items)} items; give one for each, or None in it")
    try:
        yield from zip(items, origins, strict=True)
    except ValueError as error:
        raise ValueError(f"there is not one origin for each item ({error}); the items before were stored") from error
