"""A long video of segments: things come, and later segments refer to what earlier ones showed."""

from dataclasses import dataclass

import numpy as np

from eval.tiny.episodes import SEGMENTS, Chunk, Recipe, draw_cells
from eval.tiny.glyphs import COLOUR_NAMES, NAMES

NEAR = 5
"""A segment shows no thing that so many before it show."""

REACH = 4
"""It refers to one of so many before it at most: with them it stands in a window of five."""

THINGS = 6
"""Different things of a segment: few enough that segments far apart show different ones."""

REFERENCES = THINGS // 2
"""How many of them refer to a thing of an earlier segment."""


@dataclass(frozen=True)
class Truth:
    """What a segment says of one of its things.

    Attributes:
        glyph: which thing.
        colour: its colour, also where it is a reference.
        behind: how many segments before this one the thing stands that it refers to; 0 for a fact.
    """

    glyph: int
    colour: int
    behind: int


def sample_stream(
    rng: np.random.Generator, count: int, recipe: Recipe = SEGMENTS
) -> list[tuple[Chunk, tuple[Truth, ...]]]:
    """Segments in order, each with what it says; the first has facts alone."""
    stream: list[tuple[Chunk, tuple[Truth, ...]]] = []
    for number in range(count):
        near = stream[-NEAR:]
        taken = {truth.glyph for _, truths in near for truth in truths}
        glyphs = rng.permutation([glyph for glyph in range(len(NAMES)) if glyph not in taken])[:THINGS]
        facts = [
            (truth, len(near) - place)
            for place, (_, truths) in enumerate(near)
            for truth in truths
            if truth.behind == 0 and len(near) - place <= REACH
        ]
        truths = [Truth(int(glyph), int(rng.integers(len(COLOUR_NAMES))), 0) for glyph in glyphs]
        entries = {truth.glyph: ("fact", truth.colour) for truth in truths}
        for place in range(REFERENCES if facts else 0):
            target, behind = facts[rng.integers(len(facts))]
            glyph = truths[place].glyph
            truths[place] = Truth(glyph, target.colour, behind)
            entries[glyph] = ("reference", target.glyph)
        stream.append((Chunk(number, entries, cells=draw_cells(rng, recipe, entries)), tuple(truths)))
    return stream
