"""Episodes: a few chunks that show facts and references, and questions about them.

A **fact** gives a glyph a colour. A **reference** on a page names a glyph and the glyph to look up instead, which
stands on another chunk. A question asks for the colour of a glyph: one hop if a fact answers it, two if a reference to
a fact does, three if a reference to a reference does. Colours are drawn anew for every episode, so nothing can be
answered from memory.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from eval.tiny import pages
from eval.tiny.glyphs import COLOUR_NAMES, NAMES


@dataclass(frozen=True)
class Recipe:
    """What episodes look like.

    Attributes:
        rows, columns: cells of a page, or of a frame.
        informative: cells of a page, or of a frame, that are not background.
        moments: 0 for pages; otherwise each chunk is a video segment of so many moments, a temporal patch each.
        chunks: least and most chunks of an episode (repeats included).
        hops: most hops of a question.
        depth: probability that a reference goes to another reference, where one stands that leads on within ``hops``.
        text: probability that a chunk is a passage of text.
        repeat: probability that a chunk is an earlier one again, as it was or with its cells rearranged.
        invert: probability that chunks come in any order, dependants before antecedents included.
        evict: probability that a question must be answered without its antecedents.
        questions: how many.
        phrases: which of `PHRASES` questions are put in; empty asks with the glyph's name alone, outside any turn.
    """

    rows: int = 6
    columns: int = 10
    informative: int = 20
    moments: int = 0
    chunks: tuple[int, int] = (2, 6)
    hops: int = 3
    depth: float = 0.5
    text: float = 0.15
    repeat: float = 0.1
    invert: float = 0.1
    evict: float = 0.6
    questions: int = 12
    phrases: tuple[int, ...] = (0, 1, 2, 3)


SEGMENTS = Recipe(rows=4, columns=6, informative=12, moments=4, chunks=(2, 6), hops=2, text=0.0, depth=0.0, evict=1.0)
"""Segments of a video: twelve things among 24 places, four moments of a second."""


@dataclass(frozen=True)
class Chunk:
    """One page of cells [rows, columns], one video segment [moments, rows, columns], or one passage of text.

    ``source`` is shared by a page or segment and its repeats.
    """

    source: int
    entries: dict[int, tuple[str, int]]
    cells: np.ndarray | None = None
    text: str | None = None


@dataclass(frozen=True)
class Question:
    """What is asked and what is true.

    Attributes:
        glyph: index of the glyph asked about.
        colour: index of the answer.
        hops: 1 reads a fact, each further one follows a reference.
        chain: the glyphs on the way, the asked one first.
        bound: whether every antecedent stands before its dependant (always true for one hop).
        hidden: chunks the question must be answered without.
    """

    glyph: int
    colour: int
    hops: int
    chain: tuple[int, ...]
    bound: bool = True
    hidden: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The question in words."""
        return question_text(self.glyph)


@dataclass(frozen=True)
class Episode:
    """Chunks in window order, and questions about them."""

    chunks: list[Chunk]
    questions: list[Question] = field(default_factory=list)


PASSAGE_FACTS = 6
"""Facts of a text passage."""

PHRASES = ("{}?", "what colour is the {}?", "what is the colour of the {}?", "the {} is what colour?")


def question_text(glyph: int, phrase: int = 1) -> str:
    """A question about a glyph, in one of a few phrasings."""
    return PHRASES[phrase].format(NAMES[glyph])


def passage(facts: dict[int, tuple[str, int]]) -> str:
    """Facts as text."""
    return " ".join(f"a {COLOUR_NAMES[value]} {NAMES[glyph]}." for glyph, (_, value) in facts.items())


def draw_page(rng: np.random.Generator, recipe: Recipe, entries: dict[int, tuple[str, int]]) -> np.ndarray:
    """A page of cell ids [rows, columns]: every entry at least once, the rest repeats and background."""
    glyphs = np.array(list(entries))
    shown = (
        np.concatenate([glyphs, rng.choice(glyphs, recipe.informative - len(glyphs))])
        if len(glyphs) < recipe.informative
        else glyphs
    )
    cells = rng.integers(0, pages.BACKGROUNDS, recipe.rows * recipe.columns)
    places = rng.permutation(recipe.rows * recipe.columns)[: len(shown)]
    for place, glyph in zip(places, shown, strict=True):
        kind, value = entries[int(glyph)]
        cells[place] = pages.fact(int(glyph), value) if kind == "fact" else pages.reference(int(glyph), value)
    return cells.reshape(recipe.rows, recipe.columns)


MOVING = 3
"""So many of a segment's things move at most from one moment to the next."""


def draw_cells(rng: np.random.Generator, recipe: Recipe, entries: dict[int, tuple[str, int]]) -> np.ndarray:
    """A page of cell ids, or a segment [moments, rows, columns] that begins as one.

    From moment to moment a few things move to a neighbouring place; behind them stands the background.
    """
    cells = draw_page(rng, recipe, entries)
    if not recipe.moments:
        return cells
    behind = np.where(cells < pages.BACKGROUNDS, cells, rng.integers(0, pages.BACKGROUNDS, cells.shape))
    moments = [cells]
    while len(moments) < recipe.moments:
        moments.append(_moved(rng, moments[-1], behind))
    return np.stack(moments)


