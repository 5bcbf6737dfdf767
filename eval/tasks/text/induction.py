"""`induction`: labels and bodies as chunks of their own; a label is repeated, and its body follows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import whole
from eval.tasks.text import findings
from eval.tasks.text.reader import BREAK, SEED, CorpusTooSmallError, Reader
from eval.tasks.text.task import Need, TextTask, known
from eval.tasks.tokens import Tokens

FEW = 2
"""Components a layer that a patch of a text of few tokens may have."""

LETTERS = "ABCDEFGHJKLM"


@dataclass(frozen=True, kw_only=True)
class Induction(TextTask):
    """Headers ("Document B:") and the texts that stand under them, each a chunk of its own.

    A header is repeated, and the question is how its text begins: with which token of all, and (``choice``) with which
    of those that the texts in the window begin with. A text that was encoded alone does not know what it stands under,
    as where headers are written by a template and texts come from a cache.

    Attributes:
        tokens: of each text.
        documents: how many there are.
    """

    tokens: int = 16
    documents: int = 4

    name = "induction"
    version = 2
    contexts = 20
    settings = {**TextTask.settings, "tokens": whole, "documents": whole}

    @property
    def conditions(self) -> Sequence[str]:
        """One."""
        return [f"{self.documents} documents"]

    def needs(self, contexts: int) -> Iterator[Need]:
        """Texts to draw the documents from."""
        yield Need(self.tokens, self.documents)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Headers and texts that begin with different tokens; one question."""
        rng = np.random.default_rng((SEED, outline.seed, index))
        passages = reader.passages(self.tokens)
        chosen: dict[int, np.ndarray] = {}
        for number in rng.permutation(len(passages)):
            chosen.setdefault(int(passages[number][0]), passages[number])
            if len(chosen) == self.documents:
                break
        headers = self._headers(reader)
        different = len({int(passage[0]) for passage in passages})
        if len(chosen) < self.documents or len(headers) < self.documents:
            raise CorpusTooSmallError(
                f"the corpus {reader.corpus.name} has {len(passages)} paragraphs of at least {self.tokens} tokens, "
                f"which begin with {different} different tokens, and there are {len(headers)} headers that "
                f"differ and have equally many tokens; "
                f"{self.documents} of each are needed: give a larger corpus (corpus=FOLDER) or fewer documents"
            )
        labels = rng.permutation(len(headers))[: self.documents]
        items = []
        for label, body in zip(labels, chosen.values(), strict=True):
            items += [Tokens.of(headers[label]), Tokens.of(body)]
        asked = int(rng.integers(self.documents))
        beginnings = tuple(chosen)
        asked_of = [*headers[labels[asked]], beginnings[asked]]
        question = known(reader, asked_of, outline.layout, hops=2, depth=asked / self.documents)[-1]
        return Context(items, [replace(question, among=beginnings)])

    def _headers(self, reader: Reader) -> list[tuple[int, ...]]:
        """Headers of equally many tokens, as chunks at one place have."""
        headers = [tuple(reader.ids(f"{BREAK}Document {letter}:\n")) for letter in LETTERS]
        lengths = [len(header) for header in headers]
        common = max(sorted(set(lengths)), key=lengths.count)
        return list(dict.fromkeys(header for header in headers if len(header) == common))

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """What becomes of the beginning of a text under its header: as a choice, and of all tokens."""
        condition = f"{self.documents} documents"
        what = "which text stands under a repeated header"
        able = (1 + 1 / self.documents) / 2  # half way between chance and always
        found = findings.lost_and_restored(
            scores, condition, what, oracle=False, measure="choice", able=able, components=FEW
        )
        what = "the text under a repeated header"
        return [*found, *findings.lost_and_restored(scores, condition, what, oracle=False, components=FEW)]
