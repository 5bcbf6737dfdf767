"""What has to leave a window for something to fit."""

from collections.abc import Collection, Iterable, Sequence

from kamera_jax.chunk import Entry
from kamera_jax.errors import WindowFullError
from kamera_jax.window.edits import Changes, Pair, applied
from kamera_jax.window.window import Window, aligned

Size = tuple[int, float]
"""Tokens and positions that something takes."""


def in_the_way(
    window: Window,
    pinned: Collection[str],
    changes: Changes | None,
    *,
    more: Size | None = None,
    used: Sequence[str] = (),
) -> list[int]:
    """Places of the least recently used entries, none of them pinned, without which a changed window fits.

    Args:
        window: as it stands.
        pinned: keys of chunks that stay.
        changes: what is to happen to the window; an entry that leaves by it is not counted.
        more: what is to come behind all that, besides.
        used: keys of chunks, the least recently used first; others count as used before them, the first entry first.

    Raises:
        WindowFullError: it does not fit without any of them.
        ValueError: there is no such entry or place; see `kamera_jax.window.edits.Change.apply`.
    """
    after = applied(range(len(window.entries)), () if changes is None else changes)
    sizes = [_size(each if isinstance(each, Pair) else window.entries[each]) for each in after]
    free = [place for place in after if not isinstance(place, Pair) and window.keys[place] not in pinned]
    age = {key: i for i, key in enumerate(used)}
    free.sort(key=lambda place: age.get(window.keys[place], -1))
    gone: list[int] = []
    while not _fits(window, [size for each, size in zip(after, sizes, strict=True) if each not in gone], more):
        if len(gone) == len(free):
            new = sum(size[0] for each, size in zip(after, sizes, strict=True) if isinstance(each, Pair))
            limit = window.spec.max_positions
            within = "" if limit is None else f", or the model's length of {limit} positions,"
            raise WindowFullError(
                f"{new + (more or (0,))[0]} tokens do not fit a window of {window.capacity} slots{within} beside the "
                "preamble and what is pinned; unpin some, or make it larger"
            )
        gone.append(free[len(gone)])
    return gone


def _size(each: Pair | Entry) -> Size:
    return each.chunk.length, each.chunk.advance


def _fits(window: Window, sizes: Iterable[Size], more: Size | None) -> bool:
    end = window.preamble.chunk.length
    position = window.preamble.chunk.advance
    for tokens, advance in (*sizes, *(() if more is None else (more,))):
        end = aligned(end) + tokens
        position += advance
    limit = window.spec.max_positions
    return end <= window.capacity and (limit is None or position <= limit)
