"""`binding`: pages that show facts, pages that refer to them, and other pages and passages between them.

A fact page gives glyphs colours. A reference page names glyphs, and for each the glyph of another chunk whose colour it
has: two hops. A chain page refers to references: three. Every condition is a layout of its own; the places
of its pages, their content and the questions are drawn for every context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.tasks.base import Context, Finding, Outline, Question
from eval.tasks.binding_findings import findings
from eval.tiny import pages
from eval.tiny.episodes import PASSAGE_FACTS, Chunk, Recipe, draw_page, passage, question_text
from eval.tiny.glyphs import COLOUR_NAMES, NAMES

SEED = 80_000_000
"""Far from every seed of training, the demo, the assessment and the guard."""

MOST_ENTRIES = 12
"""Different entries of a page, at most; the rest of its informative cells repeat them."""

OWN_FACTS = 2
"""Facts of a page of references, beside them."""

Entries = dict[int, tuple[str, int]]


@dataclass(frozen=True)
class Condition:
    """One layout.

    Attributes:
        name: what results are shown under.
        window: a letter for each chunk: P a page, T a passage of facts.
        pages: what the pages are: ``facts`` and ``more`` are referred to, ``unrelated`` is not; ``again`` is ``facts``
            as it was and ``redrawn`` the same in other cells; ``references`` and ``chain`` follow what they refer to.
        in_text: references lead to the first passage, and not to ``more``.
        inverted: references stand before what they refer to.
        asked: how many questions of one, two and three hops.
    """

    name: str
    window: str
    pages: tuple[str, ...]
    in_text: bool = False
    inverted: bool = False
    asked: tuple[int, int, int] = (2, 4, 0)


CONDITIONS = (
    Condition("plain", "PPP", ("facts", "more", "references")),
    Condition("longer", "PTPTTP", ("facts", "more", "references")),
    Condition("longest", "TPTPTTPTTP", ("facts", "more", "unrelated", "references")),
    Condition("distractors", "PPPPP", ("facts", "more", "unrelated", "unrelated", "references")),
    Condition("repeated", "PPPP", ("facts", "again", "more", "references")),
    Condition("redundant", "PPPP", ("facts", "redrawn", "more", "references")),
    Condition("text facts", "TPTP", ("facts", "references"), in_text=True),
    Condition("other order", "PPP", ("references", "facts", "more"), inverted=True),
    Condition("three hops", "PPPP", ("facts", "more", "references", "chain"), asked=(1, 2, 3)),
)

BEHIND = ("references", "chain")
"""Pages that follow what they refer to, in this order."""


class Binding:
    """Questions whose answers lead through one, two or three chunks; the answer is a colour, in one token."""

    name = "binding"
    version = 1
    contexts = 10 * len(CONDITIONS)
    max_new_tokens = 1

    def outline(self, seeds: Sequence[int], limit: int) -> list[Outline]:
        """The conditions in turn, so that any limit holds of each about as many."""
        return [
            Outline(
                f"{seed}/{CONDITIONS[i % len(CONDITIONS)].name}/{i // len(CONDITIONS)}".replace(" ", "-"),
                CONDITIONS[i % len(CONDITIONS)].name,
                seed,
            )
            for seed in seeds
            for i in range(limit)
        ]

    def draw(self, outline: Outline) -> Context:
        """Pages, passages and questions."""
        number = [condition.name for condition in CONDITIONS].index(outline.layout)
        index = int(outline.context.rpartition("/")[2])
        rng = np.random.default_rng((SEED, outline.seed, number, index))
        drawn = _drawn(rng, CONDITIONS[number])
        items = tuple(chunk.text if chunk.cells is None else pages.render(chunk.cells) for _, chunk in drawn)
        return Context(items, _questions(rng, CONDITIONS[number], drawn))

    def score(self, question: Question, said: str) -> Mapping[str, float]:
        """Whether the token is the colour's."""
        return {"accuracy": float(said.strip().lower() == question.answers[0])}

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """The paper's claims about reuse over several hops, against the run's figures."""
        return findings(scores)


Drawn = list[tuple[str, Chunk]]
"""Chunks in window order, with what they are."""


