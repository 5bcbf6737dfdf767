"""Which option an answer chooses, as official scripts of multiple-choice benchmarks read it, oddities included."""

import re
import string
from collections.abc import Sequence

from eval.tasks.published.score_text import without_punctuation

_VIDEO_MME = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",  # as there, where a comma between them is missing
    "Best answer:Best option:",
)


def video_mme(said: str) -> str:
    """The option of Video-MME's ``extract_characters_regex``: the first capital A, B, C or D anywhere, or nothing.

    Four phrases are removed before; ``Best answer: C`` is therefore B.
    """
    said = said.strip()
    for phrase in _VIDEO_MME:
        said = said.replace(phrase, "")
    found = re.search("[ABCD]", said)
    return found[0] if found else ""


def first_letter(said: str) -> str:
    """The first character of an answer, as StreamingBench reads it; nothing of an empty one."""
    return said.strip()[:1]


def leading_option(said: str, count: int) -> str:
    """The letter that an answer begins with, alone or before something that is no letter: ``B``, ``(B)``, ``B. red``.

    For EgoSchema, whose official script takes the numbers of options and says nothing of texts.

    Args:
        said: the answer.
        count: how many options there are.
    """
    letters = string.ascii_uppercase[:count]
    found = re.match(rf"\W*([{letters}])(?![A-Za-z])", said.strip())
    return found[1] if found else ""


def milebench_text(text: str) -> str:
    """A text as MileBench's ``process`` leaves it: small letters, without the punctuation that VQA removes."""
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    return text.strip("'").strip('"').strip().lower()


def milebench_choice(said: str, options: Sequence[str]) -> str:
    """The options that MileBench's ``match_choice`` reads from an answer: letters, of which one alone can be right.

    An empty answer is C. Then counts, in this order: an option with its letter before it, anywhere; an option's text,
    white space left out (one with a sign that regular expressions use, as in ``2.5``, never does); a letter by itself;
    and else every character that is a letter of an option, in a row: ``it is b`` is just B, ``i have a b`` is AAB.

    Args:
        said: the answer; it and the options are read through `milebench_text`.
        options: their texts.
    """
    said = milebench_text(said)
    if not said:
        return "C"
    by_letter = {chr(65 + i): milebench_text(option) for i, option in enumerate(options)}
    with_letter = "|".join(re.escape(milebench_text(f"{letter} {text}")) for letter, text in by_letter.items())
    if found := re.search(with_letter, said):
        return found[0][0].upper()
    bare = {letter: text.replace(" ", "") for letter, text in by_letter.items()}
    found = re.search("|".join(map(re.escape, bare.values())), said.replace(" ", ""))
    if found:
        for letter, text in bare.items():
            if found[0] == text and not any(sign in text for sign in "\\.^$*+?{}[]|()"):
                return letter
    if len(said) == 1 and said.upper() in by_letter:
        return said.upper()
    return "".join(letter.upper() for letter in said if letter.upper() in by_letter)


def milebench(said: str, answer: str, options: Sequence[str]) -> float:
    """1 where MileBench's ``judge_multi_choice`` takes an answer for the right option.

    Args:
        said: the answer.
        answer: the right option's text.
        options: all of them.
    """
    texts = [milebench_text(option) for option in options]
    return float(milebench_choice(said, options) == chr(65 + texts.index(milebench_text(answer))))
