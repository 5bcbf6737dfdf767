"""`orders`, `slide` and `recall`: patches that were formed in other windows than those they are used in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np

from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import one_of, whole, wholes
from eval.tasks.text import findings
from eval.tasks.text.reader import SEED, Reader
from eval.tasks.text.task import AHEAD, Need, TextTask, known, shares
from eval.tasks.tokens import Tokens

OWN = "patches of this order"
ORBIT = "one patch for all orders"


@dataclass(frozen=True, kw_only=True)
class Orders(TextTask):
    """The same two or three passages in all their orders, and the text that goes on behind the last.

    Each order is met twice: with patches formed in that order, and with the one patch a passage that serves all orders,
    formed behind the other passages in all of theirs (an orbit patch). The passage that stands first has no patch
    in either: it stands behind nothing, as it was encoded.

    Attributes:
        tokens: of each passage.
        passages: how many there are of them, where it is not two and three.
    """

    tokens: int = 128
    passages: tuple[int, ...] = (2, 3)

    name = "orders"
    version = 3
    contexts = 48
    settings = {**TextTask.settings, "tokens": whole, "passages": wholes}

    @property
    def conditions(self) -> Sequence[str]:
        """Two and three passages, or as many as asked, with both kinds of patches."""
        return [f"{count} passages, {kind}" for count in self.passages for kind in (OWN, ORBIT)]

    def needs(self, contexts: int) -> Iterator[Need]:
        """Passages of their own for every set, and what follows each of them."""
        contexts_of = shares(contexts, len(self.conditions))[1::2]
        sets = [-(-own // factorial(count)) for own, count in zip(contexts_of, self.passages, strict=True)]
        yield Need(self.tokens + AHEAD + 1, max(self.passages) * max(*sets, 1))

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """One order of a set; contexts go through a set's orders, and then to the next set."""
        count = int(outline.layout.partition(" ")[0])
        orders = list(permutations(range(count)))
        sets = _neighbours(reader, outline.seed, self.tokens + AHEAD + 1, max(self.passages))
        passages = sets[index // len(orders)][:count]
        order = orders[index % len(orders)]
        items = [Tokens.of(passage[: self.tokens]) for passage in passages]
        label = {"order": "".join(str(place + 1) for place in order)}
        questions = known(reader, passages[order[-1]][self.tokens :], outline.layout, depth=1, labels=label)
        behind: list[list[Tokens]] = []
        orbit = outline.layout.endswith(ORBIT)
        if orbit:
            behind = [[items[other] for other in range(count) if other != place] for place in order]
            behind[0] = []
        return Context([items[place] for place in order], questions, behind, any_order=orbit)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """How much of the KL patches close, in the order that they were formed in and in all."""
        kinds = ((OWN, 0.8), (ORBIT, 0.85))
        return [
            findings.patch_closes(scores, 0.1, share, f"{count} passages, {kind}")
            for kind, share in kinds
            for count in self.passages
        ]


def _neighbours(reader: Reader, seed: int, tokens: int, count: int) -> list[list[Any]]:
    """Sets of so many passages that follow one another in the corpus, in an order drawn by the seed."""
    passages = reader.passages(tokens)
    sets = [passages[i : i + count] for i in range(0, len(passages) - count + 1, count)]
    order = np.random.default_rng((SEED, seed, tokens)).permutation(len(sets))
    return [sets[i] for i in order]


WINDOW = 4
"""Passages of a window that slides."""

PRESENT = "present"
"""The reference that is full prefill of what is in the window now."""

HISTORY = "history"
"""The reference that is full prefill of all that has been in it, what has left being hidden from what is asked."""


def _behind(passages: Sequence[Tokens], place: int) -> list[Tokens]:
    """What stood before a passage when it entered the window."""
    return list(passages[max(0, place - WINDOW + 1) : place])


@dataclass(frozen=True, kw_only=True)
class Slide(TextTask):
    """A window of four passages that slides over a text, and at every step the tokens that go on behind it.

    Patches are those that each passage got when it entered; what they were formed behind leaves the window bit by bit.
    The reference is full prefill of what is in the window now (``"present"``), or of all that has been in it, what has
    left being hidden from the tokens that are asked (``"history"``).

    Attributes:
        tokens: of each passage.
        passages: of the text.
        reference: what methods are compared with.
    """

    tokens: int = 128
    passages: int = 40
    reference: str = PRESENT

    name = "slide"
    contexts = 37
    settings = {**TextTask.settings, "tokens": whole, "passages": whole, "reference": one_of(PRESENT, HISTORY)}

    @property
    def conditions(self) -> Sequence[str]:
        """One layout; the answers are shown by how far the window has slid."""
        return ["slide"]

    def layout(self, condition: str, index: int) -> str:
        """Windows whose passages entered behind equally many others; with their history, those of one step."""
        step = index % self._steps
        return f"{condition}, step {step if self.reference == HISTORY else min(step, WINDOW - 1)}"

    @property
    def _steps(self) -> int:
        return max(self.passages - WINDOW + 1, 1)

    @property
    def _whole(self) -> int:
        return (self._steps - 1 + WINDOW) * self.tokens + AHEAD + 1

    def needs(self, contexts: int) -> Iterator[Need]:
        """A text for every run through it; documents are read one behind the other."""
        yield Need(self._whole, -(-contexts // self._steps), across=True)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """The window at one step, and a question for each of the next tokens but one."""
        step = index % self._steps
        ids = reader.chosen(outline.seed, self._whole, across=True)[index // self._steps]
        size = self.tokens
        passages = [Tokens.of(ids[i * size : (i + 1) * size]) for i in range(len(ids) // size)]
        places = range(step, step + WINDOW)
        after = ids[(step + WINDOW) * size :][: AHEAD + 1]
        questions = known(reader, after, self._condition(step), depth=1, labels={"step": step})
        history = passages[:step] if self.reference == HISTORY else []
        return Context([passages[i] for i in places], questions, [_behind(passages, i) for i in places], history)

    def _condition(self, step: int) -> str:
        """Which third of the text a step is in; the first window has not slid."""
        third = max(-(-(self._steps - 1) // 3), 1)
        if not step:
            return "step 0"
        first = (step - 1) // third * third + 1
        return f"steps {first:02d} – {min(first + third - 1, self._steps - 1):02d}"

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """How much of the KL the patches close, all the way, and how much they leave."""
        reference = f"the {self.reference} reference"
        near = findings.near(scores, 0.1, 0.02, reference)
        return [near, findings.patch_closes(scores, 0.1, 0.5), findings.last_against_first(scores)]


STEPS = 10
"""How far a window has slid when a passage is recalled that has left it."""

RECALLS = ("at the end, old patch", "at the end, fresh patch", "at the front, old patch", "at the front, none")


@dataclass(frozen=True, kw_only=True)
class Recall(TextTask):
    """A passage that left a sliding window ten steps ago comes back into it, with the patch that it was formed with.

    At the end of the window it stands behind other passages than its patch was formed behind; at the front behind none,
    where it needs no patch. At the end its own text goes on, at the front that of the window.

    Attributes:
        tokens: of each passage.
    """

    tokens: int = 128

    name = "recall"
    contexts = 16
    settings = {**TextTask.settings, "tokens": whole}

    @property
    def conditions(self) -> Sequence[str]:
        """Where it comes back, and with which patch."""
        return RECALLS

    @property
    def _whole(self) -> int:
        return (WINDOW + STEPS) * self.tokens + AHEAD + 1

    def needs(self, contexts: int) -> Iterator[Need]:
        """A text for every set of conditions; documents are read one behind the other."""
        yield Need(self._whole, -(-contexts // len(RECALLS)), across=True)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Three passages of the window as it is now and the one that is recalled, and what follows."""
        size = self.tokens
        ids = reader.chosen(outline.seed, self._whole, across=True)[index]
        passages = [Tokens.of(ids[i * size : (i + 1) * size]) for i in range(WINDOW + STEPS)]
        recalled = WINDOW - 1
        stay = list(range(len(passages) - WINDOW + 1, len(passages)))
        at_end = outline.layout.startswith("at the end")
        places = [*stay, recalled] if at_end else [recalled, *stay]
        behind = [_behind(passages, place) for place in places]
        if not outline.layout.endswith("old patch"):
            behind[places.index(recalled)] = [passages[place] for place in stay] if at_end else []
        goes_on = (recalled + 1 if at_end else len(passages)) * size
        questions = known(reader, ids[goes_on : goes_on + AHEAD + 1], outline.layout, depth=1)
        return Context([passages[place] for place in places], questions, behind)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """How much of the KL the old patches close at the end, and what they do at the front."""
        closes = [findings.patch_closes(scores, 0.1, 0.3, condition) for condition in RECALLS[:2]]
        return [*closes, findings.worse_than(scores, 0.1, RECALLS[2], RECALLS[3])]
