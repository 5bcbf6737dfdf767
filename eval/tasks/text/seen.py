"""Real text on pages: the chunks are pictures, read by the tower of kamera-smol-vl, or the same tokens as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from eval.smol_vl.words import FACES, SIZES
from eval.tasks.base import Context, Finding, Outline
from eval.tasks.settings import SettingError, text, whole
from eval.tasks.text import corpus, findings
from eval.tasks.text.page_break import drawn_facts
from eval.tasks.text.reader import BREAK, SEED, Piece, Reader
from eval.tasks.text.task import Need, TextTask, known
from eval.tasks.tokens import Tokens
from kamera_jax.backbone import Backbone
from models.media import typeset
from models.media.typeset import Face, page, piece

FORMS = ("pages", "text")
"""What chunks may be."""

NEXT = ("next token 1", "next token 2", *["next tokens 3–5"] * 3, *["next tokens 6–9"] * 4)
"""The condition of each of the next tokens that are asked for."""


def read_form(name: str, value: str) -> str:
    """A setting that is one of `FORMS`."""
    if value not in FORMS:
        raise SettingError(f"{name} is one of {' and '.join(FORMS)}; got {value!r}")
    return value


class PageReader(Reader):
    """A corpus as it is drawn on pages: one space for all white space, without tokens that cannot be drawn.

    Passages begin with any word.
    """

    @cached_property
    def _pieces(self) -> dict[int, typeset.Piece | None]:
        return {}

    def _piece(self, token: int) -> typeset.Piece | None:
        """The token as it is drawn; None where it cannot be."""
        if token not in self._pieces:
            self._pieces[token] = piece(self.vlm.decode([token]))
        return self._pieces[token]

    def _read(self, text: str) -> Piece:
        ids = self.ids(" " + " ".join(text.split()))
        drawn = [(token, each) for token in ids if (each := self._piece(token)) is not None]
        starts = [place for place, (_, each) in enumerate(drawn) if each.apart]
        return Piece(np.asarray([token for token, _ in drawn], np.int32), np.asarray(starts, np.int64))


@dataclass(frozen=True, kw_only=True)
class Seen(TextTask):
    """A task on pages of real text.

    Attributes:
        tokens: of the first page.
        form: ``"pages"``, or ``"text"`` for the same tokens read as text.
    """

    corpus: str = "docstrings"
    tokens: int = 128
    form: str = "pages"

    contexts = 10
    settings = {"corpus": text, "tokens": whole, "form": read_form}

    @property
    def conditions(self) -> Sequence[str]:
        """One layout."""
        return [f"{self.tokens} tokens"]

    def for_model(self, vlm: Backbone) -> "Seen":
        """The task with its corpus, as the model reads it.

        Raises:
            CorpusError: the corpus does not exist or cannot be read.
        """
        return replace(self, reader=PageReader(vlm, corpus.read(self.corpus)))

    def items(self, reader: Reader, passages: Sequence[Sequence[int]], rng: np.random.Generator) -> tuple[Any, ...]:
        """The chunks of passages: pages of one type, drawn at random, or tokens."""
        if self.form == "text":
            return tuple(Tokens.of(ids) for ids in passages)
        face = Face(str(rng.choice(FACES)), int(rng.choice(SIZES)))
        drawn = [[piece(reader.vlm.decode([int(token)])) for token in ids] for ids in passages]
        return tuple(page([each for each in pieces if each is not None], face) for pieces in drawn)


@dataclass(frozen=True, kw_only=True)
class SeenQuotation(Seen):
    """A page, and a second one that begins a copy of it: which tokens does the copy go on with?"""

    name = "seen-quotation"

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage for each context."""
        yield Need(self._whole, contexts)

    @property
    def _whole(self) -> int:
        return max(self.tokens, self.tokens // 2 + 1 + len(NEXT))

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """The page and its copy, and nine questions: the copy says where, the page what."""
        ids = reader.chosen(outline.seed, self._whole)[index][: self._whole]
        copied = self.tokens // 2
        rng = np.random.default_rng((SEED, outline.seed, index))
        items = self.items(reader, [ids[: self.tokens].tolist(), ids[:copied].tolist()], rng)
        asked = ids[copied : copied + 1 + len(NEXT)]
        questions = known(reader, asked, lambda number: NEXT[number - 1], hops=2, depth=0)
        return Context(items, questions)

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """What becomes of the first token of the quotation."""
        return findings.lost_and_restored(scores, NEXT[0], "the next token of a quoted page", oracle=True)


@dataclass(frozen=True, kw_only=True)
class SeenPageBreak(Seen):
    """Two pages and a fact that the page break cuts: the first ends with "The secret password is"."""

    name = "seen-page-break"
    version = 2

    def needs(self, contexts: int) -> Iterator[Need]:
        """A passage, cut into the two pages, for each context."""
        yield Need(2 * self.tokens, contexts)

    def drawn(self, reader: Reader, outline: Outline, index: int) -> Context:
        """Two pages of as many tokens, and a question: the sentence is repeated, up to its last word."""
        rng = np.random.default_rng((SEED, outline.seed, index))
        ((sentence, word),) = drawn_facts(reader, rng, 1, " ")
        ids = reader.chosen(outline.seed, 2 * self.tokens)[index].tolist()
        before = self.tokens - len(sentence)
        behind = self.tokens - len(word) - 1
        if before < 1:
            raise SettingError(f"a page of {self.tokens} tokens has no room for text beside the fact; give more")
        first = [*ids[:before], *sentence]
        second = [*word, *reader.ids("."), *ids[before : before + behind]]
        repeated = reader.ids(BREAK + reader.text(sentence).strip())
        asked = known(reader, [*repeated, word[0]], outline.layout, hops=2, depth=0)[-1]
        return Context(self.items(reader, [first, second], rng), [asked])

    def findings(self, scores: Mapping[str, Any]) -> Sequence[Finding]:
        """What becomes of the fact, and that it is a boundary effect."""
        condition = f"{self.tokens} tokens"
        found = findings.lost_and_restored(scores, condition, "a fact that a page break cuts", oracle=False)
        return [*found, findings.boundary(scores, condition)]
