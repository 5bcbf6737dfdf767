"""Scores of an answer against those that count as right, each of one published definition.

Texts are compared in Unicode's composed form (NFC), so that it does not count how an accent was typed. Every function
gives 0 to 1, and 0 for an empty answer unless an empty one is right.
"""

import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from eval.tasks.base import Question

ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Text as SQuAD's evaluation compares it: small letters, no punctuation, no English articles, single spaces.

    Punctuation is whatever Unicode calls so, and ASCII's symbols as in SQuAD.
    """
    text = unicodedata.normalize("NFC", text).casefold()
    kept = "".join(
        letter for letter in text if letter not in string.punctuation and unicodedata.category(letter)[0] != "P"
    )
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(said: str, answers: Sequence[str]) -> float:
    """1 where the answer equals one of the right ones, both `normalised`, as SQuAD's exact match."""
    return float(normalised(said) in map(normalised, _some(answers)))


def f1(said: str, answers: Sequence[str]) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall over words, `normalised`; the best of the right answers.

    Where the answer or the right one has no words left, it is 1 if neither has, else 0.
    """
    words = normalised(said).split()
    return max(_f1(words, normalised(answer).split()) for answer in _some(answers))


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    shared = sum((Counter(words) & Counter(right)).values())
    return 2 * shared / (len(words) + len(right))


def anls(said: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer, as in DocVQA: the best of the right answers.

    1 − distance / length of the longer text, both stripped and in small letters, and 0 where that is below the
    threshold.
    """
    similarity = max(_similarity(_lowered(said), _lowered(answer)) for answer in _some(answers))
    return similarity if similarity >= threshold else 0.0


def _lowered(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _similarity(text: str, other: str) -> float:
    longest = max(len(text), len(other))
    return 1 - levenshtein(text, other) / longest if longest else 1.0


def levenshtein(text: str, other: str) -> int:
    """The fewest insertions, deletions and substitutions of characters that turn one text into the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(text, 1):
        diagonal = row[0]
        row[0] = i
        for j, counterpart in enumerate(other, 1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, diagonal + (letter != counterpart))
            diagonal = above
    return row[-1]


def multiple_choice(question: Question, said: str) -> float:
    """1 where the answer names the right choice: by its letter, or by its text, `normalised`.

    The letter stands first: ``B``, ``(B)``, ``b.``, ``B: red`` or ``B because``. A word that begins with it, as in
    ``Blue``, is no letter, nor are the words A and I before another word.

    Raises:
        ValueError: the question has no choices, more of them than letters, or not exactly one answer that is a letter
            or the text of one of them.
    """
    letters = string.ascii_uppercase[: len(question.choices)]
    if not 2 <= len(question.choices) <= len(string.ascii_uppercase):
        raise ValueError(
            f"{question.text!r} has {len(question.choices)} choices; a multiple-choice question needs 2 to "
            f"{len(string.ascii_uppercase)}"
        )
    if len(question.answers) != 1:
        raise ValueError(
            f"{question.text!r} has {len(question.answers)} answers; a multiple-choice question has exactly one"
        )
    (answer,) = question.answers
    texts = [normalised(choice) for choice in question.choices]
    if answer in letters:
        right = letters.index(answer)
    elif texts.count(normalised(answer)) == 1:
        right = texts.index(normalised(answer))
    else:
        raise ValueError(
            f"the answer {answer!r} of {question.text!r} is none of its choices; expected a letter of {letters} or the "
            f"text of one of {', '.join(question.choices)}"
        )
    if normalised(said) == texts[right]:
        return 1.0
    return float(_letter(said) == letters[right])


def _letter(said: str) -> str:
    """The letter that an answer begins with, in capitals; empty if it begins with something else."""
    found = re.match(r"\s*[(\[]?(?:([A-Za-z])(?:[)\].:,;]|\s*$)|([B-HJ-Z])\s)", said)
    return "" if found is None else (found[1] or found[2]).upper()


def listed(said: str, answers: Sequence[str]) -> float:
    """The share of a list's items that are right, place by place, as MM-NIAH's soft accuracy of counting.

    The answer is a JSON list, as in ``[1, 0, 2]``. Items that are missing count as wrong, items beyond the right ones
    do not count, and what is no list scores 0.

    Args:
        said: the answer.
        answers: the right items in order.
    """
    start = said.find("[")
    try:
        items, _ = json.JSONDecoder().raw_decode(said[start:] if start >= 0 else said)
    except (json.JSONDecodeError, RecursionError):
        return 0.0
    if not isinstance(items, list):
        return 0.0
    right = [normalised(str(item)) == normalised(answer) for item, answer in zip(items, _some(answers), strict=False)]
    return sum(right) / len(answers)


def _some(answers: Sequence[str]) -> Sequence[str]:
    if isinstance(answers, str) or not answers:
        raise ValueError(f"an answer is scored against at least one right answer, in a sequence; got {answers!r}")
    return answers