def _drawn(rng: np.random.Generator, condition: Condition) -> Drawn:
    order = _order(rng, condition)
    passages = condition.window.count("T")
    different = len([role for role in order if role not in ("again", "redrawn")])
    passage_facts = min(PASSAGE_FACTS, len(NAMES) // (2 * max(passages, 1)))
    entries = min(MOST_ENTRIES, (len(NAMES) - passages * passage_facts) // different)
    glyphs = iter(rng.permutation(len(NAMES)).tolist())

    def facts(count: int) -> Entries:
        return {next(glyphs): ("fact", int(rng.integers(len(COLOUR_NAMES)))) for _ in range(count)}

    in_passages = [facts(passage_facts) for _ in range(passages)]
    shown = {role: facts(entries) for role in ("facts", "more") if role in order}
    targets = [shown["facts"], in_passages[0] if condition.in_text else shown["more"]]
    for role in BEHIND:
        if role in order:
            shown[role] = _referring(rng, [next(glyphs) for _ in range(entries - OWN_FACTS)], targets) | facts(
                OWN_FACTS
            )
            targets = [{glyph: entry for glyph, entry in shown[role].items() if entry[0] == "reference"}]
    shown["again"] = shown["redrawn"] = shown["facts"]
    first = draw_page(rng, Recipe(), shown["facts"])
    roles = iter(order)
    texts = iter(in_passages)
    chunks = []
    for source, letter in enumerate(condition.window):
        if letter == "T":
            entries_here = next(texts)
            chunks.append(("passage", Chunk(source, entries_here, text=passage(entries_here))))
            continue
        role = next(roles)
        entries_here = facts(entries) if role == "unrelated" else shown[role]
        cells = first if role in ("facts", "again") else draw_page(rng, Recipe(), entries_here)
        chunks.append((role, Chunk(source, entries_here, cells=cells)))
    return chunks


def _order(rng: np.random.Generator, condition: Condition) -> list[str]:
    """The pages in an order of this context's own, references behind (or before) what they refer to."""
    roles = [role for role in condition.pages if role not in BEHIND]
    roles = [roles[i] for i in rng.permutation(len(roles))]
    behind = [role for role in BEHIND if role in condition.pages]
    if condition.inverted:
        return [*behind, *roles]
    if "unrelated" in roles:  # what nothing refers to may also come last
        least = max(roles.index(role) for role in ("facts", "more")) + 1
        place = int(rng.integers(least, len(roles) + 1))
        return [*roles[:place], *behind, *roles[place:]]
    return [*roles, *behind]


def _referring(rng: np.random.Generator, glyphs: Sequence[int], targets: Sequence[Entries]) -> Entries:
    """References to each of the targets in turn."""
    return {glyph: ("reference", int(rng.choice(list(targets[i % len(targets)])))) for i, glyph in enumerate(glyphs)}


def _questions(rng: np.random.Generator, condition: Condition, drawn: Drawn) -> tuple[Question, ...]:
    known: Entries = {}
    for _, chunk in drawn:
        known |= chunk.entries
    asked = {"one": [], "two": [], "three": []}
    for role, source in (("one", "facts"), ("two", "references"), ("three", "chain")):
        for glyph, (kind, _) in dict(drawn).get(source, Chunk(0, {})).entries.items():
            if (kind == "reference") == (role != "one"):
                asked[role].append(glyph)
    if condition.in_text:  # one of each page and of the passage
        asked["one"] = [asked["one"][0], next(iter(drawn[0][1].entries))]
    else:
        own = [g for g, (kind, _) in dict(drawn)["references"].entries.items() if kind == "fact"]
        asked["one"] = [asked["one"][0], own[0]]
    chosen = [glyph for role, count in zip(asked, condition.asked, strict=True) for glyph in asked[role][:count]]
    return tuple(_question(condition, drawn, known, glyph) for glyph in chosen)


def _question(condition: Condition, drawn: Drawn, known: Entries, glyph: int) -> Question:
    chain = [glyph]
    while known[chain[-1]][0] == "reference":
        chain.append(known[chain[-1]][1])
    asked = next(i for i, (_, chunk) in enumerate(drawn) if glyph in chunk.entries)
    shows = [i for i, (_, chunk) in enumerate(drawn) if chain[-1] in chunk.entries]
    fact = min(shows, key=lambda place: abs(place - asked))
    on_page = drawn[fact][1].text is None
    return Question(
        text=question_text(glyph),
        answers=(COLOUR_NAMES[known[chain[-1]][1]],),
        condition=f"beside {condition.name}" if condition.in_text and on_page else condition.name,
        hops=len(chain),
        learned=len(chain) == 1 or (len(chain) == 2 and on_page and not condition.inverted),
        depth=fact / (len(drawn) - 1),
        labels={
            "distance": abs(asked - fact),
        },
    )
