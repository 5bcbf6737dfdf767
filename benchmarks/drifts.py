"""Drifts: a page with references, what its patch was formed behind, and what stands there later.

Everything is drawn anew for every episode. A page refers to two of the three pages before it, and to a page that is not
there: deleting, editing and inserting matters to some of its references and not to others.
"""

from dataclasses import dataclass, field

import numpy as np

from eval.tiny.episodes import Recipe, draw_page, passage
from eval.tiny.glyphs import COLOUR_NAMES, NAMES

KINDS = ("order", "moved behind", "deletion", "insertion", "edit", "distance", "mixed")
"""What happens to the antecedents: another order; one comes after the page; one goes; a page comes in; a page shows
other colours, or the same in other cells; more stands between or before them; two of these at once."""

REFERRED = ("first", "second")
"""Pages that the judged page's references lead to."""

FORMED = (*REFERRED, "third")
"""What the patch was formed behind, in an order of the episode's own; nothing refers to the third page."""

INSERTED = ("unrelated", "missing")
"""Pages that may come in: nothing refers to the one, some references wait for the other."""

ENTRIES = 7
"""Facts or references of a page; the rest of its informative cells repeat them."""

REFERENCES = 6
"""Of the page whose patch is judged; its last entry is a fact."""

EDITS = {"rearranged": 0, "one": 1, "two": 2, "all": ENTRIES}
"""How many of a page's facts change their colour; every edit draws its cells anew."""

MOST_PAGES = 2
MOST_PASSAGES = 3
"""Fillers that a distance puts in, at most."""

Entries = dict[int, tuple[str, int]]


@dataclass(frozen=True)
class Scene:
    """One episode.

    Attributes:
        entries: what each page, and the passage, shows.
        cells: of each page.
        formed: the order of `FORMED` that the patch was formed behind.
        references: glyphs of the judged page, and the glyphs they lead to.
    """

    entries: dict[str, Entries]
    cells: dict[str, np.ndarray]
    formed: tuple[str, ...]
    references: tuple[tuple[int, int], ...]

    @property
    def passage(self) -> str:
        """A text that nothing refers to."""
        return passage(self.entries["passage"])


@dataclass(frozen=True)
class Drift:
    """What stands around the judged page later.

    Attributes:
        before, after: names of pages and passages; ``"edited"`` is a page that shows something else now.
        edited: its cells; None where no page was edited.
    """

    before: list[str]
    after: list[str] = field(default_factory=list)
    edited: np.ndarray | None = None

    def probed(self, scene: Scene) -> list[bool]:
        """Which references lead to a page that stood, or stands, in the context."""
        names = {*scene.formed, *self.before, *self.after} - {"edited"}  # one of those the patch was formed behind
        known = set().union(*(scene.entries[name] for name in names))
        return [target in known for _, target in scene.references]


def sample_scene(rng: np.random.Generator) -> Scene:
    """An episode with glyphs, colours, cells and references drawn anew."""
    glyphs = rng.permutation(len(NAMES))
    rows = glyphs[: 6 * ENTRIES].reshape(6, ENTRIES)

    def facts(shown: np.ndarray) -> Entries:
        return {int(glyph): ("fact", int(rng.integers(len(COLOUR_NAMES)))) for glyph in shown}

    entries = {name: facts(row) for name, row in zip((*FORMED, *INSERTED), rows, strict=False)}
    entries["passage"] = facts(glyphs[6 * ENTRIES :])
    pages = rng.choice([*REFERRED, "missing"], REFERENCES, p=[0.4, 0.4, 0.2])
    targets = [int(rng.choice(list(entries[str(page)]))) for page in pages]
    references = tuple((int(glyph), target) for glyph, target in zip(rows[5], targets, strict=False))
    entries["judged"] = {
        **{glyph: ("reference", target) for glyph, target in references},
        **facts(rows[5, REFERENCES:]),
    }
    cells = {name: draw_page(rng, Recipe(), shown) for name, shown in entries.items() if name != "passage"}
    return Scene(entries, cells, tuple(str(name) for name in rng.permutation(FORMED)), references)


def sample_drift(rng: np.random.Generator, shape: np.random.Generator, scene: Scene, kind: str) -> Drift:
    """What becomes of an episode.

    Args:
        rng: of the episode's own.
        shape: the same for all episodes that are to stack: it says what is mixed, and where distance comes from.
        scene: the episode.
        kind: of `KINDS`.
    """
    drift = Drift(list(scene.formed))
    mixed = str(shape.choice(["insertion edit", "deletion insertion", "deletion order"]))
    for each in mixed.split() if kind == "mixed" else (kind,):
        drift = _drifted(rng, shape, scene, each, drift)
    return drift


def _drifted(rng: np.random.Generator, shape: np.random.Generator, scene: Scene, kind: str, drift: Drift) -> Drift:
    before = list(drift.before)
    after = list(drift.after)
    edited = drift.edited
    if kind == "order":
        while before == drift.before:
            before = [str(name) for name in rng.permutation(before)]
    elif kind == "insertion":
        before.insert(int(rng.integers(len(before) + 1)), str(rng.choice(INSERTED)))
    elif kind == "distance":
        filler, most = ("unrelated", MOST_PAGES) if shape.random() < 0.5 else ("passage", MOST_PASSAGES)
        fillers = [filler] * int(shape.integers(1, most + 1))
        before = fillers + before if shape.random() < 0.5 else before + fillers
    elif kind == "edit":
        place = int(rng.choice([i for i, name in enumerate(before) if name in FORMED]))
        edited = _edited(rng, scene.entries[before[place]])
        before[place] = "edited"
    else:
        name = before.pop(int(rng.integers(len(before))))
        after += [name] if kind == "moved behind" else []
    return Drift(before, after, edited)


def _edited(rng: np.random.Generator, entries: Entries) -> np.ndarray:
    changed = dict(entries)
    count = EDITS[str(rng.choice(list(EDITS), p=[0.3, 0.3, 0.2, 0.2]))]
    for glyph in rng.choice(list(entries), count, replace=False):
        colour = entries[int(glyph)][1] + int(rng.integers(1, len(COLOUR_NAMES)))
        changed[int(glyph)] = ("fact", colour % len(COLOUR_NAMES))
    return draw_page(rng, Recipe(), changed)
