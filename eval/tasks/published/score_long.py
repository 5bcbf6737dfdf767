"""Scores of SCBench's tasks, as its ``compute_scores.py`` computes them, oddities included."""

import re
import string
from collections.abc import Callable, Sequence

from eval.tasks.published.score_text import _f1

_CHINESE = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠"
_CHINESE += "｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"


def has_value(said: str, answers: Sequence[str]) -> float:
    """``kv_retrieval``: 1 where the answer has the value in it, letter by letter."""
    return float(answers[0] in said)


def first_number(said: str, answers: Sequence[str]) -> float:
    """``passkey``: 1 where the first digits in a row are the right ones."""
    found = re.search(r"[0-9]+", said)
    return float((found[0] if found else "") == answers[0])


def number_found(said: str, answers: Sequence[str]) -> float:
    """``math_find``: 1 where the first number is the right one; a whole one is compared without what is behind a point.

    Signs do not count: the script reads digits alone.
    """
    found = re.search(r"\d+\.\d+|\d+", said)
    if found is None:
        return 0.0
    right = answers[0]
    if "." in right:
        return float(float(found[0]) == float(right))
    return float(int(float(found[0])) == int(right))


def mentions_one(said: str, answers: Sequence[str]) -> float:
    """``longdialogue_qa_eng`` (English questions, many-shot): 1 where a right answer is in it, whatever the case."""
    return float(any(answer.upper() in said.strip().upper() for answer in answers))


def share_mentioned(said: str, answers: Sequence[str]) -> float:
    """``string_match_all`` (variable tracking): the share of right items in it, rounded to two digits."""
    return round(sum(answer.lower() in said.lower() for answer in answers) / len(answers), 2)


def letter_chosen(said: str, answers: Sequence[str]) -> float:
    """``longbook_choice_eng``: the letter an answer begins with, else behind a phrase, else the first one by itself.

    Args:
        said: the answer.
        answers: what counts as right: the letter, and the option's text where the data have it.
    """
    said = said.strip()
    if not said:
        return 0.0
    if said[0] in "ABCD":
        return float(said[0] in answers)
    if said in answers:
        return 1.0
    for sign in "\n\"'.,?!{}":
        said = said.replace(sign, " ")
    said = re.sub(r" {2,}", " ", said)
    for phrase in ("answer is:", "answer:", "answer is", "option is"):
        if phrase in said:
            behind = said.partition(phrase)[2][1:]
            return float(bool(behind) and any(behind.startswith(answer) for answer in answers))
    letter = next((word for word in said.split() if word in "ABCD"), "")
    return float(letter in answers and letter != "")


def chinese_f1(said: str, answers: Sequence[str]) -> float:
    """``longbook_qa_chn``: F1 over characters without punctuation and white space, the best of the right answers."""
    return max(_f1(_characters(said), _characters(answer)) for answer in answers)


def _characters(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation + _CHINESE)
    return list("".join(kept.split()))


def rouge_lsum(said: str, answers: Sequence[str]) -> float:
    """ROUGE-Lsum (Lin, 2004) of Google's ``rouge_score``, no stemmer: F1 over the union of common subsequences.

    Sentences are lines; words are runs of a–z and digits.
    """
    given, right = ([_words(line) for line in text.split("\n") if _words(line)] for text in (said, answers[0]))
    written, expected = (sum(map(len, lines)) for lines in (given, right))
    if not written or not expected:
        return 0.0
    left = {word: sum(line.count(word) for line in given) for line in given for word in line}
    due = {word: sum(line.count(word) for line in right) for line in right for word in line}
    hits = 0
    for line in right:
        for place in sorted(set().union(*(_subsequence(line, own) for own in given))):
            word = line[place]
            if left.get(word, 0) > 0 and due[word] > 0:
                hits += 1
                left[word] -= 1
                due[word] -= 1
    precision = hits / written
    recall = hits / expected
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _words(line: str) -> list[str]:
    return re.sub(r"[^a-z0-9]+", " ", line.lower()).split()


def _subsequence(line: Sequence[str], other: Sequence[str]) -> set[int]:
    """Places of a longest common subsequence in the first line."""
    lengths = [[0] * (len(other) + 1) for _ in range(len(line) + 1)]
    for i, word in enumerate(line, 1):
        for j, counterpart in enumerate(other, 1):
            above = max(lengths[i - 1][j], lengths[i][j - 1])
            lengths[i][j] = lengths[i - 1][j - 1] + 1 if word == counterpart else above
    places = set()
    i = len(line)
    j = len(other)
    while i and j:
        if line[i - 1] == other[j - 1]:
            places.add(i - 1)
            i -= 1
            j -= 1
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


Scorer = Callable[[str, Sequence[str]], float]

SCORERS: dict[str, Scorer] = {
    "choice_eng": letter_chosen,
    "qa_eng": mentions_one,
    "qa_chn": chinese_f1,
    "kv": has_value,
    "kv_hard": has_value,
    "hashhop": has_value,
    "prefix_suffix": has_value,
    "kv_compressible": has_value,
    "passkey": first_number,
    "mf": number_found,
    "vt": share_mentioned,
    "many_shot": mentions_one,
    "summary": rouge_lsum,
}
"""By task of SCBench, without its ``scbench_``; RepoQA's is in `score_code`."""
