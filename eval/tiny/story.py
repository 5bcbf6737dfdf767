"""The demo's episodes: two pages of facts, a page that refers to both, and a page of unrelated facts."""

from dataclasses import dataclass

import numpy as np

from eval.tiny.episodes import Chunk, Recipe, draw_cells
from eval.tiny.glyphs import COLOUR_NAMES, NAMES

DISTINCT = 12
"""Different entries of a page; the rest of its informative cells repeat them."""

TO_FIRST = 5
TO_SECOND = 4
"""References to the first and to the second page; the third page's other entries are facts."""

ASKED = 3
"""References to each of the two pages that are asked about."""


@dataclass(frozen=True)
class Story:
    """One episode.

    Attributes:
        first, second: pages of facts.
        third: a page of references to both, and a few facts.
        other: a page of facts that nothing refers to.
        one_hop: a glyph of each of the three pages whose colour the page shows, and those colours.
        two_hop: glyphs of the third page's references, those to the first page first, and the colours they lead to.
    """

    first: Chunk
    second: Chunk
    third: Chunk
    other: Chunk
    one_hop: tuple[tuple[int, int], ...]
    two_hop: tuple[tuple[int, int], ...]


def sample_story(rng: np.random.Generator, recipe: Recipe | None = None) -> Story:
    """A story with colours, places and references drawn anew."""
    recipe = recipe or Recipe()
    glyphs = rng.permutation(len(NAMES)).reshape(-1, DISTINCT)[:4]
    colours = rng.integers(0, len(COLOUR_NAMES), glyphs.shape)

    def facts(row: int, start: int = 0) -> dict[int, tuple[str, int]]:
        return {int(g): ("fact", int(c)) for g, c in zip(glyphs[row, start:], colours[row, start:], strict=True)}

    first = facts(0)
    second = facts(1)
    other = facts(3)
    targets = [*rng.choice(glyphs[0], TO_FIRST), *rng.choice(glyphs[1], TO_SECOND)]
    references = {int(g): ("reference", int(t)) for g, t in zip(glyphs[2], targets, strict=False)}
    third = {**references, **facts(2, len(references))}
    truth = {g: c for page in (first, second) for g, (_, c) in page.items()}
    shown = [list(page.items())[-1] for page in (first, second, third)]
    asked = [*list(references.items())[:ASKED], *list(references.items())[-ASKED:]]

    def page(source: int, entries: dict[int, tuple[str, int]]) -> Chunk:
        return Chunk(source, entries, cells=draw_cells(rng, recipe, entries))

    return Story(
        page(0, first),
        page(1, second),
        page(2, third),
        page(3, other),
        one_hop=tuple((g, c) for g, (_, c) in shown),
        two_hop=tuple((g, truth[t]) for g, (_, t) in asked),
    )