def _moved(rng: np.random.Generator, cells: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The next moment of a segment."""
    cells = cells.copy()
    things = np.argwhere(cells >= pages.BACKGROUNDS)
    for row, column in rng.permutation(things)[: rng.integers(1, MOVING + 1)]:
        steps = [(row + down, column + right) for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))]
        free = [
            (down, right)
            for down, right in steps
            if 0 <= down < cells.shape[0] and 0 <= right < cells.shape[1] and cells[down, right] < pages.BACKGROUNDS
        ]
        if free:
            cells[free[rng.integers(len(free))]] = cells[row, column]
            cells[row, column] = behind[row, column]
    return cells


def _follow(glyph: int, known: dict[int, tuple[str, int]]) -> tuple[int, ...]:
    chain = [glyph]
    while known[chain[-1]][0] == "reference":
        chain.append(known[chain[-1]][1])
    return tuple(chain)


def _chunk(
    rng: np.random.Generator, recipe: Recipe, source: int, glyphs: np.ndarray, known: dict[int, tuple[str, int]]
) -> Chunk:
    """A new chunk about ``glyphs``: facts, references to what is known, or both; or a text passage of facts."""
    colours = rng.integers(0, len(COLOUR_NAMES), len(glyphs))
    if rng.random() < recipe.text:
        facts = {int(g): ("fact", int(c)) for g, c in zip(glyphs[:PASSAGE_FACTS], colours, strict=False)}
        return Chunk(source, facts, text=passage(facts))
    targets = [g for g in known if len(_follow(g, known)) < recipe.hops]
    chained = [g for g in targets if known[g][0] == "reference"]
    share = float(rng.choice([0.0, 0.5, 1.0], p=[0.25, 0.15, 0.6])) if targets else 0.0
    entries: dict[int, tuple[str, int]] = {}
    for glyph, colour in zip(glyphs, colours, strict=True):
        if rng.random() < share:
            far = rng.random() < recipe.depth and chained
            entries[int(glyph)] = ("reference", int(rng.choice(chained if far else targets)))
        else:
            entries[int(glyph)] = ("fact", int(colour))
    return Chunk(source, entries, cells=draw_cells(rng, recipe, entries))


def sample_chunks(rng: np.random.Generator, recipe: Recipe, count: int) -> list[Chunk]:
    """Chunks of one episode in window order."""
    distinct = min(recipe.informative, len(NAMES) // count)
    glyphs = rng.permutation(len(NAMES))
    known: dict[int, tuple[str, int]] = {}
    chunks: list[Chunk] = []
    for index in range(count):
        drawn = [chunk for chunk in chunks if chunk.cells is not None]
        if drawn and rng.random() < recipe.repeat:
            again = drawn[rng.integers(len(drawn))]
            cells = again.cells if rng.random() < 0.5 else draw_cells(rng, recipe, again.entries)
            chunks.append(Chunk(again.source, again.entries, cells=cells))
            continue
        chunk = _chunk(rng, recipe, index, glyphs[index * distinct : (index + 1) * distinct], known)
        known |= chunk.entries
        chunks.append(chunk)
    if rng.random() < recipe.invert:
        chunks = [chunks[i] for i in rng.permutation(count)]
    return chunks


def bound_glyphs(chunks: list[Chunk]) -> list[set[int]]:
    """For every chunk, its glyphs that it can bind to a colour from itself and the chunks before it."""
    so_far: set[int] = set()
    bound = []
    for chunk in chunks:
        bound.append({g for g, (kind, value) in chunk.entries.items() if kind == "fact" or value in so_far})
        so_far |= bound[-1]
    return bound


def all_questions(chunks: list[Chunk]) -> list[Question]:
    """One question per glyph that can be answered from these chunks."""
    known: dict[int, tuple[str, int]] = {}
    for chunk in chunks:
        known |= chunk.entries
    bound = set().union(*bound_glyphs(chunks))
    questions = []
    for glyph in known:
        chain = _follow(glyph, known)
        questions.append(Question(glyph, known[chain[-1]][1], len(chain), chain, glyph in bound))
    return questions


def antecedent_chunks(chunks: list[Chunk], question: Question) -> tuple[int, ...]:
    """Which chunks show the antecedents of a question's glyph, and not the glyph itself."""
    later = set(question.chain[1:])
    return tuple(i for i, c in enumerate(chunks) if later & c.entries.keys() and question.glyph not in c.entries)


def sample_episode(rng: np.random.Generator, recipe: Recipe, count: int | None = None) -> Episode:
    """One episode of ``count`` chunks (drawn from the recipe's range by default), its questions balanced over hops.

    Questions of several hops are asked only where the chunks come in an order that lets the dependant absorb its
    antecedents.
    """
    low, high = recipe.chunks
    chunks = sample_chunks(rng, recipe, int(rng.integers(low, high + 1)) if count is None else count)
    by_hops: dict[int, list[Question]] = {}
    for question in all_questions(chunks):
        if question.bound:
            by_hops.setdefault(question.hops, []).append(question)
    questions = []
    for _ in range(recipe.questions):
        choices = by_hops[int(rng.choice(list(by_hops)))]
        question = choices[rng.integers(len(choices))]
        hidden = antecedent_chunks(chunks, question) if rng.random() < recipe.evict else ()
        questions.append(replace(question, hidden=hidden))
    return Episode(chunks, questions)
