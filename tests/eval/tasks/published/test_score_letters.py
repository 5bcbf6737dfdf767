"""Which option an answer chooses, against what the official scripts read, worked out by hand."""

import pytest

from eval.tasks.published import score_letters as score


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("b", ""),  # capitals alone
        ("", ""),
        ("   ", ""),
        ("E", ""),
        ("The answer is B", "B"),
        ("The best answer is C.", "C"),
        ("The correct answer is D", "D"),
        ("The best option is A", "A"),
        ("Best answer: C", "B"),  # the phrase is not among those that are removed, for a comma is missing
        ("Best option: D", "B"),
        ("Best answer:Best option:C", "C"),
        ("Apples", "A"),  # any capital
        ("I think B", "B"),
        ("Cats, so B", "C"),
        ("the dog", ""),
        ("DB", "D"),
        ("Option C", "C"),
        ("Answer: B", "A"),  # of the word itself
        ("one two three four five six seven eight nine ten eleven", ""),
        ("one two three four five six seven eight nine ten Eleven B", "B"),
        ("\nB\n", "B"),
    ],
)
def test_video_mme_is_extract_characters_regex(said, expected):
    assert score.video_mme(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A", "A"),
        ("A.", "A"),
        (" B", "B"),
        ("\nC", "C"),
        ("(A)", "("),
        ("a", "a"),
        ("", ""),
        ("  ", ""),
        ("Answer: B", "A"),
        ("Because", "B"),
        ("D) red", "D"),
        ("**C**", "*"),
        ("The answer is B", "T"),
        ("1", "1"),
        ("BC", "B"),
        ("Option A", "O"),
        ("'A'", "'"),
        ("C, as", "C"),
        ("é", "é"),
        ("\tD", "D"),
        ("Yes", "Y"),
    ],
)
def test_streamingbench_reads_the_first_character(said, expected):
    assert score.first_letter(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A", "A"),
        ("E", "E"),
        ("F", ""),
        ("(B)", "B"),
        ("[C]", "C"),
        ("B.", "B"),
        ("B: red", "B"),
        ("B red", "B"),
        ("Blue", ""),
        ("a", ""),
        ("", ""),
        ("  D", "D"),
        ("**D**", "D"),
        ("Answer: B", ""),
        ("The answer is B", ""),
        ("A person", "A"),
        ("AB", ""),
        ("C1", "C"),
        ("1", ""),
        ("option B", ""),
        ("\n\nE", "E"),
    ],
)
def test_egoschema_reads_the_letter_in_front(said, expected):
    assert score.leading_option(said, 5) == expected


COLOURS = ("red", "dark blue", "green")


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        ("B. dark blue", COLOURS, "B"),
        ("b dark blue", COLOURS, "B"),
        ("It is B. Dark blue!", COLOURS, "B"),
        ("dark blue", COLOURS, "B"),
        ("darkblue", COLOURS, "B"),  # white space is left out
        ("The bow is dark blue, not green", COLOURS, "B"),  # the first in the answer
        ("B", COLOURS, "B"),
        ("b", COLOURS, "B"),
        ("(B)", COLOURS, "B"),
        ("'B'", COLOURS, "B"),
        ("B.", COLOURS, "B"),
        ("D", COLOURS, ""),
        ("", COLOURS, "C"),  # an empty answer is C
        ("   ", COLOURS, "C"),
        ("!?", COLOURS, "C"),
        ("it is b", COLOURS, "B"),
        ("i have a b", COLOURS, "AAB"),
        ("the answer is b", COLOURS, "AB"),  # every letter counts, the one in "answer" too
        ("none", COLOURS, ""),
        ("a dark blue b red", COLOURS, "B"),  # an option with its letter goes first
        ("reddish", COLOURS, "A"),
        ("2.5", ("1.5", "2.5"), ""),  # a full stop is escaped before it is compared
        ("B. 2.5", ("1.5", "2.5"), "B"),
        ("b 2.5", ("1.5", "2.5"), "B"),
        ("go left", ("go left", "go right"), "A"),
        ("C", ("yes", "no"), ""),
    ],
)
def test_milebench_is_match_choice(said, options, expected):
    assert score.milebench_choice(said, options) == expected


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [("B", "dark blue", 1), ("Dark Blue.", "Dark blue", 1), ("", "green", 1), ("", "red", 0), ("i have a b", "red", 0)],
)
def test_milebench_judges_one_letter(said, answer, expected):
    assert score.milebench(said, answer, COLOURS) == expected
