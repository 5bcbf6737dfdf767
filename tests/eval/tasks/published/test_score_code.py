"""RepoQA's score: BLEU against values of nltk's sentence_bleu with its method4, and what of an answer is compared."""

import math

import pytest

from eval.tasks.published.score_code import bleu, extracted, function_found

EIGHT = "a b c d e f g h"
FUNCTION = "def star(page):\n    return [each for each in page if each.colour == page.star]"
OTHER = "def moon(page):\n    return sum(each.size for each in page.moons)"


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        (EIGHT, EIGHT, 1.0),
        ("a b c d e f g", EIGHT, 0.8668778997501817),
        ("a b c d e f g h i", EIGHT, 0.8633400213704505),
        ("a b c x e f g h", EIGHT, 0.5),
        ("a", "a", 1.0),
        ("a", "a b", 0.36787944117144233),
        ("a b", "a b", 0.2213885886251307),
        ("a b", "b a", 0.08032423517939204),
        ("a b c", "a b c", 0.5757197301274735),
        ("x y", "a b", 0.0),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a a a a", "a", 0.061033220311973134),
        ("a b c d", "d c b a", 0.08631400792049747),
        ("a\n\tb  c d", "a b c d", 1.0),
        ("a b c d e", "a b c d", 0.668740304976422),
        ("a b c d", EIGHT, 0.36787944117144233),
        ("  a b c d\n", "a b c d", 1.0),
        ("A b c d", "a b c d", (3 / 4 * 2 / 3 * 1 / 2 * math.log(4) / 10) ** 0.25),
    ],
)
def test_bleu_is_nltks(said, right, expected):
    assert bleu(said, right) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "language", "expected"),
    [
        (FUNCTION, "python", FUNCTION),
        (f"Here:\n```python\n{FUNCTION}\n```\nIt is.", "python", FUNCTION),
        (f"```\n{FUNCTION}\n```", "python", FUNCTION),
        (f"```python\nimport os\n\n@cached\n{FUNCTION}\n\n{OTHER}\n```", "python", FUNCTION),
        (f"```python\nx = 1\n```\n```python\n{FUNCTION}\n```", "python", FUNCTION),
        ("```python\nx = 1\n```\n```\ny = 2\n```", "python", "x = 1\n"),
        ("```python\ndef (\n```", "python", "def (\n"),
        (f"```go\n{FUNCTION}\n```", "go", f"{FUNCTION}\n"),
        (f"```python\n{FUNCTION}", "python", f"```python\n{FUNCTION}"),
        (f"say ```python\n{FUNCTION}\n```", "python", f"say ```python\n{FUNCTION}\n```"),
        (
            "```python\nclass A:\n    async def f(self):\n        pass\n```",
            "python",
            "async def f(self):\n        pass",
        ),
        ("", "python", ""),
    ],
)
def test_what_of_an_answer_is_compared(said, language, expected):
    assert extracted(said, language) == expected


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        (FUNCTION, [FUNCTION], 1),
        (FUNCTION, [OTHER], 0),
        (f"```python\n{FUNCTION}\n```", [FUNCTION], 1),
        (FUNCTION.replace("star(", "sun("), [FUNCTION], 1),
        (FUNCTION.replace("each", "item"), [FUNCTION], 0),  # the most like it, and below 0.8
        (f"{FUNCTION}\n{OTHER}", [FUNCTION], 0),
        ("", [FUNCTION], 0),
        ("no", [FUNCTION], 0),
        (OTHER, [FUNCTION, OTHER], 1),
        (FUNCTION.replace("\n    ", " "), [FUNCTION], 1),
    ],
)
def test_the_function_that_is_most_alike_counts(said, right, expected):
    assert function_found(said, right, [FUNCTION, OTHER], "python") == expected


def test_of_equals_the_first_counts():
    """Functions of one text are one function, whatever they are called; without any, nothing is right."""
    assert function_found(FUNCTION, [FUNCTION], [FUNCTION, FUNCTION], "python") == 1
    assert function_found(FUNCTION, [FUNCTION], [], "python") == 0
