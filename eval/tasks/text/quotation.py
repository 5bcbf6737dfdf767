"""`quotation`: the second passage begins a copy of the first and stops; the text goes on with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import whole
from eval.tasks.text import findings
from eval.tasks.text.reader import BREAK, Reader
from eval.tasks.text.task import Need, TextTask, known
from eval.tasks.tokens import Tokens

LENGTH = 16
"""Next tokens of a quotation that are asked for."""

PLACES = {
    f"next tokens {first:02d}" + (f" – {last:02d}" if last > first else ""): range(first, last + 1)
    for first, last in ((1, 1), (2, 2), (3, 5), (6, 9), (10, 15), (LENGTH, LENGTH))
}
"""Which of the next tokens each condition is of."""


@dataclass(frozen=True, kw_only=True)
class Quotation(TextTask):
    """A passage, and behind it the beginning of a copy of it: which tokens does the copy go on with?

    In full prefill the tokens of the copy have met their originals; encoded alone they have not.

    Attributes:
        tokens: of the first passage; half of them are copied.
    """

    tokens: int = 256

    name = "quotation"
    contexts = 10
    settings = {**TextTask.settings, "tokens": whole}

    @property
    def conditions(self) -> Sequence[str]:
        """One layout; the answers are shown by their place."""
        return [f"{self.tokens} tokens"]

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage for each context."""
        yield Need(self._whole, contexts)

    @property
    def _whole(self) -> int:
        return max(self.tokens, self.tokens // 2 + LENGTH + 1)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """The passage and its copy, and sixteen questions, two hops each: the copy says where, the passage what."""
        ids = reader.chosen(outline.seed, self._whole)[index][: self.tokens]
        copied = self.tokens // 2
        items = (Tokens.of(ids), Tokens.of((*reader.ids(BREAK), *ids[:copied])))
        place = {number: name for name, numbers in PLACES.items() for number in numbers}
        questions = known(reader, ids[copied : copied + len(place) + 1], place.__getitem__, hops=2, depth=0)
        return Context(items, questions)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """Whether the next tokens are written greedily as the passage has them, all of them."""
        what = f"the next {LENGTH} tokens of a quotation, written greedily"
        last = list(PLACES)[-1]
        found = findings.lost_and_restored(scores, last, what, oracle=True, measure="so far")
        return [*found, findings.at_most(scores, "blind", last, 0.1, what, measure="so far")]
