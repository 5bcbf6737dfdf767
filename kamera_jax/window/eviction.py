"""What has to leave a window for something to fit."""

from collections.abc import Collection, Iterable

from kamera_jax.errors import WindowFullError
from kamera_jax.window.window import Window, aligned

Layout = list[tuple[int | None, int, float]]
"""Entries to be, in order: their place in the window as it stands, None for what is new, tokens and positions."""


def layout_of(window: Window) -> Layout:
    """The window as it stands."""
    return [(place, entry.chunk.length, entry.chunk.advance) for place, entry in enumerate(window.entries)]


def in_the_way(window: Window, pinned: Collection[str], layout: Layout) -> list[int]:
    """Places of the oldest entries, none of them pinned, without which a layout fits.

    Raises:
        WindowFullError: it does not fit without any of them.
    """
    gone: list[int] = []
    free = [place for place, *_ in layout if place is not None and window.keys[place] not in pinned]
    while not _fits(window, [(tokens, advance) for place, tokens, advance in layout if place not in gone]):
        if len(gone) == len(free):
            new = sum(tokens for place, tokens, _ in layout if place is None)
            limit = window.spec.max_positions
            within = "" if limit is None else f", or the model's length of {limit} positions,"
            raise WindowFullError(
                f"{new} tokens do not fit a window of {window.capacity} slots{within} beside the preamble and what is "
                "pinned; unpin some, or make it larger"
            )
        gone.append(free[len(gone)])
    return gone


def _fits(window: Window, entries: Iterable[tuple[int, float]]) -> bool:
    end = window.preamble.chunk.length
    position = window.preamble.chunk.advance
    for tokens, advance in entries:
        end = aligned(end) + tokens
        position += advance
    limit = window.spec.max_positions
    return end <= window.capacity and (limit is None or position <= limit)
