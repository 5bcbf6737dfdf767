"""The `binding` task: what its pictures show is read back, cell by cell, and the answers are looked up there."""

import numpy as np
import pytest

from eval.tasks import get
from eval.tasks.binding import CONDITIONS
from eval.tiny import pages
from eval.tiny.glyphs import COLOUR_NAMES, NAMES

CELL = pages.CELL


@pytest.fixture(scope="module")
def drawn():
    """Four contexts of every condition, of a data seed that no run takes."""
    task = get("binding")
    outlines = task.outline([987_654], 4 * len(CONDITIONS))
    return [(outline, task.draw(outline)) for outline in outlines]


@pytest.fixture(scope="module")
def cells():
    """The id of every cell by its pixels."""
    return {cell.tobytes(): i for i, cell in enumerate(pages.all_cells())}


def read(item, cells):
    """What an item shows: a glyph's colour, or the glyph it refers to."""
    if isinstance(item, str):
        words = item.replace(".", "").split()
        return {glyph: ("fact", colour) for _, colour, glyph in zip(*[iter(words)] * 3, strict=True)}
    pixels = np.asarray(item)
    shown = {}
    for row in range(0, pixels.shape[0], CELL):
        for column in range(0, pixels.shape[1], CELL):
            kind, first, second = pages.parse(cells[pixels[row : row + CELL, column : column + CELL].tobytes()])
            if kind != "background":
                entry = (kind, COLOUR_NAMES[second] if kind == "fact" else NAMES[second])
                assert shown.setdefault(NAMES[first], entry) == entry
    return shown


def chain(glyph, known):
    places = [glyph]
    while known[places[-1]][0] == "reference":
        places.append(known[places[-1]][1])
    return places


def test_answers_are_what_the_pictures_show(drawn, cells):
    for _, context in drawn:
        shown = [read(item, cells) for item in context.items]
        known = {}
        for own in shown:
            for glyph, entry in own.items():
                assert known.setdefault(glyph, entry) == entry  # nothing contradicts itself
        for question in context.questions:
            (asked,) = (glyph for glyph in known if glyph in question.text.replace("?", "").split())
            places = chain(asked, known)
            assert question.answers == (known[places[-1]][1],) and question.hops == len(places)
            fact = round(question.depth * (len(shown) - 1))
            assert places[-1] in shown[fact]
            stands = next(i for i, own in enumerate(shown) if asked in own)
            assert question.labels["distance"] == abs(stands - fact)
            text = isinstance(context.items[fact], str)
            behind = question.hops == 1 or fact < stands
            assert question.learned == (question.hops == 1 or (question.hops == 2 and not text and behind))


def test_conditions_are_what_they_say(drawn, cells):
    by_name = {condition.name: condition for condition in CONDITIONS}
    seen = set()
    for outline, context in drawn:
        condition = by_name[outline.layout]
        seen.add(condition.name)
        assert "".join("T" if isinstance(item, str) else "P" for item in context.items) == condition.window
        hops = [question.hops for question in context.questions]
        assert tuple(hops.count(each) for each in (1, 2, 3)) == condition.asked
        shown = [read(item, cells) for item in context.items if not isinstance(item, str)]
        pictures = [np.asarray(item).tobytes() for item in context.items if not isinstance(item, str)]
        same = [shown.count(own) for own in shown]
        assert max(same) == (2 if condition.name in ("repeated", "redundant") else 1)
        assert (len(set(pictures)) < len(pictures)) == (condition.name == "repeated")
        in_text = [question for question in context.questions if question.condition == "text facts"]
        assert len(in_text) == (3 if condition.in_text else 0)
    assert seen == by_name.keys()


def test_a_draw_depends_on_its_outline_alone():
    task = get("binding")
    short = task.outline([1, 2], 3)
    long = task.outline([1, 2], 30)
    assert set(short) <= set(long) and len({outline.context for outline in long}) == 60
    assert [outline.seed for outline in short] == [1] * 3 + [2] * 3
    first, again = (task.draw(short[1]) for _ in range(2))
    assert first.questions == again.questions and first.questions != task.draw(short[4]).questions
    for ours, theirs in zip(first.items, again.items, strict=True):
        assert ours == theirs if isinstance(ours, str) else (np.asarray(ours) == np.asarray(theirs)).all()


def test_the_nearest_task_is_suggested():
    with pytest.raises(ValueError, match="did you mean binding"):
        get("bindings")
