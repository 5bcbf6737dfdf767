"""`continuation` and `needs-context`: real text that goes on behind two passages of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import whole, wholes
from eval.tasks.text import findings
from eval.tasks.text.reader import Reader
from eval.tasks.text.task import AHEAD, Need, TextTask, known, shares
from eval.tasks.tokens import Tokens, segment_of
from kamera_jax.batch.windows import BatchRunner, Stack
from kamera_jax.inference.encode import encode_segment


@dataclass(frozen=True, kw_only=True)
class Continuation(TextTask):
    """Two passages in a row, and the next tokens behind them: how far a method's predictions are from full prefill's.

    The second passage begins with a paragraph, and so the first ends with one.

    Attributes:
        tokens: of each passage, a condition for each length.
    """

    tokens: tuple[int, ...] = (128, 256, 512)

    name = "continuation"
    contexts = 12
    settings = {**TextTask.settings, "tokens": wholes}

    @property
    def conditions(self) -> Sequence[str]:
        """The lengths."""
        return [f"2 × {length}" for length in self.tokens]

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage of both chunks and what follows for each context."""
        for length, count in zip(self.tokens, shares(contexts, len(self.tokens)), strict=True):
            yield Need(2 * length + AHEAD + 1, count, lead=length)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Two chunks, and a question for each of the next tokens but one."""
        length = self.tokens[list(self.conditions).index(outline.layout)]
        ids = reader.chosen(outline.seed, 2 * length + AHEAD + 1, lead=length)[index]
        items = (Tokens.of(ids[:length]), Tokens.of(ids[length : 2 * length]))
        return Context(items, known(reader, ids[2 * length :], outline.layout, depth=1))

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """How much of the KL patches and recomputed tokens close."""
        bounds = ((0.1, 0.85), (0.25, 0.94))
        return [
            *(findings.patch_closes(scores, *bound, condition) for condition in self.conditions for bound in bounds),
            findings.tokens_close_less(scores, 0.15, 0.1),
            findings.tokens_close_at_most(scores, "cacheblend", "CacheBlend", 0.2),
            findings.tokens_close_at_most(scores, "epic", "EPIC", 0.2),
        ]


NEEDED = "need the first passage"
OTHER = "other tokens"

GAP = 0.1
"""By how much the right token's probability falls without the first passage: more than a near tie."""


@dataclass(frozen=True, kw_only=True)
class NeedsContext(TextTask):
    """Tokens of real text behind two passages that full prefill gets right because of the first passage alone.

    They are looked for with the model itself: those that it predicts from both passages, and not from the second
    alone. All other tokens are reported apart.

    Attributes:
        tokens: of each passage.
        ahead: how many next tokens are looked at.
    """

    tokens: int = 128
    ahead: int = 96

    name = "needs-context"
    contexts = 24
    settings = {**TextTask.settings, "tokens": whole, "ahead": whole}

    @property
    def conditions(self) -> Sequence[str]:
        """One."""
        return ["natural text"]

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage of both chunks and what follows for each context."""
        yield Need(2 * self.tokens + self.ahead + 1, contexts, lead=self.tokens)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Two chunks, and a question for each of the next tokens but one; two hops where both passages are needed."""
        length = self.tokens
        ids = reader.chosen(outline.seed, 2 * length + self.ahead + 1, lead=length)[index]
        items = (Tokens.of(ids[:length]), Tokens.of(ids[length : 2 * length]))
        after = ids[2 * length :]
        with_first, without = (_probabilities(reader, own, after) for own in (items, items[1:]))
        right = np.asarray(after[1:])
        rows = np.arange(len(right))
        needed = (with_first.argmax(-1) == right) & (without.argmax(-1) != right)
        needed &= with_first[rows, right] - without[rows, right] > GAP
        questions = []
        for question, needs_first in zip(known(reader, after, OTHER), needed, strict=True):
            questions.append(replace(question, condition=NEEDED, hops=2) if needs_first else question)
        return Context(items, questions)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """How many of the tokens that need the first passage are still right."""
        return findings.needed_tokens(scores, NEEDED)


def _probabilities(reader: Reader, items: Sequence[Tokens], after: np.ndarray) -> np.ndarray:
    """Next-token probabilities behind chunks that are prefilled together, after each token of a text but the last."""
    runner = BatchRunner(reader.vlm)
    stacks = [Stack.of([encode_segment(reader.vlm, segment_of(reader.vlm, item))]) for item in items]
    tail = segment_of(reader.vlm, Tokens.of(tuple(after[:-1])))
    tails = jax.tree.map(lambda leaf: leaf[None, None], tail)
    logits = runner.ask(runner.prefill(stacks), tails, np.arange(len(after) - 1)[None, None])
    return np.asarray(jax.nn.softmax(logits[0, 0], axis=-1))
