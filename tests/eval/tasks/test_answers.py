"""Scores of answers against values worked out by hand from their published definitions."""

import math
import random

import pytest

from eval.tasks import Question
from eval.tasks.answers import anls, exact_match, f1, levenshtein, listed, multiple_choice, normalised


@pytest.mark.parametrize(
    ("said", "answers", "exact", "overlap"),
    [
        ("The red star.", ["red star"], 1, 1),
        ("a red star", ["star"], 0, 2 / 3),
        ("red red", ["red"], 0, 2 / 3),
        ("blue moon", ["red star", "moon"], 0, 2 / 3),
        ("", ["red"], 0, 0),
        ("  \n", ["red"], 0, 0),
        ("", [""], 1, 1),
        ("the", ["a"], 1, 1),
        ("...", ["red"], 0, 0),
        ("caf\u00e9", ["cafe\u0301"], 1, 1),
        ("STRASSE", ["straße"], 1, 1),
        ("«rouge»", ["rouge"], 1, 1),
        ("赤い星。", ["赤い星"], 1, 1),
        ("$5", ["5"], 1, 1),
    ],
)
def test_exact_match_and_f1_are_squads(said, answers, exact, overlap):
    assert exact_match(said, answers) == exact
    assert math.isclose(f1(said, answers), overlap)


@pytest.mark.parametrize(
    ("said", "answers", "similarity"),
    [
        ("Invoice 17", ["invoice 17"], 1),
        ("invoice 18", ["invoice 17"], 0.9),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0),
        ("", ["x"], 0),
        ("", [""], 1),
        ("blue", ["red", "blues"], 0.8),
        (" two   words ", ["Two words"], 1),
        ("caf\u00e9", ["cafe\u0301"], 1),
    ],
)
def test_anls_is_docvqas(said, answers, similarity):
    assert math.isclose(anls(said, answers), similarity)


def test_the_edit_distance_is_that_of_its_recursive_definition():
    rng = random.Random(3)

    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    for _ in range(40):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        assert levenshtein(a, b) == distance(a, b)


CHOICES = ("red", "blue", "green")


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", 1),
        (" b. ", 1),
        ("(B)", 1),
        ("[B] blue", 1),
        ("B: blue", 1),
        ("B because it is", 1),
        ("blue", 1),
        ("Blue.", 1),
        ("", 0),
        ("A", 0),
        ("Both", 0),
        ("b blue", 0),
        ("A blue one", 0),
        ("z", 0),
    ],
)
def test_a_choice_is_named_by_letter_or_text(said, right):
    for answer in ("B", "blue"):
        assert multiple_choice(Question("which?", [answer], choices=CHOICES), said) == right


def test_an_article_is_no_letter():
    question = Question("which?", ["A"], choices=CHOICES)
    assert [multiple_choice(question, said) for said in ("A", "A.", "a)", "A blue one", "a red one")] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("answers", "choices", "message"),
    [
        (["A", "B"], CHOICES, "2 answers.*exactly one"),
        (["A"], (), "0 choices"),
        (["A"], ("red",), "1 choices"),
        (["D"], CHOICES, "none of its choices.*ABC"),
        (["pink"], CHOICES, "none of its choices"),
    ],
)
def test_a_wrong_number_of_answers_or_choices_is_refused(answers, choices, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice(Question("which?", answers, choices=choices), "A")


@pytest.mark.parametrize(
    ("said", "share"),
    [
        ("[1, 0, 2]", 1),
        ("The counts are [1, 0, 2].", 1),
        ("[1, 0]", 2 / 3),
        ("[1, 0, 2, 5]", 1),
        ("[0, 1, 2]", 1 / 3),
        ('["1", "0", "2"]', 1),
        ("[]", 0),
        ("", 0),
        ("1, 0, 2", 0),
        ("[1, 0", 0),
        ("{}", 0),
        ("[" * 100_000, 0),
    ],
)
def test_lists_are_scored_place_by_place(said, share):
    assert math.isclose(listed(said, ["1", "0", "2"]), share)


@pytest.mark.parametrize("score", [exact_match, f1, anls, listed])
@pytest.mark.parametrize("answers", [[], "red"])
def test_there_has_to_be_a_right_answer(score, answers):
    with pytest.raises(ValueError, match="at least one right answer"):
        score("[1]", answers)


def test_normalised_text_has_small_letters_and_no_punctuation():
    assert normalised("  The «Red» Star, an (old) one! ") == "red star old one"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answers": []}, "no answers"),
        ({"answers": "red"}, "one text, 'red'"),
        ({"answers": ["red"], "labels": {"methods": 1}}, "labels named methods"),
        ({"answers": ["red"], "depth": 1.5}, "depth 1.5"),
        ({"answers": ["red"], "hops": 0}, "0 hops"),
    ],
)
def test_questions_that_cannot_be_scored_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Question("what colour?", **fields)


def test_a_question_is_read_back_from_its_line():
    question = Question("which é?", ("A", "ß"), "c", 2, False, 0.5, {"page": 3, "kind": "x"}, CHOICES)
    record = {"id": "1/0", "context": "1", "seed": 0, "chunks": 2, **question.record(), "methods": {}}
    assert Question.from_record(record) == question
    older = {"id": "1/0", "answer": "red", "condition": "c", "hops": 1, "learned": True, "depth": 0.0, "distance": 2}
    assert Question.from_record(older) == Question("1/0", ("red",), "c", labels={"distance": 2})
