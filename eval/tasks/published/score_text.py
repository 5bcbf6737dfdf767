"""Scores of answers in words, each as a benchmark's official script computes it.

Written from what the scripts define, their oddities included; each function names the script. Nothing a model says can
raise an error: what the script would fail on scores 0.
"""

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from math import isclose
from typing import Any

from eval.tasks.answers import levenshtein

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Signs that VQA's evaluation removes, or puts a space for; full stops are another rule, apostrophes stay."""

_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32
"""So many full stops are removed at most: the script hands a flag to ``re.sub`` where a count is expected."""

_THOUSANDS = re.compile(r"\d,\d")

_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_BELOW_TWENTY = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
NUMBERS = {word: str(value) for value, word in enumerate(_BELOW_TWENTY.split())}
NUMBERS |= {word: str(10 * value) for value, word in enumerate(_TENS.split(), 2)}
"""Numbers in words, and their digits."""

_ONE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
_TWO = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
""".split()
_ODD = {
    **{"somebody'd": "somebodyd", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"},
    **{"yall'll": "y'all'll", "y'allll": "y'all'll"},
    **{"yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've"},
}


def _contractions() -> dict[str, str]:
    """Contractions by how they are written with an apostrophe left out, as in VQA's table."""
    table = {word.replace("'", ""): word for word in _ONE}
    for word in _TWO:
        head, middle, tail = word.split("'")
        table |= {f"{head}{middle}'{tail}": word, f"{head}'{middle}{tail}": word}
    return table | _ODD


CONTRACTIONS = _contractions()


def without_punctuation(text: str) -> str:
    """A text without the signs of `PUNCTUATION` and without full stops that no digit follows, as in VQA's evaluation.

    A sign is removed where the text has it beside a space anywhere, or has a comma between digits; else it becomes a
    space.
    """
    kept = text
    thousands = _THOUSANDS.search(text) is not None
    for sign in PUNCTUATION:
        beside = thousands or f"{sign} " in text or f" {sign}" in text
        kept = kept.replace(sign, "" if beside else " ")
    return _STOP.sub("", kept, count=_STOPS)


def vqa_normalised(text: str) -> str:
    """A text as VQA's evaluation compares it: small letters, numbers as digits, no punctuation and no articles."""
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def contains_word(said: str, right: str) -> float:
    """1 where the normalised answer has the normalised right one as whole words; ``VQAEval.evaluate`` of MM-NIAH."""
    return float(re.search(rf"\b{re.escape(vqa_normalised(right))}\b", vqa_normalised(said)) is not None)


def mm_niah(said: str, answer: str | int | list[Any]) -> float:
    """``is_correct`` of MM-NIAH's ``calculate_scores.py``.

    Args:
        said: the answer.
        answer: a text, which the answer has to contain; the number of a choice, which is given by itself or by its
            letter, alone or before a full stop (``(A)`` is wrong); or a list: the share of items that are right, place
            by place, of an answer that is JSON and nothing else.
    """
    said = said.strip(".")
    if isinstance(answer, list):
        return _items(said, answer)
    if isinstance(answer, str):
        return contains_word(said, answer)
    if said.isdigit():
        return float(said.isdecimal() and int(said) == answer)
    said = said.lower().replace("the answer is", "").replace("*", "")
    if "." in said:
        said = said.partition(".")[0].replace(",", "")
    said = said.strip()
    for side, letter in (("left", "a"), ("right", "b")):
        if f"the camera is moving {side}" in said:
            said = letter
            break
    return float(len(said) == 1 and ord(said) - ord("a") == answer)


def _items(said: str, answer: list[Any]) -> float:
    try:
        items = json.loads(said.replace("json", "").replace("```", "").strip())
        if isinstance(items, dict):
            items = sum(items.values(), start=[])
    except (ValueError, TypeError, RecursionError):
        return 0.0
    if not isinstance(items, list):
        return 0.0
    return sum(item == right for item, right in zip(items, answer, strict=False)) / len(answer)


def normalised(text: str) -> str:
    """A text as SQuAD's script compares it: small letters, without ASCII's punctuation and English articles."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def squad_exact(said: str, answers: Sequence[str]) -> float:
    """Exact match of MuSiQue's ``metrics/answer.py``: 1 where the answer is one of the right ones, `normalised`."""
    return float(any(normalised(said) == normalised(answer) for answer in answers))


