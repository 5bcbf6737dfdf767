"""`page-break`: facts that a border between two chunks cuts; the question repeats the sentence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import SettingError, whole
from eval.tasks.text import findings
from eval.tasks.text.reader import BREAK, SEED, Reader
from eval.tasks.text.task import Need, TextTask, known
from eval.tasks.tokens import Tokens

FACTS = (
    ("My favourite city is", "Madrid Vienna Dublin Athens Moscow Lisbon Prague Oslo Helsinki Budapest"),
    ("The name of the dog is", "Rex Daisy Charlie Rocky Bruno Toby Oscar Felix"),
    ("The secret password is", "banana dragon winter silver monkey tiger orange ocean"),
    ("The magic word is", "window garden pencil candle bridge rabbit coffee marble"),
    ("The colour of the front door is", "brown pink grey gold silver orange violet beige"),
    ("The person in charge is", "Anna Ben Carl David Emma Frank Helen Kate"),
)
"""Beginnings of sentences, and the words that may end them."""

FEW = 8
"""Components a layer within which a patch is to restore a fact."""

GUESSED = 0.01
"""The probability from which on a model is said to guess a word without having read the fact."""

CUT = 3
"""Facts of a context: one at each of its borders."""


def drawn_facts(reader: Reader, rng: np.random.Generator, count: int, before: str) -> list[tuple[list[int], list[int]]]:
    """Facts with different beginnings, drawn at random.

    A word that the model gives a probability of `GUESSED` or more behind a beginning, with nothing but its preamble
    before that, does not end it: it could be right without having been read.

    Args:
        reader: of the model.
        rng: draws them.
        count: how many.
        before: what stands before a beginning.

    Returns:
        Token ids of the beginning and of the word, for each fact.

    Raises:
        SettingError: the model would say all the words of a beginning.
    """
    facts = []
    for number in rng.permutation(len(FACTS))[:count]:
        beginning, words = FACTS[number]
        read = reader.ids(before + beginning)
        guessed = reader.unprompted(read)
        spelled = [reader.ids(" " + word) for word in words.split()]
        unguessed = [word for word in spelled if guessed[word[0]] < GUESSED]
        if not unguessed:
            raise SettingError(
                f"the model says each of {', '.join(words.split())} behind {beginning!r} without having read it, with "
                f"a probability of {GUESSED:.0%} or more; the task needs a model that does not"
            )
        facts.append((read, unguessed[int(rng.integers(len(unguessed)))]))
    return facts


@dataclass(frozen=True, kw_only=True)
class PageBreak(TextTask):
    """Four passages with three facts, each cut by a border.

    A chunk ends with "The secret password is", and the next begins with " banana.". Words that the model would say
    behind that beginning with nothing else in the window are not used: see `drawn_facts`.

    What is lost here is lost at the border: the chunk's first token alone, run again, also restores it. So this shows a
    boundary effect, and not that what is absorbed is spread over a chunk.

    Attributes:
        tokens: of each chunk, the parts of facts among them.
    """

    tokens: int = 64

    name = "page-break"
    version = 2
    contexts = 10
    settings = {**TextTask.settings, "tokens": whole}

    @property
    def conditions(self) -> Sequence[str]:
        """One."""
        return [f"{self.tokens} tokens"]

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage, cut into the four chunks, for each context."""
        yield Need((CUT + 1) * self.tokens, contexts)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Four chunks of the same length, and a question for each fact: the word that ends it."""
        rng = np.random.default_rng((SEED, outline.seed, index))
        facts = drawn_facts(reader, rng, CUT, BREAK)
        ids = iter(reader.chosen(outline.seed, (CUT + 1) * self.tokens)[index])
        items = []
        carried: list[int] = []
        for beginning, word in [*facts, ([], [])]:
            room = self.tokens - len(carried) - len(beginning)
            if room < 1:
                raise SettingError(
                    f"a chunk of {self.tokens} tokens has no room for text beside the facts that its borders cut; give "
                    f"tokens={self.tokens - room + 1} or more"
                )
            items.append(Tokens.of((*carried, *(int(next(ids)) for _ in range(room)), *beginning)))
            carried = [*word, *reader.ids("." + BREAK)]
        questions = []
        for place, (beginning, word) in enumerate(facts):
            asked = known(reader, [*beginning, word[0]], outline.layout, hops=2, depth=(place + 1) / CUT)
            questions.append(asked[-1])
        return Context(items, questions)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """What becomes of the facts, and that it is a boundary effect."""
        what = "a fact that a border cuts"
        condition = f"{self.tokens} tokens"
        return [
            *findings.lost_and_restored(scores, condition, what, oracle=False, components=FEW),
            findings.at_most(scores, "blind", condition, 0.05, what),
            findings.components_reach(scores, FEW, condition, 0.95, what),
            findings.boundary(scores, condition),
        ]
