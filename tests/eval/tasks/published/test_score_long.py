"""SCBench's scores, against values worked out by hand from what its script defines."""

import math

from eval.tasks.published import score_long as score


def check(scorer, cases):
    for said, answers, expected in cases:
        assert math.isclose(scorer(said, answers), expected, abs_tol=1e-12), (said, answers)


def test_a_value_stands_in_the_answer():
    right = ["3f-9a"]
    cases = [("3f-9a", 1), ("the value is 3f-9a.", 1), ('"3f-9a"', 1), ("x3f-9ax", 1), ("3f-9a 3f-9a", 1)]
    cases += [("3F-9A", 0), ("3f9a", 0), ("3f -9a", 0), ("", 0), ("3f-9", 0), ("3f-\n9a", 0), ("f-9a", 0)]
    cases += [
        (" 3f-9a", 1),
        ("a: 3f-9a, b: 1", 1),
        ("3f–9a", 0),
        ("[3f-9a]", 1),
        ("no", 0),
        ("3f-9b", 0),
        ("33f-9a", 1),
    ]
    check(score.has_value, [(said, right, value) for said, value in [*cases, ("\n3f-9a\n", 1)]])


def test_the_first_number_counts():
    right = ["71432"]
    cases = [("71432", 1), ("The pass key is 71432.", 1), ("71432, not 5", 1), ("5, not 71432", 0), ("", 0)]
    cases += [("071432", 0), ("71,432", 0), ("7 1432", 0), ("-71432", 1), ("71432.0", 1), ("x71432x", 1), ("none", 0)]
    cases += [("714320", 0), ("7143", 0), ("key #71432", 1), ("1. 71432", 0), ("\n71432", 1), ("71432 71432", 1)]
    check(score.first_number, [(said, right, value) for said, value in [*cases, ("(71432)", 1), ("٧١", 0)]])


def test_a_number_is_found():
    cases = [("12", "12", 1), ("12.9", "12", 1), ("-12", "12", 1), ("12", "-12", 0), ("is 12", "12", 1), ("", "12", 0)]
    cases += [("none", "12", 0), ("1 2", "12", 0), ("13 12", "12", 0), ("12 13", "12", 1), (".5", "5", 1)]
    cases += [("2.5", "2.5", 1), ("2.50", "2.5", 1), ("2", "2.5", 0), ("2", "2.0", 1), ("2.4", "2.5", 0)]
    cases += [("1,000", "1000", 0), ("1e3", "1", 1), ("12.", "12", 1), ("x=7;", "7", 1), ("0", "0", 1)]
    check(score.number_found, [(said, [right], value) for said, right, value in cases])


def test_one_of_the_answers_is_mentioned():
    cases = [("John", ["JOHN"], 1), ("it was john.", ["John"], 1), ("Johnny", ["John"], 1), ("Jon", ["John"], 0)]
    cases += [("", ["John"], 0), ("Mary", ["John", "Mary"], 1), ("JOHN MARY", ["Mary"], 1), ("a b", ["ab"], 0)]
    cases += [("(A)", ["A"], 1), ("cat", ["a"], 1), ("dog", ["a"], 0), ("New  York", ["New York"], 0), ("x", [""], 1)]
    cases += [("New York.", ["new york"], 1), ("É", ["é"], 1), ("ss", ["ß"], 1), ("  John  ", ["john"], 1)]
    cases += [("not John", ["John"], 1), ("J.", ["John"], 0), ("The Lord", ["lord"], 1), ("lo rd", ["lord"], 0)]
    check(score.mentions_one, cases)


def test_the_share_of_items_that_is_mentioned():
    three = ["ABC", "DEF", "GHI"]
    cases = [("ABC DEF GHI", three, 1), ("abc", three, 0.33), ("abc def", three, 0.67), ("", three, 0)]
    cases += [("ABCDEF", three, 0.67), ("ABD", three, 0), ("GHI, ABC", three, 0.67), ("ABC ABC", three, 0.33)]
    cases += [("x", ["x"], 1), ("y", ["x"], 0), ("a b c d e f g", list("abcdefg"), 1), ("a", list("abcdefg"), 0.14)]
    cases += [("A-B-C", three, 0), ("[ABC, DEF]", three, 0.67), ("ab", ["a", "b"], 1), ("a", ["a", "b"], 0.5)]
    cases += [("Abc dEf", three, 0.67), ("nothing", three, 0), ("GHI", three, 0.33), ("HI", three, 0)]
    check(score.share_mentioned, cases)


def test_a_letter_is_chosen():
    cases = [("B", 1), ("B.", 1), ("B because", 1), (" B", 1), ("A", 0), ("", 0), ("b", 0), ("Beth", 1), ("Dog B", 0)]
    cases += [("(B)", 0), ("The answer is: B", 1), ("The answer is B", 1), ("the answer: C", 0), ("answer is:", 0)]
    cases += [("the option is B", 1), ("I say B .", 1), ("I say A or B", 0), ("I say 'B'", 1), ("none", 0)]
    cases += [("so BC is it", 0), ("answer is: Beth", 1), ("answer is:B", 0), ("the  answer   is: B", 1), ("x. B", 1)]
    check(score.letter_chosen, [(said, ["B"], value) for said, value in cases])
    check(score.letter_chosen, [("the red one", ["the red one", "B"], 1), ("red one", ["the red one", "B"], 0)])


def test_f1_over_characters():
    cases = [
        ("北京", "北京", 1),
        ("北京。", "北京", 1),
        ("北 京", "北京", 1),
        ("京北", "北京", 1),
        ("北", "北京", 2 / 3),
    ]
    cases += [("北京市", "北京", 0.8), ("上海", "北京", 0), ("", "北京", 0), ("。", "北京", 0), ("AB", "ab", 1)]
    cases += [("北北", "北京", 0.5), ("1990年", "1990", 8 / 9), ("a-b", "ab", 1)]
    cases += [("《红楼梦》", "红楼梦", 6 / 7)]  # the script's list lacks the opening mark
    cases += [("北京", "", 0), ("，，", "，", 0), ("红", "红楼梦", 0.5), ("红楼", "红楼梦", 0.8), ("x", "y", 0)]
    cases += [("东南西北", "南北", 2 / 3)]
    check(score.chinese_f1, [(said, [right], value) for said, right, value in cases])
    check(score.chinese_f1, [("北京", ["上海", "北京"], 1)])


def test_rouge_lsum():
    right = "the cat sat\nthe dog ran"
    cases = [(right, right, 1), ("the cat sat", right, 2 / 3), ("", right, 0), ("x", right, 0), (right, "", 0)]
    cases += [("The CAT, sat!", "the cat sat", 1), ("cat the sat", "the cat sat", 2 / 3), ("sat", "the cat sat", 0.5)]
    cases += [("the dog ran\nthe cat sat", right, 1), ("the cat sat the dog ran", right, 1), ("a b", "b a", 0.5)]
    cases += [("a a", "a", 2 / 3), ("a", "a a", 2 / 3), ("a\na", "a", 2 / 3), ("a b c", "a x b x c", 0.75)]
    cases += [("a b\nc d", "a b c d", 1), ("a-b", "a b", 1), ("1 2", "1 2 3 4", 2 / 3), ("é", "é", 0), ("\n\n", "a", 0)]
    # Lines w1 w2 and w1 w3 w4 of an answer cover w1, w2, w3 and w4 of w1 w2 w3 w4 w5: Lin's own example, hits clipped.
    cases += [("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * 0.4 * 0.8 / 1.2)]
    check(score.rouge_lsum, [(said, [answer], value) for said, answer, value in cases])