def squad_f1(said: str, answers: Sequence[str]) -> float:
    """F1 over words of MuSiQue's ``metrics/answer.py``, the best of the right answers; 1 where neither has words."""
    words = normalised(said).split()
    return max(_f1(words, normalised(answer).split(), float) for answer in answers)


def _f1(words: Sequence[str], right: Sequence[str], empty: Any = lambda _: 0.0) -> float:
    if not words or not right:
        return empty(list(words) == list(right))
    shared = sum((Counter(words) & Counter(right)).values())
    return 2 * shared / (len(words) + len(right))


def docvqa_anls(said: str, answers: Sequence[str]) -> float:
    """ANLS of MP-DocVQA: 1 − distance / longer length of the closest right answer, 0 where that is below 0.5.

    Texts are compared in small letters, without white space at their ends; what is exactly 0.5 stays.
    """
    said = said.strip().lower()
    best = max(_similarity(said, answer.strip().lower()) for answer in answers)
    return best if best >= 0.5 else 0.0


def docvqa_accuracy(said: str, answers: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, in small letters and without white space at the ends."""
    return float(said.strip().lower() in [answer.strip().lower() for answer in answers])


def _similarity(text: str, other: str) -> float:
    longest = max(len(text), len(other))
    return 1 - levenshtein(text, other) / longest if longest else 1.0


def mmlongbench(said: str, answer: str, kind: str) -> float:
    """``eval_score`` of MMLongBench-Doc.

    Args:
        said: the answer.
        answer: the right one, as the data have it; of a list as Python writes it.
        kind: the ``answer_format``: ``Int``: the same whole number, what stands behind a point being cut off;
            ``Float``: within 1 %, as it is or in percent, ``$`` and ``%`` left out; ``Str`` and ``None``: similarity
            above 0.5 (what is exactly 0.5 is 0), and of pages, addresses, dates and the like equality; ``List``: as
            many items, and the lowest similarity of the sorted ones, or equality where the first is a number.
    """
    if kind == "Int":
        try:
            return float(int(answer) == int(float(said)))
        except (ValueError, OverflowError):
            return 0.0
    if kind == "Float":
        try:
            return float(_close(float(_bare(answer)), float(_bare(said))))
        except ValueError:
            return 0.0
    if kind in ("Str", "None"):
        right = _bare(answer)
        return float(_bare(said) == right) if _verbatim(right) else _above_half(_bare(said), right)
    right, given = (sorted(map(_bare, _listed(text))) for text in (answer, said))
    if len(right) != len(given):
        return 0.0
    if _is_number(right[0]) or _verbatim(right[0]):
        return float("-".join(right) == "-".join(given))
    return min(_above_half(own, each) for own, each in zip(given, right, strict=True))


def _bare(value: Any) -> str:
    """A text in small letters, without parentheses, outer quotes, a dollar sign before it and a percent sign behind.

    Units stay: the script strips them and drops what is left.
    """
    text = re.sub(r"\s*\([^)]*\)", "", str(value).lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip()
    return text.lstrip("$").strip().rstrip("%").strip()


def _close(right: float, given: float) -> bool:
    """Whether a number is the right one, or it in percent or of percent: within 1 %, or once both are rounded."""
    for value in (right / 100, right, right * 100):
        digits = max(min(_digits(given), _digits(value)), 2)
        if isclose(value, given, rel_tol=0.01) or round(given, digits) == round(value, digits):
            return True
    return False


def _digits(value: float) -> int:
    """Digits behind the point, as Python writes the number; 3 where it writes none."""
    text = str(value)
    return len(text.rpartition(".")[2]) if "." in text else 3


def _verbatim(text: str) -> bool:
    """Whether a right answer has to be met to the letter: an address, a file, a page, a number, a time or a date."""
    return (
        "https://" in text
        or text.endswith((".py", "ipynb"))
        or text.startswith("page")
        or "a.m." in text
        or "p.m." in text
        or re.fullmatch(r"\b\d+(-\d+|\s\d+)?\b", text) is not None
        or re.fullmatch(r"\b\d{4}[-\s]\d{2}([-\s]\d{2})?\b", text) is not None
        or re.fullmatch(r"[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}", text) is not None
    )


def _above_half(text: str, other: str) -> float:
    similarity = _similarity(text, other)
    return similarity if similarity > 0.5 else 0.0


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _listed(text: str) -> list[Any]:
    """A list as Python writes it; what is none is its only item. Nothing is run: the script runs it."""
    if not text.startswith("["):
        return [text]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]
    return value if isinstance(value, list) and value else [text]
