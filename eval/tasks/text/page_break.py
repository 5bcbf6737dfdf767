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
    ("My favourite city is", "Paris London Rome Berlin Madrid Vienna Dublin Athens Tokyo Moscow"),
    ("The name of the dog is", "Max Rex Lucky Daisy Charlie Bella Rocky Jack"),
    ("The secret password is", "banana dragon winter silver monkey tiger orange ocean"),
    ("The meeting will be held on", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    ("The colour of the front door is", "red blue green yellow white black brown purple"),
    ("The person in charge is", "Anna Ben Carl David Emma Frank Helen Kate"),
)
"""Beginnings of sentences, and the words that may end them."""

CUT = 3
"""Facts of a context: one at each of its borders."""


@dataclass(frozen=True, kw_only=True)
class PageBreak(TextTask):
    """Four passages with three facts, each cut by a border.

    A chunk ends with "The secret password is", and the next begins with " banana.".

    What is lost here is lost at the border: the chunk's first token alone, run again, also restores it. So this shows a
    boundary effect, and not that what is absorbed is spread over a chunk.

    Attributes:
        tokens: of each chunk, the parts of facts among them.
    """

    tokens: int = 64

    name = "page-break"
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
        facts = []
        for number in rng.permutation(len(FACTS))[:CUT]:
            beginning, words = FACTS[number]
            facts.append((reader.ids(BREAK + beginning), reader.ids(" " + str(rng.choice(words.split())))))
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
        found = findings.lost_and_restored(scores, f"{self.tokens} tokens", what, oracle=False)
        return [*found, findings.boundary(scores, f"{self.tokens} tokens")]
