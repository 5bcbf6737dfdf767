"""Scores in words, against values worked out by hand from what the official scripts define."""

import math

import pytest

from eval.tasks.published import score_text as score

LIST = [2, 0, 1, 4]

CASES_MM_NIAH = [
    # A choice by its number or letter.
    ("1", 1, 1),
    ("1.", 1, 1),  # full stops at the ends are left out
    ("01", 1, 1),
    ("B", 1, 1),
    ("b", 1, 1),
    ("B. the red one", 1, 1),
    ("The answer is B.", 1, 1),
    ("**B**", 1, 1),
    ("(B)", 1, 0),  # three characters
    ("(B", 1, 0),
    ("B, the red one", 1, 0),
    ("B,. red", 1, 1),  # a comma before the full stop is left out
    ("Option B", 1, 0),
    ("A", 1, 0),
    ("none", 0, 0),
    ("", 0, 0),
    ("...", 0, 0),
    ("²", 2, 0),  # a digit that is no number
    ("The camera is moving left", 0, 1),
    ("I think the camera is moving right", 1, 1),
    # A list: the soft score of the paper.
    ("[2, 0, 1, 4]", LIST, 1),
    ("[2, 0, 1, 4].", LIST, 1),
    ("[2, 0, 0, 4]", LIST, 0.75),
    ("[2, 0]", LIST, 0.5),
    ("[2, 0, 1, 4, 9]", LIST, 1),  # items beyond do not count
    ("[0, 2, 1, 4]", LIST, 0.5),  # place by place
    ("```json\n[2, 0, 1, 4]\n```", LIST, 1),
    ('{"counts": [2, 0, 1, 4]}', LIST, 1),
    ('{"a": [2, 0], "b": [1, 4]}', LIST, 1),
    ('{"a": 2}', LIST, 0),
    ("The counts are [2, 0, 1, 4]", LIST, 0),  # prose is no JSON
    ("2, 0, 1, 4", LIST, 0),
    ('["2", "0", "1", "4"]', LIST, 0),
    ("[2.0, false, true, 4]", LIST, 1),  # Python's 2 is 2.0, 0 is False and 1 is True
    ("4", [4], 0),
    ("", LIST, 0),
    ("[]", LIST, 0),
    ("[" * 10_000, LIST, 0),
    # A text: the normalised words stand in the answer.
    ("It is a red apple.", "red apple", 1),
    ("It is the Red   APPLE", "a red apple", 1),
    ("reddish apple", "red", 0),  # whole words alone
    ("three", "3", 1),
    ("There are 3 cats", "three", 1),
    ("red-apple", "red apple", 1),  # a sign between letters becomes a space
    ("red - apple", "red apple", 1),  # beside a space it is removed
    ("1,000", "1000", 1),
    ("3.5", "3.5", 1),
    ("3.5", "35", 0),
    ("dont", "don't", 1),
    ("couldnt've", "couldn'tve", 1),
    ("", "red", 0),
    ("apple", "red apple", 0),
    ("New\nYork", "new york", 1),
]


@pytest.mark.parametrize(("said", "answer", "expected"), CASES_MM_NIAH)
def test_mm_niah_is_calculate_scores(said, answer, expected):
    assert score.mm_niah(said, answer) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat", "cat"),
        ("a an the", ""),
        ("ten twenty ninety", "10 20 90"),
        ("nineteen", "19"),
        ("twenty-one", "20 1"),
        ("it's", "it's"),
        ("its", "its"),
        ("isnt youre", "isn't you're"),
        ("let's", "let's"),
        ("somebody'd", "somebodyd"),
        ("somebodyd've yall", "somebody'd've y'all"),
        ("a/b", "b"),  # the sign becomes a space, and a is an article
        ("x / y", "x y"),
        ("1,5", "15"),
        ("1,5-6", "156"),  # one comma between digits, and every sign is removed
        ("U.S.A.", "usa"),
        ("v1.2.", "v1.2"),
        (".5", ".5"),
        ("\ttab\nline ", "tab line"),
        ("." * 40 + "x", "." * 8 + "x"),  # 32 are removed
        ("", ""),
        ("ZERO", "0"),
    ],
)
def test_normalisation_is_vqas(text, expected):
    assert score.vqa_normalised(text) == expected


@pytest.mark.parametrize(
    ("said", "answers", "exact", "f1"),
    [
        ("Red star", ["red star"], 1, 1),
        ("the red star.", ["red star"], 1, 1),
        ("red", ["red star"], 0, 2 / 3),
        ("star red", ["red star"], 0, 1),
        ("red red", ["red"], 0, 2 / 3),
        ("red", ["blue", "red"], 1, 1),
        ("", ["red"], 0, 0),
        ("", ["the"], 1, 1),
        ("a", ["the"], 1, 1),
        ("x", ["the"], 0, 0),
        ("...", ["red"], 0, 0),
        ("John's", ["Johns"], 1, 1),
        ("New-York", ["NewYork"], 1, 1),
        ("New York", ["NewYork"], 0, 0),
        ("«rouge»", ["rouge"], 0, 0),  # ASCII's punctuation alone is left out
        ("STRASSE", ["straße"], 0, 0),  # small letters, not folded ones
        ("$5", ["5"], 1, 1),
        ("1,000", ["1000"], 1, 1),
        ("in the year 1990", ["1990"], 0, 0.5),
        ("1990 or 1991", ["1991", "1990"], 0, 0.5),
        ("theatre", ["atre"], 0, 0),
        ("  two   words ", ["two words"], 1, 1),
    ],
)
def test_exact_match_and_f1_are_musiques(said, answers, exact, f1):
    assert score.squad_exact(said, answers) == exact
    assert math.isclose(score.squad_f1(said, answers), f1)


@pytest.mark.parametrize(
    ("said", "answers", "anls", "accuracy"),
    [
        ("invoice 17", ["Invoice 17"], 1, 1),
        (" invoice 17\n", ["invoice 17 "], 1, 1),
        ("invoice 18", ["invoice 17"], 0.9, 0),
        ("ab", ["ac"], 0.5, 0),  # exactly 0.5 stays
        ("abc", ["axy"], 0, 0),
        ("abcd", ["abxy"], 0.5, 0),
        ("abcde", ["abxyz"], 0, 0),
        ("", ["a"], 0, 0),
        ("", [""], 1, 1),
        ("a", [""], 0, 0),
        ("yes", ["no", "yes"], 1, 1),
        ("yess", ["no", "yes"], 0.75, 0),
        ("a  b", ["a b"], 0.75, 0),  # white space within counts
        ("3.14", ["3.15"], 0.75, 0),
        ("$5", ["5"], 0.5, 0),
        ("the cat", ["cat"], 0, 0),  # 3 of 7
        ("a cat", ["cat"], 0.6, 0),
        ("CAT", ["cat"], 1, 1),
        ("kitten", ["sitting"], 4 / 7, 0),
        ("tac", ["cat"], 0, 0),
        ("é", ["e"], 0, 0),
        ("page 3", ["page 4", "page 33"], 6 / 7, 0),
    ],
)
def test_anls_is_mp_docvqas(said, answers, anls, accuracy):
    assert math.isclose(score.docvqa_anls(said, answers), anls)
    assert score.docvqa_accuracy(said, answers) == accuracy


@pytest.mark.parametrize(
    ("said", "answer", "kind", "expected"),
    [
        ("8", "8", "Int", 1),
        ("8.0", "8", "Int", 1),
        ("8.9", "8", "Int", 1),  # what stands behind the point is cut off
        ("7", "8", "Int", 0),
        ("eight", "8", "Int", 0),
        ("8 people", "8", "Int", 0),
        ("inf", "8", "Int", 0),
        ("", "8", "Int", 0),
        ("12.5%", "12.5", "Float", 1),
        ("$12.5", "12.5", "Float", 1),
        ("0.125", "12.5", "Float", 1),  # a hundredth of it
        ("1250", "12.5", "Float", 1),
        ("12.6", "12.5", "Float", 1),  # within 1 %
        ("12.7", "12.5", "Float", 0),
        ("12.5 million", "12.5", "Float", 0),  # units are not taken off
        ("12.5 (percent)", "12.5", "Float", 1),
        ("nan", "12.5", "Float", 0),
        ("", "12.5", "Float", 0),
        ("0.004", "0", "Float", 1),  # both 0.00
        ("Red Star", "red star", "Str", 1),
        ("red star (the big one)", "red star", "Str", 1),
        ('"red star"', "red star", "Str", 1),
        ("ab", "ac", "Str", 0),  # exactly 0.5 is 0, where DocVQA keeps it
        ("abc", "abd", "Str", 2 / 3),
        ("5 miles", "5 mile", "Str", 6 / 7),  # the script strips units, and drops what is left
        ("2019-05-03", "2019-05-04", "Str", 0),  # a date to the letter
        ("page 5", "page 4", "Str", 0),
        ("555-123", "555-124", "Str", 0),
        ("me@site.org", "me@site.com", "Str", 0),
        ("9 a.m.", "8 a.m.", "Str", 0),
        ("https://a.org", "https://b.org", "Str", 0),
        ("Not answerable", "Not answerable", "None", 1),
        ("not answerable.", "Not answerable", "None", 14 / 15),
        ("['red', 'blue']", "['blue', 'red']", "List", 1),
        ("['red']", "['blue', 'red']", "List", 0),
        ("['blud', 'red']", "['blue', 'red']", "List", 0.75),  # the lowest
        ("red, blue", "['blue', 'red']", "List", 0),
        ("red", "['red']", "List", 1),
        ("['3', '5']", "['3', '6']", "List", 0),
        ("[3, 5]", "['3', '5']", "List", 1),
        ("['3', '5'", "['3', '5']", "List", 0),  # the script fails on it
        ("[]", "['red']", "List", 0),
        ("__import__('os')", "['red']", "List", 0),
        ("[__import__('os')]", "['red']", "List", 0),
    ],
)
def test_mmlongbench_is_eval_score(said, answer, kind, expected):
    assert math.isclose(score.mmlongbench(said, answer, kind), expected)
